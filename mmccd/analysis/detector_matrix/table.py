"""The matrix as a page in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .configs import LEFT_OUT, SIDE
from .trial import Result

OUTCOMES = ('passes', 'fails alike', 'fails')
_PAGE = """\
# Detector matrix

{total} configs of MMDetection {mmdet}, of {families} families, with {attention} in their backbones: {counts}.

Each config is built with its own backbone and the attention, initialised as the identity. Two images of {side} x
{side} pixels, with the annotations that its own pipelines load, give a loss and gradients; then the first of them is
predicted on. Weights of files are left out, proposals and samples are few, and norms are not synchronised.

* *passes*: all of that, with finite numbers, and a gradient in every parameter of every gate that is trained. A gate in
  a frozen stage is trained where `mmccd.AttentionResNet` reads a checkpoint that may miss it.
* *fails alike*: the same error at the same step with MMDetection's own backbone.
* *fails*: for a reason of mmccd.

Measured on a CPU with PyTorch {torch}, torchvision {torchvision}, MMEngine {mmengine}, and mmcv {mmcv} without compiled
operators, by

```shell
python tools/analysis_tools/detector_matrix.py --out docs/detector_matrix.json
```

which tries what has no result yet in that file, and writes this page beside it.

{table}
{rows}
"""
_TABLE = """\
| config | outcome | backbone | attention by | groups | gates | trained | parameters added |
|---|---|---|---|---:|---:|---:|---:|"""


def counts(results: Sequence[Result]) -> str:
    """How many have which outcome, in words: ``'97 pass, 3 fail alike without the attention'``."""
    found = Counter(result.outcome for result in results)
    words = dict(zip(OUTCOMES, ('pass', 'fail alike without the attention', 'fail for a reason of mmccd')))
    return ', '.join(f'{found[o]} {words[o]}' for o in OUTCOMES)


def markdown(results: Sequence[Result], versions: dict[str, str], attention: str = 'mmccd.CCD') -> str:
    """The page."""
    segmentors = [result for result in results if result.config.startswith('mmseg::')]
    results = [result for result in results if result not in segmentors]
    families = len({result.config.partition('/')[0] for result in results})
    rows = '\n'.join(map(_row, results))
    failed = [result for result in [*results, *segmentors] if result.outcome != 'passes']
    page = _PAGE.format(
        total=len(results),
        families=families,
        attention=attention.rpartition('.')[2],
        counts=counts(results),
        side=SIDE,
        table=_TABLE,
        rows=rows,
        **{k: v for k, v in versions.items() if k != 'mmccd'},
    )
    if segmentors:
        page += f'\n## MMSegmentation\n\n{_TABLE}\n' + '\n'.join(map(_row, segmentors)) + '\n'
    if failed:
        lines = '\n'.join(f'| `{r.config}` | {r.outcome} | {r.trial.step} | {_cell(r.trial.reason)} |' for r in failed)
        page += f'\n## Reasons\n\n| config | outcome | step | error |\n|---|---|---|---|\n{lines}\n'
    names = '\n'.join(f'| `{name}` | {why} |' for name, why in LEFT_OUT.items() if why != 'parts of configs')
    page += f'\n## Left out\n\n| folder | what it has |\n|---|---|\n{names}\n'
    return page


def _row(result: Result) -> str:
    t = result.trial
    return (
        f'| `{result.config}` | {result.outcome} | {t.backbone} | {t.by} | {t.groups or ""} | {t.places} | '
        f'{t.trained} | {t.added:,} |'
    )


def _cell(text: str) -> str:
    return text.replace('|', '\\|').replace('<', '&lt;').replace('>', '&gt;').replace('_', '\\_').replace('*', '\\*')
