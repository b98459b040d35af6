"""The page's section of attention maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

from torch import nn

from mmccd.analysis.attention_maps import attention_layers, draw_attention_maps, record_gates
from mmccd.analysis.inputs import prepare_image

from .blocks import Gallery, Item, Panel, Section
from .context import Context
from .images import data_uri, image_name
from .run import Run

FIGURE_WIDTH = 1400  # pixels


def attention_section(context: Context, prefix: str, runs: list[Run], paths: Sequence[str]) -> Section:
    """Attention maps of runs with weights, over the first of these images."""
    section = Section(f'{prefix}-gates', 'Attention maps')
    without = []
    for run in runs if paths else ():
        try:
            attention_layers(context.on_meta(run).backbone)
        except Exception:  # no config, or one without such a model; the next section has more
            without.append(f'{run.name} has no attention layers with gates.')
            continue
        if not run.checkpoint:
            without.append(f'{run.name} has attention layers, but its folder has no weights.')
            continue
        model = section.attempt(run.name, partial(run.model, context.device))
        if model is None:
            continue
        layers, items = attention_layers(model.backbone), []
        for path in paths[: context.options.gates]:
            item = section.attempt(f'{run.name}, {path}', partial(_figure, run, model, layers, path))
            items += [item] if item is not None else []
        if items:
            section.galleries.append(Gallery(run.name, items, 'figures'))
    if section.galleries:
        without.insert(0, 'Red: a high gate, blue: a low one. Each figure has its own scale.')
    elif not any('weights' in text for text in without):
        return section  # none of the networks has any
    section.intro = ' '.join(without)
    return section


def _figure(run: Run, model: nn.Module, layers: dict[str, nn.Module], path: str) -> Item:
    name = image_name(run.task, path)
    figure = draw_attention_maps(record_gates(model, prepare_image(run.cfg, path), layers), name)
    uri, (width, height) = data_uri(io.BytesIO(figure), FIGURE_WIDTH, 85)
    return Item(name, [Panel('', f'attention maps of {run.name} over {name}', uri=uri, width=width, height=height)])
