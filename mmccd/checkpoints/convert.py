"""Checkpoints of other code bases, turned into the names and shapes of the models here. No files are touched here.

What can be converted, with the names of the modules in a residual block:

* The original ImageNet models, torchvision's names plus an attention: CCD (``pf``), SE (``se.fc``, linear layers), GC
  (``gc``), CBAM (``cbam``), SK (``conv2g`` beside ``conv2``, ``conv_fc1``, ``conv_fc2``), and plain ResNets, at depths
  18, 34, 50, 101 and 152. GE has no parameters, so its names are a plain ResNet's. SK in a BasicBlock is expected to
  have ``conv1g`` beside ``conv1``, the convolution that :class:`mmccd.models.AttentionResNet` replaces there. CCD's
  scales, similarity and normalisation are in no tensor: the configs set them.
* RetinaNet and Cascade R-CNN of MMDetection 0.6 on these backbones, to MMDetection 3's names: tower convolutions get a
  ``.conv``, Cascade's heads move under ``roi_head``, and the background moves from the first class to the last.
* The authors' ECA-Nets: their names are today's here. Kernels are in the tensors, and set in the config.
* timm's SE-ResNet-50, -101 and -152 (``se.fc1``, ``se.fc2``): the same blocks. Its SE-ResNet-18 and -34 round the
  hidden layer up to multiples of 8, so their shapes differ in stage 1 and they are refused. So are, for other reasons:

  - ``skresnet50``: each branch sees one half of the channels; both branches are dense, the second with dilation 2
    (here: one is dense, one has 32 groups); the hidden layer has at least 8 channels.
  - ``gcresnet50t``: a stem of three 3x3 convolutions and no pooling; the context block is before the block's last
    1x1 convolution (here: after its norm) and reduces by 8 (here: by 16).

What names and shapes do not tell: where a block has its stride (Caffe's networks: in the first convolution), dilation,
blurs before subsampling (timm's ``resnetblur50``, ``resnetaa50``; refused where the file, or ``config.json`` beside it,
says so), and the mean and the order of channels of the images.

MMPretrain's SE-ResNets need no conversion: names and shapes are the same as here.

Why not mmdet's ``tools/model_converters/upgrade_model_version.py``: it takes version and config from the checkpoint's
``meta`` and runs that text as Python; it compares versions as strings and renames RetinaNet's towers up to 0.5.3 only;
it rotates every class bias, those of ``retina_cls`` and ``rpn_cls`` too, which have no background, and for
class-specific boxes drops the last class from ``fc_reg.bias`` but the first from ``fc_reg.weight``; it compares
nothing with the model. Nor can it be imported: it is no part of the package.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contents import entry_of, tensors_of, without_wrappers
from .fit import compare, shown

DETECTORS = ('retinanet', 'cascade_rcnn')
TASKS = ('cls', 'det')
# (has conv3, blocks of each stage): depth
DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
BLOCK_MODULES = ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3', 'downsample.0', 'downsample.1')


def _sk(i: int) -> dict[str, str]:
    """SK in place of convolution i: the block's own convolution is the first branch."""
    return {
        f'conv{i}': f'conv{i}.branches.0.conv',
        f'bn{i}': f'conv{i}.branches.0.bn',
        f'conv{i}g': f'conv{i}.branches.1.conv',
        f'bn{i}g': f'conv{i}.branches.1.bn',
        'conv_fc1': f'conv{i}.fc1.conv',
        'bn_fc1': f'conv{i}.fc1.bn',
        'conv_fc2': f'conv{i}.fc2',
    }


