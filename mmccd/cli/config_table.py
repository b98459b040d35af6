"""The table behind ``configs/``: every config that is a product of rows is written from here, by ``make configs``.

* A new attention is one row of ``ATTENTIONS``; add its name to ``COMPARED`` for configs of the detectors.
* A new schedule of the detectors is one row of ``SCHEDULES``, with its file in ``configs/_base_/schedules``.
* A detector of MMDetection, by its own recipe, is one row of ``STOCK``.
* A backbone of the ResNet family is one row of ``BACKBONES``.
* A new variant of one of the configs is one row of ``VARIANTS``.

Any other config is written by hand, in the same folder; all of them get an entry in ``configs/metafile.yml``, which
mim and MMPretrain's hub read. A test compares the files with this table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mmccd.errors import UserError

MARK = '# Written by `make configs` (mmccd/cli/config_table.py).\n'


@dataclass(frozen=True)
class Attention:
    """One attention of the zoo.

    Attributes:
        name (str): In the names of configs and checkpoints.
        type (str): Registered name, without ``mmccd.``; the collection in the metafile.
        title (str): Of its paper.
        url (str): Of its paper; empty if it is not on the open web.
    """

    name: str
    type: str
    title: str
    url: str = ''


ATTENTIONS = (
    Attention('se', 'SE', 'Squeeze-and-Excitation Networks', 'https://arxiv.org/abs/1709.01507'),
    Attention(
        'ge',
        'GE',
        'Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks',
        'https://arxiv.org/abs/1810.12348',
    ),
    Attention('cbam', 'CBAM', 'CBAM: Convolutional Block Attention Module', 'https://arxiv.org/abs/1807.06521'),
    Attention('sk', 'SK', 'Selective Kernel Networks', 'https://arxiv.org/abs/1903.06586'),
    Attention(
        'eca',
        'ECA',
        'ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks',
        'https://arxiv.org/abs/1910.03151',
    ),
    Attention(
        'gc',
        'GC',
        'GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond',
        'https://arxiv.org/abs/1904.11492',
    ),
    Attention(
        'ccd',
        'CCD',
        'Cascaded Context Dependency: An Extremely Lightweight Module for Deep Convolutional Neural Networks',
    ),
    Attention(
        'sge',
        'SGE',
        'Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks',
        'https://arxiv.org/abs/1905.09646',
    ),
    Attention(
        'simam',
        'SimAM',
        'SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks',
        'https://proceedings.mlr.press/v139/yang21o.html',
    ),
    Attention(
        'coord',
        'CoordAttention',
        'Coordinate Attention for Efficient Mobile Network Design',
        'https://arxiv.org/abs/2103.02907',
    ),
    Attention(
        'ema',
        'EMAttention',
        'Efficient Multi-Scale Attention Module with Cross-Spatial Learning',
        'https://arxiv.org/abs/2305.13563',
    ),
    Attention(
        'triplet',
        'TripletAttention',
        'Rotate to Attend: Convolutional Triplet Attention Module',
        'https://arxiv.org/abs/2010.03045',
    ),
    Attention('bam', 'BAM', 'BAM: Bottleneck Attention Module', 'https://arxiv.org/abs/1807.06514'),
    Attention(
        'shuffle',
        'ShuffleAttention',
        'SA-Net: Shuffle Attention for Deep Convolutional Neural Networks',
        'https://arxiv.org/abs/2102.00240',
    ),
    Attention('nam', 'NAM', 'NAM: Normalization-based Attention Module', 'https://arxiv.org/abs/2111.12419'),
    Attention(
        'lsk',
        'LSK',
        'Large Selective Kernel Network for Remote Sensing Object Detection',
        'https://arxiv.org/abs/2303.09030',
    ),
    Attention('fca', 'FCA', 'FcaNet: Frequency Channel Attention Networks', 'https://arxiv.org/abs/2012.11879'),
)
COMPARED = ('se', 'ge', 'cbam', 'sk', 'gc', 'ccd')  # on COCO and on the digits, too
PHOTOGRAPHS = ('fashion', 'solar')  # data that anybody can make: classifiers with every attention
LATER = ('sge', 'simam', 'coord', 'ema', 'triplet', 'bam', 'shuffle', 'nam', 'lsk', 'fca')  # RetinaNet's 1x, too


@dataclass(frozen=True)
class Schedule:
    """How the detectors are trained on COCO, in the names of their configs.

    Attributes:
        file (str): Of ``_base_/schedules``.
        attentions (dict): Those that each detector is trained with, beside none.
        kind (str): End of the files of ``_base_/models`` and ``_base_/datasets``.
        note (str): Comment for the configs without an attention.
    """

    file: str
    attentions: dict[str, tuple[str, ...]]
    kind: str = ''
    note: str = ''


SCHEDULES = {
    '1x': Schedule('coco_1x', dict(retinanet=COMPARED + LATER, cascade_rcnn=COMPARED)),
    '2x': Schedule('coco_2x', dict(retinanet=COMPARED, cascade_rcnn=COMPARED)),
    '2x_legacy': Schedule(
        'coco_2x',
        dict(retinanet=('se', 'ccd'), cascade_rcnn=('gc', 'ccd')),  # the authors' weights
        '_legacy',
        '# For weights of MMDetection 0.6, converted by tools/model_converters/original_to_mmccd.py.\n',
    ),
}
# What a detector changes in the schedules.
DETECTOR_LINES = dict(retinanet='optim_wrapper = dict(optimizer=dict(lr=0.01))\n', cascade_rcnn='')


@dataclass(frozen=True)
class Stock:
    """A detector with MMDetection's recipe.

    Attributes:
        base (str): MMDetection's config.
        name (str): Of the config here; ``{}`` is the backbone.
        model (str): What is different in the model.
        tasks (str): In the metafile.
    """

    base: str
    name: str
    model: str = 'model = dict(backbone=_base_.stock_backbone)\n'
    tasks: str = 'Object Detection'


_RGB = """\
# MMDetection's has weights of Caffe: BGR images, not divided by their deviation, and the stride in another place.
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _base_.stock_backbone,
        style='pytorch',
        init_cfg=dict(type='mmccd.PretrainedBackbone', checkpoint='torchvision://resnet50'),
    ),
)
"""
STOCK = (
    Stock('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 'faster_rcnn_{}_fpn_1x_coco'),
    Stock(
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        'mask_rcnn_{}_fpn_1x_coco',
        tasks='Object Detection, Instance Segmentation',
    ),
    Stock('atss/atss_r50_fpn_1x_coco', 'atss_{}_fpn_1x_coco'),
    Stock('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'fcos_{}_fpn_1x_coco', _RGB),
    Stock('gfl/gfl_r50_fpn_1x_coco', 'gfl_{}_fpn_1x_coco'),
    Stock('dino/dino-4scale_r50_8xb2-12e_coco', 'dino-4scale_{}_8xb2-12e_coco'),
)


@dataclass(frozen=True)
class Backbone:
    """A network of the ResNet family, beside ResNet-50.

    Attributes:
        name (str): In the names of configs and checkpoints.
        arguments (str): Of the backbone.
        weights (str): Published weights that a detector without an attention is initialised with.
    """

    name: str
    arguments: str
    weights: str


BACKBONES = (
    Backbone(
        'r50d',
        'deep_stem=True, avg_down=True',
        'https://mmassets.onedl.ai/mmclassification/v0/resnet/resnetv1d50_b32x8_imagenet_20210531-db14775a.pth',
    ),
    Backbone('x50-32x4d', 'groups=32, base_width=4', 'torchvision://resnext50_32x4d'),
)

# name: (base, what is different in the model, a comment)
VARIANTS = {
    'ccd_r18_8xb32_in1k': ('ccd_r50_8xb32_in1k', 'backbone=dict(depth=18), head=dict(in_channels=512)', ''),
    'ccd_r34_8xb32_in1k': ('ccd_r50_8xb32_in1k', 'backbone=dict(depth=34), head=dict(in_channels=512)', ''),
    'ccd_r101_8xb32_in1k': ('ccd_r50_8xb32_in1k', 'backbone=dict(depth=101)', ''),
    # The authors' ablation.
    **{
        f'{name}_r50_8xb32_in1k': ('ccd_r50_8xb32_in1k', f'backbone=dict(attention=dict({options}))', note)
        for name, options, note in (
            ('ccd-g8', 'groups=8', ''),
            ('ccd-g16', 'groups=16', ''),
            ('ccd-g32', 'groups=32', ''),
            ('ccd-g128', 'groups=128', ''),
            ('ccd-cosine', "similarity='cosine'", ''),
            ('ccd-s148', 'scales=(1, 4, 8)', ''),
            ('ccd-s148-none', 'scales=(1, 4, 8), normalize=None', ''),
            ('ccd-s1-none', 'scales=(1,), normalize=None', ''),
            ('ccd-s1-minmax', "scales=(1,), normalize='minmax'", ''),
        )
    },
}

# The authors' results, from the paper and its repository: top-1; AP, AP50, AP75.
PUBLISHED = {
    'r50_8xb32_in1k': (75.90,),
    'se_r50_8xb32_in1k': (77.29,),
    'ge_r50_8xb32_in1k': (76.24,),
    'cbam_r50_8xb32_in1k': (77.28,),
    'sk_r50_8xb32_in1k': (77.37,),
    'gc_r50_8xb32_in1k': (74.90,),
    'ccd_r50_8xb32_in1k': (77.31,),
    'retinanet_r50_fpn_2x_coco': (36.2, 55.9, 38.5),
    'retinanet_se_r50_fpn_2x_coco': (37.4, 57.8, 39.8),
    'retinanet_ccd_r50_fpn_2x_coco': (37.8, 58.5, 40.1),
    'cascade_rcnn_r50_fpn_2x_coco': (40.6, 58.9, 44.2),
    'cascade_rcnn_gc_r50_fpn_2x_coco': (41.1, 59.7, 44.6),
    'cascade_rcnn_ccd_r50_fpn_2x_coco': (42.5, 61.1, 46.4),
}
DATASETS = {'in1k': 'ImageNet-1k', 'coco': 'COCO'}  # as mim calls them
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
    texts |= _stock_leaves() | _backbone_leaves()
    for leaf, (base, change, note) in VARIANTS.items():
        texts[leaf] = f"{note}_base_ = './{base}.py'\nmodel = dict({change})\n"
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


def _with_attention(plain: str, name: str, checkpoint: str = '') -> str:
    """A config with an attention and, for a detector, the classifier's checkpoint that initialises its backbone."""
    init = f", init_cfg=dict(checkpoint='checkpoints/{checkpoint}.pth')" if checkpoint else ''
    return (
        f"_base_ = ['./{plain}.py', './_base_/attention/{name}.py']\n"
        f'model = dict(backbone=dict(attention=_base_.attention{init}))\n'
    )


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
