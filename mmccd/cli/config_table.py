"""The table behind ``configs/``: every config that is a product of rows is written from here, by ``make configs``.

The rows are in :mod:`mmccd.cli.config_rows`.

* A new attention is one row of ``ATTENTIONS``; add its name to ``COMPARED`` for configs of the detectors.
* A new schedule of the detectors is one row of ``SCHEDULES``, with its file in ``configs/_base_/schedules``.
* A recipe for ImageNet is one row of ``RECIPES``.
* A detector of MMDetection, by its own recipe, is one row of ``STOCK``.
* A backbone of the ResNet family is one row of ``BACKBONES``.
* A classifier of ``zoo/`` is one entry of ``NARROW``.
* A new variant of one of the configs is one row of ``VARIANTS``.

Any other config is written by hand, in the same folder; all of them get an entry in ``configs/metafile.yml``, which
mim and MMPretrain's hub read. A test compares the files with this table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmccd.errors import UserError

from .config_rows import (
    ATTENTIONS,
    BACKBONES,
    COMPARED,
    DATASETS,
    DETECTOR_LINES,
    NARROW,
    PHOTOGRAPHS,
    PUBLISHED,
    RECIPES,
    SCHEDULES,
    STOCK,
    VARIANTS,
)

MARK = '# Written by `make configs` (mmccd/cli/config_table.py).\n'
LINE = 120  # characters, as of all code here
METAFILE_HEAD = """\
# What mim and MMPretrain's model hub read. No weights are published yet. Metrics are the authors', from the paper and
# its repository, as in README.md; {} where there are none.
"""


def leaves() -> dict[str, str]:
    """Text of every config that the table makes, by its name."""
    texts = {}
    for attention in ATTENTIONS:
        texts[f'{attention.name}_r50_8xb32_in1k'] = _with_attention('r50_8xb32_in1k', attention.name)
    for name in COMPARED:
        texts[f'{name}_r18_digits'] = _with_attention('r18_digits', name)
        texts[f'retinanet_{name}_r18_fpn_digits'] = _with_attention(
            'retinanet_r18_fpn_digits', name, f'{name}_r18_digits'
        )
        texts[f'retinanet_{name}_r18_fpn_fashion'] = _with_attention(
            'retinanet_r18_fpn_fashion', name, f'{name}_r18_fashion'
        )
    for attention in ATTENTIONS:
        for dataset in PHOTOGRAPHS:
            texts[f'{attention.name}_r18_{dataset}'] = _with_attention(f'r18_{dataset}', attention.name)
    texts['retinanet_ccd_r18_fpn_trees'] = _with_attention('retinanet_r18_fpn_trees', 'ccd', 'ccd_r18_digits')
    for name, options in NARROW.items():
        texts[f'{name}_r18-w32_fashion'] = _with_attention('r18-w32_fashion', name, options=options)
    texts['retinanet_ccd_r18-w32_fpn_fashion'] = _with_attention(
        'retinanet_r18-w32_fpn_fashion', 'ccd', 'zoo://ccd_r18-w32_fashion', NARROW['ccd']
    )
    for key, schedule in SCHEDULES.items():
        for detector, attentions in schedule.attentions.items():
            plain = f'{detector}_r50_fpn_{key}_coco'
            bases = (
                f'models/{detector}_r50_fpn{schedule.kind}',
                f'datasets/coco_detection{schedule.kind}',
                f'schedules/{schedule.file}',
                'det_runtime',
            )
            lines = ''.join(f"    './_base_/{base}.py',\n" for base in bases)
            texts[plain] = f'{schedule.note}_base_ = [\n{lines}]\n{DETECTOR_LINES[detector]}'
            for name in attentions:
                leaf = f'{detector}_{name}_r50_fpn_{key}_coco'
                texts[leaf] = _with_attention(plain, name, f'{name}_r50_in1k')
    texts |= _recipe_leaves() | _stock_leaves() | _backbone_leaves()
    for leaf, (base, change, note) in VARIANTS.items():
        texts[leaf] = f"{note}_base_ = './{base}.py'\nmodel = dict({change})\n"
    return texts


def _recipe_leaves() -> dict[str, str]:
    """Classifiers on ImageNet by other recipes, plain and with CCD."""
    texts = {}
    for key, recipe in RECIPES.items():
        plain = f'r50_{key}_in1k'
        bases = (
            'models/resnet50_cls',
            f'datasets/{recipe.dataset}',
            f'schedules/{recipe.schedule}',
            'cls_runtime',
        )
        lines = ''.join(f"    './_base_/{base}.py',\n" for base in bases)
        texts[plain] = f'_base_ = [\n{lines}]\n{recipe.model}'
        texts[f'ccd_{plain}'] = _with_attention(plain, 'ccd')
    return texts


def _stock_leaves() -> dict[str, str]:
    """Detectors of MMDetection, plain and with CCD."""
    texts = {}
    for stock in STOCK:
        plain = stock.name.format('r50')
        texts[plain] = (
            f"_base_ = ['mmdet::{stock.base}.py', './_base_/stock_detector.py']\n"
            'default_hooks = _base_.stock_hooks\n'
            'train_dataloader = dict(dataset=_base_.stock_train)\n'
            'val_dataloader = dict(dataset=_base_.stock_test)\n'
            'test_dataloader = dict(dataset=_base_.stock_test)\n'
            f'{stock.model}'
        )
        texts[stock.name.format('ccd_r50')] = _with_attention(plain, 'ccd', 'ccd_r50_in1k')
    return texts


def _backbone_leaves() -> dict[str, str]:
    """Classifiers and RetinaNets with other backbones, plain and with CCD."""
    texts = {}
    for backbone in BACKBONES:
        classifier, detector = f'{backbone.name}_8xb32_in1k', f'retinanet_{backbone.name}_fpn_1x_coco'
        arguments = ''.join(f'        {argument},\n' for argument in backbone.arguments.split(', '))
        texts[classifier] = f"_base_ = './r50_8xb32_in1k.py'\nmodel = dict(backbone=dict({backbone.arguments}))\n"
        texts[detector] = (
            "_base_ = './retinanet_r50_fpn_1x_coco.py'\n"
            f'model = dict(\n    backbone=dict(\n{arguments}'
            f"        init_cfg=dict(\n            checkpoint='{backbone.weights}',\n        ),\n    )\n)\n"
        )
        texts[f'ccd_{classifier}'] = _with_attention(classifier, 'ccd')
        texts[f'retinanet_ccd_{backbone.name}_fpn_1x_coco'] = _with_attention(
            detector, 'ccd', f'ccd_{backbone.name}_in1k'
        )
    return texts


def aliases() -> dict[str, str]:
    """Text of the configs under the names that they had: Cascade R-CNN's ``2x`` was called ``24e``."""
    return {
        name.replace('_2x_', '_24e_'): f"# The old name of {name}.\n_base_ = './{name}.py'\n"
        for name in leaves()
        if name.startswith('cascade_rcnn_') and '_2x_' in name
    }