# Attention: tables of the code bases, each {module of a block there: module here}. A module that no table names keeps
# its name if it is a plain block's, and has no place otherwise.
ATTENTIONS: dict[str, tuple[dict[str, str], ...]] = {
    'ccd': (
        {
            'pf': 'ccd',
        },
    ),
    'se': (
        {
            'se.fc.0': 'se_layer.conv1.conv',
            'se.fc.2': 'se_layer.conv2.conv',
        },
        {  # timm
            'se.fc1': 'se_layer.conv1.conv',
            'se.fc2': 'se_layer.conv2.conv',
        },
    ),
    'cbam': (
        {
            'cbam.ChannelGate.mlp.1': 'cbam.channel_gate.fc1',
            'cbam.ChannelGate.mlp.3': 'cbam.channel_gate.fc2',
            'cbam.SpatialGate.spatial.conv': 'cbam.spatial_gate.conv',
            'cbam.SpatialGate.spatial.bn': 'cbam.spatial_gate.bn',
        },
    ),
    'gc': (
        {
            'gc.conv_mask': 'context_block.conv_mask',
            'gc.channel_add_conv.0': 'context_block.channel_add_conv.0',
            'gc.channel_add_conv.1': 'context_block.channel_add_conv.1',
            'gc.channel_add_conv.3': 'context_block.channel_add_conv.3',
        },
    ),
    'eca': (
        {
            'eca.conv': 'eca.conv',  # the authors' names are ours
        },
    ),
    'sk': (_sk(2), _sk(1)),  # Bottleneck, BasicBlock
}
# Modules outside the backbone: (name there, name here) of each kind of model.
_NECK = [(r'neck\.(lateral|fpn)_convs\.\d+\.conv', r'\g<0>')]
HEADS = {
    None: [(r'fc', r'head.fc')],
    'retinanet': [
        *_NECK,
        (r'bbox_head\.(cls|reg)_convs\.\d+', r'\g<0>.conv'),
        (r'bbox_head\.retina_(cls|reg)', r'\g<0>'),
    ],
    'cascade_rcnn': [
        *_NECK,
        (r'rpn_head\.rpn_(conv|cls|reg)', r'\g<0>'),
        (r'bbox_head\.\d+\.(shared_fcs\.\d+|fc_cls|fc_reg)', r'roi_head.\g<0>'),
    ],
}
TODAYS = "its names are today's already: load it as it is"
# Models that cannot be converted: patterns, each of which is found in some name of theirs; the reason.
REFUSED = (
    ((r'^backbone\..*\.(ccd|se_layer|context_block|channel_gate|branches|eca)\.',), TODAYS),
    ((r'^backbone\.', r'^head\.fc\.|^roi_head\.'), TODAYS),
    (
        (r'\.conv[12]\.paths\.',),
        "timm's SK-ResNets are other networks: in skresnet50 each branch sees half of the channels, and the second is "
        'dilated instead of grouped',
    ),
    (
        (r'^stages\.\d+\.\d+\.attn\.conv_attn\.',),
        "timm's GC-ResNet-50-T is another network: a stem of three convolutions without pooling, the context block "
        "before the block's last convolution, reduction 8",
    ),
    (
        (r'^bbox_head\.(cls|reg)_convs\.\d+\.conv\.',),
        "RetinaNet's tower convolutions end in .conv: it is no file of MMDetection 0.6, and newer ones have other "
        'anchors and boxes',
    ),
)


class Arch(NamedTuple):
    """A model: ``str()`` gives its name, e.g. ``ccd_r50``, ``r18`` or ``retinanet_se_r50``."""

    detector: str | None
    attention: str | None
    depth: int

    @property
    def task(self) -> str:
        """``'cls'`` or ``'det'``."""
        return 'det' if self.detector else 'cls'

    @property
    def backbone(self) -> str:
        """Name without the detector."""
        return f'{self.attention}_r{self.depth}' if self.attention else f'r{self.depth}'

    def __str__(self) -> str:
        return f'{self.detector}_{self.backbone}' if self.detector else self.backbone


def parse_arch(name: str) -> Arch:
    """Read an architecture's name, ``[<detector>_][<attention>_]r<depth>``; ``resnet50`` means ``r50``.

    Raises:
        ValueError: If it is none.
    """
    attentions = (*ATTENTIONS, 'ge')
    depths = sorted(set(DEPTHS.values()))
    match = re.fullmatch(
        rf'(?:({"|".join(DETECTORS)})_)?(?:({"|".join(attentions)})_)?r(?:esnet)?({"|".join(map(str, depths))})', name
    )
    if not match:
        raise ValueError(
            f'arch must be [<detector>_][<attention>_]r<depth>, with detector one of {DETECTORS}, '
            f'attention one of {attentions}, depth one of {tuple(depths)}, e.g. ccd_r50; got {name!r}'
        )
    return Arch(match.group(1), match.group(2), int(match.group(3)))


