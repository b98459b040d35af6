"""``zoo/README.md``, and the table of the zoo in the documentation: written from the cards, never by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmccd.checkpoints.files import write_atomically
from mmccd.checkpoints.zoo import SCHEME

from .zoo import MODELS

PAGE = """\
# Weights that were trained here

Written by `tools/model_converters/make_zoo.py` from the cards, the files `*.json` beside this one. [Model
zoo](../docs/model_zoo.md) shows how to use, make and verify them.

{table}

Scores are of these files, in half precision, on the validation split of `data/fashion`, from one training each with
seed {seed}: they show that the files work, not which attention is better. The photographs of the classifiers are the
10,000 test photographs of Fashion-MNIST, the detector's images 300 scenes of them.

Licence: {licence}.

The images in `images/` are test photographs of Fashion-MNIST, and a scene of them on a texture of scikit-image (CC0),
as `tools/dataset_converters/make_fashion.py` makes them. Fashion-MNIST: copyright (c) 2017 Zalando SE,
https://tech.zalando.com, the MIT License; H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms, arXiv:1708.07747.
"""


def table(cards: list[dict[str, Any]]) -> str:
    """Rows of a table, in Markdown: name, network, parameters, size, score, SHA-256."""
    rows = ['| name | network | parameters | MB | score | SHA-256 |', '|---|---|---|---|---|---|']
    for card in cards:
        shown = f'{card["score"]:.3f}' if card['metric'] == 'box AP' else f'{100 * card["score"]:.2f} %'
        rows.append(
            f'| `{SCHEME}{card["name"]}` | {card["title"]} | {card["parameters"]:,} | {card["size"] / 1e6:.1f} '
            f'| {card["metric"]} {shown} | `{card["sha256"][:12]}` |'
        )
    return '\n'.join(rows)


def read_cards(folder: Path) -> list[dict[str, Any]]:
    """Cards of a folder, in the order in which the networks are made."""
    paths = (folder / f'{name}.json' for name in MODELS)
    return [json.loads(path.read_text(encoding='utf-8')) for path in paths if path.is_file()]


def write_page(folder: Path) -> None:
    """Write ``README.md`` of a folder with cards."""
    cards = read_cards(folder)
    text = PAGE.format(table=table(cards), seed=cards[0]['seed'], licence=cards[0]['licence'])
    write_atomically(str(folder / 'README.md'), text.encode())
