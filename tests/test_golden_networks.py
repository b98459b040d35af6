"""Whole networks against the original implementation's numbers, and depths without such numbers against torchvision.

Every network goes the way that the authors' files go: a checkpoint in their format, the converter, the config that
the converter names, the model. The README of data/golden says what the numbers are.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmccd.checkpoints.convert import parse_arch
from mmccd.checkpoints.read import read_checkpoint
from mmccd.models import conversion
from mmccd.ops import ccd_reference

TESTS = Path(__file__).parent
CLASSIFIERS = ['resnet50', 'ccd_resnet50', 'se_resnet50', 'sk_resnet50', 'cbam_resnet50', 'gc_resnet50']


def load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


seeded = load_file(TESTS / 'data' / 'golden' / 'seeded_weights.py')


def authors_state(shapes: dict) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in seeded.seeded_state(shapes).items()}


def write_classifier(path: Path, state: dict[str, Tensor], arch: str) -> Path:
    """What the authors' ImageNet training left on disk."""
    torch.save(
        dict(
            epoch=100,
            arch=arch,
            state_dict={f'module.{k}': v for k, v in state.items()},
            best_prec1=torch.tensor(77.3),
            optimizer=dict(state={}, param_groups=[dict(lr=1e-4, params=[0])]),
        ),
        path,
    )
    return path


def write_detector(path: Path, state: dict[str, Tensor]) -> Path:
    """What MMDetection 0.6 left on disk."""
    torch.save(dict(meta=dict(epoch=24, iter=7), state_dict=state, optimizer=dict(state={}, param_groups=[])), path)
    return path


def convert_and_build(path: Path, arch: str | None = None) -> nn.Module:
    """Converter, the config that it finds, the model with every tensor of the converted file."""
    out = path.with_suffix('.converted')
    conversion.convert_file(str(path), str(out), arch=arch)
    checkpoint = read_checkpoint(str(out))
    for file in (path, out):
        file.unlink()  # 100 MB each
    cfg, _ = conversion.find_config(parse_arch(checkpoint['meta']['arch']))
    model = MODELS.build(dict(cfg.model, _scope_=cfg.default_scope))
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    return model.double().eval()


def worst(ours: Tensor, theirs: np.ndarray | Tensor) -> float:
    """Largest deviation, relative to the largest value."""
    ours, theirs = ours.detach().double().numpy(), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(
    'name', [n if n.startswith(('ccd', 'sk')) else pytest.param(n, marks=pytest.mark.long) for n in CLASSIFIERS]
)
@torch.no_grad()
def test_classifier(golden, tmp_path, name):
    shapes = json.loads((golden / f'{name}.json').read_text())
    expected = np.load(golden / f'{name}.npz')
    model = convert_and_build(write_classifier(tmp_path / 'x.pth.tar', authors_state(shapes['shapes']), name))
    assert sum(p.numel() for p in model.parameters()) == shapes['params']
    outputs = {}
    for i in range(1, 5):
        stage = getattr(model.backbone, f'layer{i}')
        stage.register_forward_hook(lambda module, args, out, i=i: outputs.__setitem__(i, out))
    x = torch.from_numpy(seeded.seeded_input(name, tuple(shapes['input_shape'])))
    assert worst(model(x.double()), expected['logits']) < 1e-9
    for i, out in outputs.items():  # stored in float32
        assert worst(out.mean((2, 3)), expected[f'layer{i}_mean']) < 1e-7
        assert worst(out.std((2, 3)), expected[f'layer{i}_std']) < 1e-7
    assert len(outputs) == 4
    model.float()
    assert worst(model(x), expected['logits']) < 1e-3
    for i, out in outputs.items():
        assert worst(out.mean((2, 3)), expected[f'layer{i}_mean']) < 1e-3
        assert worst(out.std((2, 3)), expected[f'layer{i}_std']) < 1e-3