def state_dict_of(checkpoint: Any) -> dict[str, Tensor]:
    """The tensors of a loaded checkpoint (:func:`.contents.entry_of`), without prefixes of wrappers like ``module.``.

    Raises:
        ValueError: If there are none, or if something else is among them.
    """
    everything = entry_of(checkpoint)
    state = tensors_of(checkpoint)
    for what, others in (
        ('tensors', [f'{k} ({type(v).__name__})' for k, v in everything.items() if not isinstance(v, Tensor)]),
        (
            'dense tensors',
            [f'{k} ({str(v.layout).rpartition(".")[2]})' for k, v in state.items() if v.layout is not torch.strided],
        ),
    ):
        if others:
            raise ValueError(f'{len(others)} entries of its state dict are no {what}: {shown(others)}')
    return without_wrappers(state)


def recognise(state: Mapping[str, Tensor]) -> Arch:
    """Recognise the architecture by the names: detector, attention and depth.

    Args:
        state (Mapping[str, Tensor]): As :func:`state_dict_of` gives it.

    Raises:
        ValueError: If it is none of those above; the message names what it resembles.
    """
    for patterns, reason in REFUSED:
        if all(any(re.search(pattern, k) for k in state) for pattern in patterns):
            raise ValueError(reason)
    detector = _recognise_detector(state)
    backbone = [k[len('backbone.') :] for k in state if k.startswith('backbone.')] if detector else list(state)
    modules, blocks = set(), defaultdict(set)
    for key in backbone:
        block = _split_block(key)
        if block:
            stage, index, module, _ = block
            blocks[stage].add(index)
            modules.add(module)
    counts = tuple(len(blocks[f'layer{i}']) for i in range(1, 5))
    depth = DEPTHS.get(('conv3' in modules, counts))
    if depth is None:
        kind = 'Bottleneck' if 'conv3' in modules else 'BasicBlock'
        raise ValueError(
            f'its backbone is no ResNet of depth {", ".join(map(str, sorted(DEPTHS.values())))}: '
            + (f'{kind}s a stage: {counts}' if modules else f'it has {shown(list(state), 4)}')
        )
    found = [name for name, tables in ATTENTIONS.items() if any(_marks(table) & modules for table in tables)]
    if len(found) > 1:
        raise ValueError(f'its blocks have several attentions: {", ".join(found)}')
    return Arch(detector, found[0] if found else None, depth)


