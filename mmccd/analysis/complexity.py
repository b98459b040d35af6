"""Parameters, operations and activations of a model, counted on the meta device, without data or weights.

Three conventions, since "FLOPs" means different things in different papers:

* ``published``: the one behind the paper's Table 1. By module: a convolution counts its multiply-accumulates and its
  bias, a linear layer its multiply-accumulates, BatchNorm two for each input element, ReLU one for each output element,
  every pooling one for each input element; functions that are not modules count nothing, CCD's arithmetic included.
* ``mac``: multiply-accumulates of convolutions and linear layers, and every elementary operation of the attentions.
* ``mmengine``: what ``mmengine.analysis`` counts, operator by operator on a traced model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmccd import models
from mmccd.models.build import build_model
from mmccd.models.layers import AttentionLayer

CONVENTIONS = ('published', 'mac', 'mmengine')
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass
class Complexity:
    """Counts for one image.

    Attributes:
        params (int): Elements of the parameters.
        flops (int): Operations in the chosen convention.
        activations (int): Outputs of convolutions and linear layers.
        attention_params (int): Those of ``params`` in attention layers.
        attention_ops (int): All elementary operations of the attention layers, in any convention.
    """

    params: int = 0
    flops: int = 0
    activations: int = 0
    attention_params: int = 0
    attention_ops: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def build_on_meta(cfg: Config) -> nn.Module:
    """Model of a config without memory for its weights, and without fused layers: every ReLU counts as a module."""
    model = build_model(cfg).eval()
    for block in model.modules():
        if getattr(block, 'fused', None) is not None:
            block.fused = None
    return model


def _macs(module: nn.Module, out: Tensor) -> int:
    if isinstance(module, _CONVOLUTIONS):
        return out.numel() * module.weight[0].numel()
    return out.numel() * module.in_features


def _published(module: nn.Module, x: Tensor, out: Tensor) -> int:
    if isinstance(module, _CONVOLUTIONS):
        return _macs(module, out) + (out.numel() if module.bias is not None else 0)
    if isinstance(module, nn.Linear):
        return _macs(module, out)
    if isinstance(module, _BatchNorm):
        return 2 * x.numel()
    if isinstance(module, nn.ReLU):
        return out.numel()
    if isinstance(module, _POOLINGS):
        return x.numel()
    return 0


def _published_correction(layer: nn.Module, x: Tensor, out: Tensor) -> int:
    """Difference where a layer consists of other modules here than in the implementation counted for the paper."""
    if isinstance(layer, models.SE):  # its convolutions were linear layers, whose bias does not count
        return -layer.conv1.conv.out_channels - layer.conv2.conv.out_channels
    if isinstance(layer, models.GE) and layer.gather is None:  # a function here
        return x.numel()
    if isinstance(layer, models.CBAM):  # average and maximum over space
        return 2 * x.numel()
    if isinstance(layer, models.SK):  # a pooling for each branch; the hidden layer's ReLU was a function
        return 2 * out.numel() - layer.fc1.conv.out_channels
    return 0


def _elementary(layer: nn.Module, x: Tensor, out: Tensor) -> int:
    """Operations of an attention layer outside its convolutions, linear layers, norms and ReLUs; sigmoid counts one."""
    positions = x.shape[-2] * x.shape[-1]
    if isinstance(layer, models.CCD):
        # An element: one addition a pooling, one multiply-accumulate, one product with the gate.
        per_element = len(layer.scales) + 2 + (2 if layer.similarity == 'cosine' else 0)
        # A position of a group: normalisation (mean, square and sum, subtract, divide), scale and bias, sigmoid.
        per_position = {'zscore': 5, 'minmax': 4, None: 0}[layer.normalize] + 3
        return per_element * x.numel() + per_position * layer.groups * positions
    channels = x.shape[1]
    if isinstance(layer, (models.SE, models.ECA)):
        return 2 * x.numel() + channels  # pooling, product, sigmoid
    if isinstance(layer, models.GE):
        pooled = 0 if layer.gather is not None else x.numel()
        return pooled + x.numel() + (channels if layer.extent == 0 else x.numel())
    if isinstance(layer, models.CBAM):
        return 6 * x.numel() + channels + positions  # four poolings, two products, sigmoids
    if isinstance(layer, models.GC):
        return 2 * x.numel() + 3 * positions  # weighted sum, addition, softmax
    if isinstance(layer, models.SK):
        return 5 * out.numel() + 3 * 2 * out.shape[1]  # two poolings, two products and a sum, softmax
    return _elementary_of_many(layer, x)


def _elementary_of_many(layer: nn.Module, x: Tensor) -> int:
    """As :func:`_elementary`, of layers that gate every element; a normalisation over space counts five."""
    h, w = x.shape[-2:]
    n, channels, positions = x.numel(), x.shape[1], h * w
    if isinstance(layer, models.SimAM):
        return 8 * n  # mean, subtract, square, sum, divide, add, sigmoid, product
    if isinstance(layer, models.CoordAttention):
        # Two poolings, two products; h-swish in the hidden layer, sigmoids.
        return 4 * n + (layer.conv1.out_channels + channels) * (h + w)
    if isinstance(layer, models.EMAttention):
        # Strips, two products, norm with scale and shift, two means, two weighted sums, product; sigmoids and softmax.
        rest = channels * (h + w) + 2 * 3 * channels + 2 * layer.groups * positions
        return (2 + 2 + 7 + 2 + 2 + 1) * n + rest
    if isinstance(layer, models.TripletAttention):
        return (6 + 2 + 1 + 1) * n + channels * (h + w) + positions  # six poolings, mean of three, product; sigmoids
    if isinstance(layer, models.BAM):
        return 5 * n  # pooling, sum of the branches, sigmoid, add one, product
    if isinstance(layer, models.ShuffleAttention):
        # One half: pooling, product; the other: norm, scale and shift twice, sigmoid, product.
        return (2 + 5 + 4 + 1 + 1) * n // 2 + 3 * channels // 2
    if isinstance(layer, models.NAM):
        return 3 * n + 2 * channels  # share, sigmoid, product; the shares
    if isinstance(layer, models.LSK):
        selected = channels // 2 * positions
        return 2 * 2 * selected + 2 * positions + 3 * selected + n  # two poolings, sigmoids, selection, product
    if isinstance(layer, models.FCA):
        return 2 * n + channels * layer.grid**2 + channels  # pooling, product; transform, sigmoid
    return 0


def _module_ops(module: nn.Module, x: Tensor, out: Tensor) -> int:
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
        return _macs(module, out) + (out.numel() if module.bias is not None else 0)
    if isinstance(module, _BatchNorm):
        return 2 * x.numel()
    return out.numel() if isinstance(module, nn.ReLU) else 0


def run_once(model: nn.Module, x: Tensor) -> Any:
    """One image (1, 3, H, W) through backbone, neck and heads, without post-processing.

    Heads on RoIs get as many as are kept at test time.
    """
    with torch.no_grad():
        if not hasattr(model, 'bbox_head') and not hasattr(model, 'roi_head'):
            return model(x, mode='tensor')
        features = model.extract_feat(x)
        if not hasattr(model, 'roi_head'):
            return model.bbox_head(features)
        outputs = [model.rpn_head(features)]
        extractor = model.roi_head.bbox_roi_extractor
        heads = model.roi_head.bbox_head
        for i, head in enumerate(heads if isinstance(heads, nn.ModuleList) else [heads]):
            e = extractor[i] if isinstance(extractor, nn.ModuleList) else extractor
            rois = x.new_zeros(model.test_cfg.rpn.max_per_img, e.out_channels, *e.roi_layers[0].output_size)
            outputs.append(head(rois))
        return outputs


def measure(model: nn.Module, shape: tuple[int, int], convention: str = 'published') -> Complexity:
    """Count a model that :func:`build_on_meta` built.

    Args:
        model (nn.Module): A classifier of mmpretrain or a detector of mmdet, on the meta device; ``'mmengine'`` moves
            it to the CPU.
        shape (tuple[int, int]): Height and width of the image in pixels.
        convention (str): ``'published'``, ``'mac'`` or ``'mmengine'``, see above. Default: ``'published'``.

    Raises:
        ValueError: For another convention.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f'convention must be one of {CONVENTIONS}, got {convention!r}')
    inside = {m for layer in model.modules() if isinstance(layer, AttentionLayer) for m in layer.modules()}
    total = Complexity(params=sum(p.numel() for p in model.parameters()))
    total.attention_params = sum(
        p.numel() for layer in model.modules() if isinstance(layer, AttentionLayer) for p in layer.parameters()
    )

    def count(module: nn.Module, inputs: tuple, out: Tensor) -> None:
        x = inputs[0]
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            total.activations += out.numel()
            total.flops += _macs(module, out) if convention == 'mac' else 0
        if module in inside:
            ops = _module_ops(module, x, out) + _elementary(module, x, out)
            total.attention_ops += ops
            if convention == 'mac':  # the products are counted already
                total.flops += ops - (_macs(module, out) if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) else 0)
        if convention == 'published':
            total.flops += _published(module, x, out) + _published_correction(module, x, out)

    counted = [m for m in model.modules() if isinstance(m, AttentionLayer) or not list(m.children())]
    hooks = [m.register_forward_hook(count) for m in counted]
    try:
        run_once(model, torch.empty(1, 3, *shape, device='meta'))
    finally:
        for hook in hooks:
            hook.remove()
    if convention == 'mmengine':  # traces, which the meta device does not allow
        analyzer = FlopAnalyzer(_Traced(model.to_empty(device='cpu')), torch.zeros(1, 3, *shape))
        analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total.flops = int(analyzer.total())
    return total


class _Traced(nn.Module):
    """A call with a single tensor, as mmengine's analyzer traces it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return run_once(self.model, x)