def detector(golden: Path, folder: Path, name: str) -> tuple[nn.Module, np.lib.npyio.NpzFile, list[Tensor]]:
    """(model, expected arrays, features of its neck)"""
    case = json.loads((golden / f'{name}.json').read_text())
    model = convert_and_build(write_detector(folder / 'epoch_24.pth', authors_state(case['shapes'])))
    x = torch.from_numpy(seeded.seeded_input(name, tuple(case['input_shape']))).double()
    return model, np.load(golden / f'{name}.npz'), model.neck(model.backbone(x))


def stored(level: int, x: Tensor) -> Tensor:
    """Levels 0 and 1 are stored every 4th row and column."""
    return x[..., ::4, ::4] if level < 2 else x


@torch.no_grad()
def test_retinanet(golden, tmp_path):
    model, expected, features = detector(golden, tmp_path, 'det_retinanet_ccd_r50')
    scores, deltas = model.bbox_head(features)
    assert len(scores) == 5
    anchors = model.bbox_head.prior_generator.grid_priors([s.shape[-2:] for s in scores], device='cpu')
    for i in range(5):
        assert worst(stored(i, scores[i]), expected[f'cls{i}']) < 1e-6
        assert worst(stored(i, deltas[i]), expected[f'box{i}']) < 1e-6
        np.testing.assert_array_equal(anchors[i].numpy()[:90], expected[f'anchors{i}'])
    decoded = model.bbox_head.bbox_coder.decode(
        anchors[3].double(), 0.1 * deltas[3].permute(0, 2, 3, 1).reshape(-1, 4), max_shape=(128, 160)
    )
    assert worst(decoded, expected['decode3']) < 1e-6


@torch.no_grad()
def test_cascade_rcnn(golden, tmp_path):
    name = 'det_cascade_rcnn_ccd_r50'
    model, expected, features = detector(golden, tmp_path, name)
    scores, deltas = model.rpn_head(features)
    assert len(scores) == 5
    for i in range(5):
        assert worst(stored(i, scores[i]), expected[f'rpn_cls{i}']) < 1e-6
        assert worst(stored(i, deltas[i]), expected[f'rpn_box{i}']) < 1e-6
    rois = torch.from_numpy(seeded.seeded_input(f'{name}.roi', (6, 256, 7, 7))).double()
    assert len(model.roi_head.bbox_head) == 3
    for i, head in enumerate(model.roi_head.bbox_head):
        scores, deltas = head(rois)
        background_first = torch.cat([scores[:, -1:], scores[:, :-1]], 1)
        assert worst(background_first, expected[f'roi{i}_cls']) < 1e-6
        assert worst(deltas, expected[f'roi{i}_box']) < 1e-6


# Depths and blocks for which there are no stored numbers: torchvision's network, each attention written out once more,
# on the tensors as the original names them.


def batch_norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return F.batch_norm(x, *(p[f'{name}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')))