def _with_attention(plain: str, name: str, checkpoint: str = '', options: str = '') -> str:
    """A config with an attention and, for a detector, the classifier's weights that initialise its backbone."""
    source = checkpoint if '://' in checkpoint else f'checkpoints/{checkpoint}.pth'
    init = f", init_cfg=dict(checkpoint='{source}')" if checkpoint else ''
    attention = f'dict(_base_.attention, {options})' if options else '_base_.attention'
    backbone = f'backbone=dict(attention={attention}{init})'
    model = (
        f'model = dict({backbone})'
        if len(backbone) < LINE - len('model = dict()')
        else f'model = dict(\n    {backbone}\n)'
    )
    return f"_base_ = ['./{plain}.py', './_base_/attention/{name}.py']\n{model}\n"


def metafile(names: list[str]) -> str:
    """Text of ``metafile.yml`` with these configs."""
    collections = [
        '  - Name: ResNet\n'
        '    Paper:\n'
        '      Title: "Deep Residual Learning for Image Recognition"\n'
        '      URL: https://arxiv.org/abs/1512.03385\n'
    ]
    for a in ATTENTIONS:
        url = f'      URL: {a.url}\n' if a.url else ''
        collections.append(f'  - Name: {a.type}\n    Paper:\n      Title: "{a.title}"\n{url}')
    return f'{METAFILE_HEAD}Collections:\n{"".join(collections)}\nModels:\n{"".join(map(_entry, sorted(names)))}'


