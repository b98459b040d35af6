"""Rows of the table behind ``configs/``: attentions, schedules, recipes, detectors, backbones, variants, scores.

:mod:`mmccd.cli.config_table` makes configs of them.
"""

from __future__ import annotations

from dataclasses import dataclass


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
# Modern recipes, with RetinaNet: plain and with CCD.
SCHEDULES |= {
    f'{name}-1x': Schedule(f'coco_1x_{name}', dict(retinanet=('ccd',)))
    for name in ('coslr', 'ema', 'plateau', 'earlystop')
}
# What a detector changes in the schedules.
DETECTOR_LINES = dict(retinanet='optim_wrapper = dict(optimizer=dict(lr=0.01))\n', cascade_rcnn='')


@dataclass(frozen=True)
class Recipe:
    """How ResNet-50 is trained on ImageNet, plain and with CCD, beside the authors' way.

    Attributes:
        schedule (str): File of ``_base_/schedules``.
        dataset (str): File of ``_base_/datasets``.
        model (str): What is different in the model.
    """

    schedule: str
    dataset: str = 'imagenet_bs32'
    model: str = ''


RECIPES = {
    '8xb32-coslr': Recipe('in1k_100e_coslr'),
    '8xb32-ema': Recipe('in1k_100e_ema'),
    '8xb32-plateau': Recipe('in1k_100e_plateau'),
    '8xb32-earlystop': Recipe('in1k_100e_earlystop'),
    '8xb32-mixup-cutmix-lbs': Recipe(
        'in1k_100e_coslr',
        model="""\
model = dict(
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)
""",
    ),
    '8xb256-rsb-a3-100e': Recipe(
        'in1k_rsb_a3_100e',
        'imagenet_bs256_rsb_a3',
        """\
model = dict(
    head=dict(loss=dict(use_sigmoid=True)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)]),
)
""",
    ),
}

# Classifiers of zoo/, half as wide: options of their attentions. CCD has as many channels in a group as at full width.
NARROW = dict(se='', ccd='groups=32')


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