def convert(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Give every tensor the name and the shape that it has in the model of the config here.

    Batch counters that files from before PyTorch 0.4.1 lack are added as zeros: nothing reads them.

    Args:
        state (Mapping[str, Tensor]): As :func:`state_dict_of` gives it; it is not changed.
        arch (Arch): As :func:`recognise` gives it.

    Raises:
        ValueError: With a list of the tensors that have no place, or whose shape is not the original's.
    """
    out, unplaced, shapes = {}, [], []
    for key, value in state.items():
        name = _new_name(key, arch)
        if name is None or name in out:  # the same tensor under two names has no place either
            unplaced.append(key)
            continue
        try:
            out[name] = _new_value(name, value)
        except ValueError as e:
            shapes.append(f'{key}: {e}')
    for name in [k for k in out if k.endswith('.running_var')]:
        out.setdefault(name.replace('.running_var', '.num_batches_tracked'), torch.zeros((), dtype=torch.long))
    _raise_problems(
        f'it looks like {arch}, but',
        [
            ('have no place in it', unplaced),
            ('have a shape that the original does not have', shapes),
        ],
    )
    return out


def check_fits(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Compare with the model's own state dict (whose tensors may be on the meta device).

    Raises:
        ValueError: With a list of what is missing, unexpected, or has another shape.
    """
    problems = compare(state, target).problems()
    if problems:
        raise ValueError('it does not fit the model:\n  ' + '\n  '.join(problems))


def config_candidates(arch: Arch) -> list[tuple[str, dict[str, Any]]]:
    """Configs that build this architecture, (name, what to override in it), the closest first."""
    plain = arch._replace(attention=None)
    depth: dict[str, Any] = {'model.backbone.depth': arch.depth}
    channels = [64, 128, 256, 512]
    if arch.depth >= 50:
        channels = [4 * c for c in channels]
    elif arch.detector:
        depth['model.neck.in_channels'] = channels
    else:
        depth['model.head.in_channels'] = channels[-1]
    attention = {} if arch.attention is None else {'model.backbone.attention.type': f'mmccd.{arch.attention.upper()}'}
    return [
        (_config_name(arch), {}),
        (_config_name(arch._replace(depth=50)), depth),
        (_config_name(plain._replace(depth=50)), {**({} if arch.depth == 50 else depth), **attention}),
    ]


def eca_kernels(state: Mapping[str, Tensor]) -> list[int] | None:
    """Kernels of ECA's convolutions in the four stages, of converted tensors; None without ECA.

    The authors publish ResNet-50 with 3, 3, 5 and 7, others with the kernels that follow from the channels.
    """
    found: dict[str, int] = {}
    for key, value in state.items():
        match = re.search(r'(layer\d)\.\d+\.eca\.conv\.weight$', key)
        if match:
            found.setdefault(match[1], value.shape[-1])
    return [found[stage] for stage in sorted(found)] or None


def _config_name(arch: Arch) -> str:
    if arch.detector is None:
        return f'{arch.backbone}_8xb32_in1k.py'
    return f'{arch}_fpn_2x_legacy_coco.py'


def _recognise_detector(state: Mapping[str, Tensor]) -> str | None:
    if not any(k.startswith('backbone.') for k in state):
        return None
    if 'bbox_head.retina_cls.weight' in state:
        return 'retinanet'
    if 'bbox_head.0.fc_cls.weight' in state and 'rpn_head.rpn_cls.weight' in state:
        return 'cascade_rcnn'
    heads = sorted({k.split('.')[0] for k in state})
    raise ValueError(
        f'it is no RetinaNet and no Cascade R-CNN of MMDetection 0.6: its top-level modules are {", ".join(heads)}'
    )


def _split_block(key: str) -> tuple[str, int, str, str] | None:
    """('layer1', 0, 'downsample.1', 'bias') of 'layer1.0.downsample.1.bias'."""
    match = re.fullmatch(r'(layer[1-4])\.(\d+)\.(.+)\.(\w+)', key)
    return (match.group(1), int(match.group(2)), match.group(3), match.group(4)) if match else None


def _marks(table: Mapping[str, str]) -> set[str]:
    """Modules that a plain block does not have."""
    return set(table) - set(BLOCK_MODULES)


def _table(arch: Arch, module: str) -> Mapping[str, str]:
    """The table that names ``module``, of those for this attention and kind of block."""
    tables = ATTENTIONS.get(arch.attention or '', ())
    if arch.attention == 'sk':
        tables = tables[:1] if arch.depth >= 50 else tables[1:]
    return next((table for table in tables if module in table), {})


def _new_name(key: str, arch: Arch) -> str | None:
    """Name here of a tensor there; None if it has no place."""
    backbone = key
    if arch.detector:
        backbone = key[len('backbone.') :] if key.startswith('backbone.') else ''
    if re.fullmatch(r'(conv1|bn1)\.\w+', backbone):
        return f'backbone.{backbone}'
    block = _split_block(backbone)
    if block:
        stage, index, module, leaf = block
        new = _table(arch, module).get(module, module if module in BLOCK_MODULES else None)
        return new and f'backbone.{stage}.{index}.{new}.{leaf}'
    module, _, leaf = key.rpartition('.')
    for pattern, new in HEADS[arch.detector]:
        match = re.fullmatch(pattern, module)
        if match:
            return f'{match.expand(new)}.{leaf}'
    return None


def _new_value(name: str, value: Tensor) -> Tensor:
    """Bring a tensor, already named as here, into the shape and the class order that it has here."""
    if re.search(r'\.ccd\.(scale|bias)$', name):  # (1, G, 1) -> (G,)
        if value.dim() != 3 or value.shape[0] != 1 or value.shape[2] != 1:
            raise ValueError(f'must have shape (1, groups, 1), has {tuple(value.shape)}')
        return value.flatten()
    if '.se_layer.' in name and value.dim() == 2:  # a linear layer's (out, in) -> a 1x1 convolution's (out, in, 1, 1)
        return value[:, :, None, None]
    if re.search(r'\.fc_(cls|reg)\.(weight|bias)$', name) and value.dim() == 0:
        raise ValueError('must have at least one dimension, is a single number')
    if re.search(r'\.fc_cls\.(weight|bias)$', name):  # background from first to last
        return torch.cat([value[1:], value[:1]])
    if re.search(r'\.fc_reg\.(weight|bias)$', name) and value.shape[0] != 4:
        raise ValueError(
            f'must be class-agnostic, 4 outputs as in the original and in the configs here, has {value.shape[0]}'
        )
    return value


def _raise_problems(what: str, problems: Sequence[tuple[str, Sequence[str]]]) -> None:
    lines = [f'{len(items)} tensors {text}: {shown(items)}' for text, items in problems if items]
    if lines:
        raise ValueError(f'{what}:\n  ' + '\n  '.join(lines))