def _detectors() -> dict[str, str]:
    """Tasks in the metafile, by the beginnings of the names of detectors."""
    ours = dict.fromkeys(('retinanet', 'cascade_rcnn'), 'Object Detection')
    return ours | {stock.name.partition('_{}')[0]: stock.tasks for stock in STOCK}


def _entry(name: str) -> str:
    """A config's entry. Attention, task and dataset are read from its name; a test of all configs compares them."""
    detector = next((d for d in _detectors() if name.startswith(f'{d}_')), '')
    word = name.removeprefix(f'{detector}_').split('_')[0].split('-')[0]
    collection = {a.name: a.type for a in ATTENTIONS}.get(word, 'ResNet')
    keys = ('box AP', 'box AP50', 'box AP75') if detector else ('Top 1 Accuracy',)
    metrics = ', '.join(f'{k} (authors): {v:.{1 if detector else 2}f}' for k, v in zip(keys, PUBLISHED.get(name, ())))
    dataset = name.rpartition('_')[2]
    results = ''.join(
        f'      - Task: {task}\n        Dataset: {DATASETS.get(dataset, dataset)}\n        Metrics: {{{metrics}}}\n'
        for task in _detectors().get(detector, 'Image Classification').split(', ')
    )
    return f'  - Name: {name}\n    In Collection: {collection}\n    Config: configs/{name}.py\n    Results:\n{results}'


def files(folder: Path) -> dict[str, str]:
    """Text of every file that the table makes in ``folder``, by its path there; configs written by hand lie there."""
    made = {**leaves(), **aliases()}
    by_hand = {p.stem for p in folder.glob('*.py') if not p.read_text(encoding='utf-8').startswith(MARK)}
    double = sorted(by_hand & set(made))
    if double:
        raise UserError(f'{folder}: {double[0]}.py is written by hand, and the table makes it as well: remove one')
    texts = {f'_base_/attention/{a.name}.py': f"attention = dict(type='mmccd.{a.type}')\n" for a in ATTENTIONS}
    texts.update({f'{name}.py': text for name, text in made.items()})
    texts = {path: MARK + text for path, text in texts.items()}
    texts['metafile.yml'] = MARK + metafile([*leaves(), *by_hand])
    return texts


def write(folder: Path) -> dict[str, str]:
    """Write what the table makes, and delete what it made before and makes no longer.

    Returns:
        dict[str, str]: ``'created'``, ``'changed'`` or ``'deleted'`` for each file that is not as it was, by its path.
    """
    texts, done = files(folder), {}
    for path in sorted(folder.rglob('*.py')):
        name = path.relative_to(folder).as_posix()
        if name not in texts and path.read_text(encoding='utf-8').startswith(MARK):
            path.unlink()
            done[name] = 'deleted'
    for name, text in texts.items():
        path = folder / name
        exists = path.is_file()
        if not exists or path.read_text(encoding='utf-8') != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding='utf-8')
            done[name] = 'changed' if exists else 'created'
    return done


def main() -> None:
    """Write ``configs/`` of the checkout that this file belongs to."""
    folder = Path(__file__).resolve().parents[2] / 'configs'
    if not (folder / '_base_').is_dir():
        raise UserError(f'{folder} has no _base_: make configs needs a checkout')
    done = write(folder)
    print('\n'.join(f'{name}: {what}' for name, what in sorted(done.items())) or f'{folder}: nothing to change')


if __name__ == '__main__':
    try:
        main()
    except UserError as e:
        sys.exit(f'error: {e}')