def ccd(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return ccd_reference(x, p['pf.scale'].view(-1), p['pf.bias'].view(-1), 64)


def se(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    hidden = F.relu(F.linear(x.mean((2, 3)), p['se.fc.0.weight'], p['se.fc.0.bias']))
    return x * torch.sigmoid(F.linear(hidden, p['se.fc.2.weight'], p['se.fc.2.bias']))[..., None, None]


def timm_se(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return se(
        x, {k.replace('fc1', 'fc.0').replace('fc2', 'fc.2'): v.flatten(1) if v.dim() == 4 else v for k, v in p.items()}
    )


def ge(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def cbam(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    def mlp(v: Tensor) -> Tensor:
        name = 'cbam.ChannelGate.mlp'
        return F.linear(
            F.relu(F.linear(v, p[f'{name}.1.weight'], p[f'{name}.1.bias'])), p[f'{name}.3.weight'], p[f'{name}.3.bias']
        )

    x = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[..., None, None]
    pooled = torch.stack([x.amax(1), x.mean(1)], 1)
    return x * torch.sigmoid(
        batch_norm(
            F.conv2d(pooled, p['cbam.SpatialGate.spatial.conv.weight'], padding=3), p, 'cbam.SpatialGate.spatial.bn'
        )
    )


def gc(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    flat = x.flatten(2)  # (N, C, H * W)
    weight = torch.softmax(
        torch.einsum('c,ncp->np', p['gc.conv_mask.weight'].flatten(), flat) + p['gc.conv_mask.bias'], 1
    )
    context = torch.einsum('ncp,np->nc', flat, weight)
    add = 'gc.channel_add_conv'
    hidden = F.linear(context, p[f'{add}.0.weight'].flatten(1), p[f'{add}.0.bias'])
    norm = F.layer_norm(hidden, hidden.shape[1:], p[f'{add}.1.weight'].flatten(), p[f'{add}.1.bias'].flatten())
    return x + F.linear(F.relu(norm), p[f'{add}.3.weight'].flatten(1), p[f'{add}.3.bias'])[..., None, None]


class SKConvolution(nn.Module):
    """In place of convolution i, with its norm and ReLU."""

    def __init__(self, p: dict[str, Tensor], i: int, stride: int) -> None:
        super().__init__()
        self.p, self.i, self.stride = p, i, stride

    def forward(self, x: Tensor) -> Tensor:
        p, i = self.p, self.i
        a, b = (
            F.relu(
                batch_norm(
                    F.conv2d(x, p[f'conv{i}{kind}.weight'], stride=self.stride, padding=1, groups=groups),
                    p,
                    f'bn{i}{kind}',
                )
            )
            for kind, groups in (('', 1), ('g', 32))
        )
        hidden = F.conv2d((a + b).mean((2, 3), keepdim=True), p['conv_fc1.weight'])
        logit = F.conv2d(F.relu(batch_norm(hidden, p, 'bn_fc1')), p['conv_fc2.weight'])
        channels = a.shape[1]
        share = torch.sigmoid(logit[:, :channels] - logit[:, channels:])  # softmax over two
        return a * share + b * (1 - share)


class Attended(nn.Module):
    """A norm with an attention behind it."""

    def __init__(self, norm: nn.Module, attention, p: dict[str, Tensor]) -> None:
        super().__init__()
        self.norm, self.attention, self.p = norm, attention, p

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(x), self.p)


def attention_shapes(name: str, channels: int, planes: int, basic: bool) -> dict[str, tuple[int, ...]]:
    """Original names and shapes of what a block has beside a plain one's; data/golden has those of ResNet-50."""

    def bn(key: str, n: int) -> dict[str, tuple[int, ...]]:
        return {f'{key}.{k}': (n,) for k in ('weight', 'bias', 'running_mean', 'running_var')} | {
            f'{key}.num_batches_tracked': ()
        }

    hidden = channels // 16
    if name == 'ccd':
        return {'pf.scale': (1, 64, 1), 'pf.bias': (1, 64, 1)}
    if name == 'se':
        return {
            'se.fc.0.weight': (hidden, channels),
            'se.fc.0.bias': (hidden,),
            'se.fc.2.weight': (channels, hidden),
            'se.fc.2.bias': (channels,),
        }
    if name == 'timm_se':
        return {
            'se.fc1.weight': (hidden, channels, 1, 1),
            'se.fc1.bias': (hidden,),
            'se.fc2.weight': (channels, hidden, 1, 1),
            'se.fc2.bias': (channels,),
        }
    if name == 'cbam':
        mlp = 'cbam.ChannelGate.mlp'
        return {
            f'{mlp}.1.weight': (hidden, channels),
            f'{mlp}.1.bias': (hidden,),
            f'{mlp}.3.weight': (channels, hidden),
            f'{mlp}.3.bias': (channels,),
            'cbam.SpatialGate.spatial.conv.weight': (1, 2, 7, 7),
            **bn('cbam.SpatialGate.spatial.bn', 1),
        }
    if name == 'gc':
        add = 'gc.channel_add_conv'
        return {
            'gc.conv_mask.weight': (1, channels, 1, 1),
            'gc.conv_mask.bias': (1,),
            f'{add}.0.weight': (hidden, channels, 1, 1),
            f'{add}.0.bias': (hidden,),
            f'{add}.1.weight': (hidden, 1, 1),
            f'{add}.1.bias': (hidden, 1, 1),
            f'{add}.3.weight': (channels, hidden, 1, 1),
            f'{add}.3.bias': (channels,),
        }
    if name == 'sk':
        i = 1 if basic else 2
        return {
            f'conv{i}g.weight': (planes, -1, 3, 3),
            **bn(f'bn{i}g', planes),
            'conv_fc1.weight': (planes // 16, planes, 1, 1),
            **bn('bn_fc1', planes // 16),
            'conv_fc2.weight': (2 * planes, planes // 16, 1, 1),
        }
    return {}


HAND = dict(ccd=ccd, se=se, timm_se=timm_se, ge=ge, cbam=cbam, gc=gc)


def original(name: str | None, depth: int) -> tuple[dict[str, Tensor], nn.Module]:
    """(seeded state with the original names, a network that computes with it)."""
    with torch.device('meta'):
        net = getattr(torchvision.models, f'resnet{depth}')()
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    blocks = {f'layer{i}.{j}': block for i in range(1, 5) for j, block in enumerate(getattr(net, f'layer{i}'))}
    for prefix, block in blocks.items():
        basic = not hasattr(block, 'conv3')
        channels = (block.conv2 if basic else block.conv3).out_channels
        for k, shape in attention_shapes(name, channels, block.conv2.out_channels, basic).items():
            inputs = (block.conv1 if basic else block.conv2).in_channels // 32
            shapes[f'{prefix}.{k}'] = tuple(inputs if n == -1 else n for n in shape)
    state = authors_state(shapes)
    net.load_state_dict({k: v for k, v in state.items() if k in net.state_dict()}, strict=True, assign=True)
    for prefix, block in blocks.items():
        p = {k[len(prefix) + 1 :]: v.double() for k, v in state.items() if k.startswith(f'{prefix}.')}
        last = 'bn3' if hasattr(block, 'conv3') else 'bn2'
        if name == 'sk':
            i = 2 if hasattr(block, 'conv3') else 1
            setattr(block, f'conv{i}', SKConvolution(p, i, block.stride))
            setattr(block, f'bn{i}', nn.Identity())  # and ReLU does nothing to what is not negative
        elif name:
            setattr(block, last, Attended(getattr(block, last), HAND[name], p))
    return state, net.double().eval()


CASES = [(name, 18) for name in (None, 'ccd', 'se', 'ge', 'cbam', 'gc', 'sk')]
CASES += [('ccd', 34), ('sk', 34), ('timm_se', 50), ('ge', 50), ('ccd', 101), ('se', 101), ('ccd', 152)]


@pytest.mark.parametrize(
    'name, depth', [pytest.param(n, d, id=f'{n}-{d}', marks=pytest.mark.long if d > 18 else ()) for n, d in CASES]
)
@torch.no_grad()
def test_other_depths(tmp_path, name, depth):
    state, net = original(name, depth)
    arch = f'{name}_r{depth}'.replace('None_', '').replace('timm_', '')
    model = convert_and_build(write_classifier(tmp_path / 'x.pth.tar', state, arch), arch)
    x = torch.from_numpy(seeded.seeded_input(f'{name}{depth}', (1, 3, 64, 64))).double()
    assert worst(model(x), net(x)) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize('name', ['ccd', 'se', 'cbam', 'gc', 'sk'])
def test_original_names_as_in_golden(golden, name):
    """The names that the networks above are made of are the original's."""
    shapes = json.loads((golden / f'{name}_resnet50.json').read_text())['shapes']
    state, _ = original(name, 50)
    assert {k: tuple(v.shape) for k, v in state.items()} == {k: tuple(v) for k, v in shapes.items()}
