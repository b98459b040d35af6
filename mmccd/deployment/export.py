"""Export to ONNX, opset 17, by PyTorch's exporter that traces (``dynamo=False``).

That one keeps height and width free through the arithmetic on sizes of the anchors, the poolings and the padding, and
needs no package beside onnx.
"""

from __future__ import annotations

import contextlib
import io
import json
import os.path as osp
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from mmccd.configs import datasets_of
from mmccd.data.classes import is_a
from mmccd.version import __version__

from .build import KINDS, build_network
from .networks import Network
from .parity import SHAPES

# Read by onnxruntime from 1.12 on.
OPSET = 17
# Key of the file's metadata for tools/deployment/infer_onnx.py, as JSON.
METADATA = 'mmccd'
# Transforms that leave the image alone.
_NOT_OF_IMAGES = ('LoadImageFromFile', 'LoadAnnotations', 'PackInputs', 'PackDetInputs')


def check_packages(*more: str) -> None:
    """Raise ImportError, with the command that fixes it, if onnx, onnxruntime or one of ``more`` is missing."""
    missing = []
    for name in ('onnx', 'onnxruntime', *more):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(f'the export needs {" and ".join(missing)}: pip install {" ".join(missing)}')


def export_onnx(model: nn.Module, kind: str = 'end2end', shape: tuple[int, int] | None = None) -> tuple[Network, bytes]:
    """Export a model of ``mmccd.init_model``.

    The input ``image`` is (N, 3, H, W), RGB, float32 from 0 to 255: normalisation and padding are in the graph. The
    outputs are those of the network that is returned (:mod:`mmccd.deployment.networks`). With ``kind='end2end'``
    detectors take one image at a time.

    Args:
        model (nn.Module): Classifier or detector on the CPU, with ``cfg`` and ``dataset_meta``.
        kind (str): ``'end2end'``: logits and scores of classifiers, boxes of detectors after their NMS. ``'raw'``:
            outputs of the heads. Default: ``'end2end'``.
        shape (tuple[int, int] | None): Height and width of the images, and one image at a time. Default: None,
            any size and number.

    Returns:
        tuple[Network, bytes]: What was exported, and the ONNX file. onnx.checker has seen it.

    Raises:
        ValueError: If the model is not supported, or cannot take this size.
        RuntimeError: If PyTorch's exporter fails.
        ImportError: Without onnx.
    """
    import onnx

    if shape is not None and min(shape) < 1:
        raise ValueError(f'shape must be at least 1 1, got {shape[0]} {shape[1]}')
    network = build_network(model, kind).eval()
    image = torch.zeros(1, 3, *(shape or SHAPES[0]))
    image[..., ::2, ::3] = 255
    axes = {}
    if shape is None:
        axes = {'image': {2: 'height', 3: 'width'}, **network.outputs}
        if network.batched:
            axes['image'][0] = 'n'
    elif not network.batched:
        axes = network.outputs
    content = io.BytesIO()
    with torch.no_grad(), _quiet(), _nearest_by_index():
        network(image)  # errors of the model itself are raised here
        try:
            torch.onnx.export(
                network,
                (image,),
                content,
                input_names=['image'],
                output_names=list(network.outputs),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as e:  # its own errors, and many others
            raise RuntimeError(
                f'the exporter of PyTorch {torch.__version__} cannot take this model: '
                f'{str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__}'
            ) from e
    graph = onnx.load_from_string(content.getvalue())
    onnx.helper.set_model_props(graph, {METADATA: json.dumps(_metadata(model, network, kind, shape))})
    onnx.checker.check_model(graph, full_check=True)
    return network, graph.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings, which name every check of a shape, and the one about dynamo=False."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@contextlib.contextmanager
def _nearest_by_index() -> Iterator[None]:
    """Nearest upsampling as a choice of rows and columns: ONNX's Resize reads other ones at the borders of some sizes.

    Rows are PyTorch's, floor(i * (in / out)) in float32.
    """

    def rows(size: int | Tensor, out: int | Tensor) -> Tensor:
        ratio = torch.as_tensor(size).float() / torch.as_tensor(out).float()
        return (torch.arange(out).float() * ratio).floor().long().clamp_max(size - 1)

    def interpolate(input: Tensor, size=None, scale_factor=None, mode: str = 'nearest', **kwargs: Any) -> Tensor:
        if mode != 'nearest' or size is None or isinstance(size, int) or input.dim() != 4:
            return original(input, size, scale_factor, mode, **kwargs)
        height, width = size
        return input.index_select(2, rows(input.shape[2], height)).index_select(3, rows(input.shape[3], width))

    original = F.interpolate
    F.interpolate = interpolate
    try:
        yield
    finally:
        F.interpolate = original


def _metadata(model: nn.Module, network: Network, kind: str, shape: tuple[int, int] | None) -> dict[str, Any]:
    prepare = network.prepare
    return dict(
        version=__version__,
        config=osp.splitext(osp.basename(model.cfg.filename or ''))[0],
        task='classification' if is_a(type(model), 'ImageClassifier') else 'detection',
        kind=kind,
        classes=list(model.dataset_meta.get('classes') or ()),
        shape=shape,
        resize=resize_steps(model.cfg),
        # For readers: both are in the graph, for channels in this order.
        mean=prepare.mean.flatten().tolist() if prepare.normalizes else None,
        std=prepare.std.flatten().tolist() if prepare.normalizes else None,
        channels='rgb' if prepare.takes_rgb else 'bgr',
        fill=prepare.fill(),
    )


def resize_steps(cfg: Config) -> list[dict[str, Any]]:
    """How the config's test pipeline resizes an image, step by step; sizes are (width, height).

    ``resize`` to ``size``, or, with ``keep_ratio``, as large as fits into it, either way round; ``scale`` does the same
    with the image's own size times ``factor``; ``edge`` resizes the edge of that name to ``size``; ``crop`` cuts
    ``size`` from the middle; ``unknown`` is any other transform, which infer_onnx.py refuses.
    """
    pipeline = next((d.pipeline for _, d in datasets_of(cfg.get('test_dataloader') or {}, '') if d.get('pipeline')), ())
    return [_step(t) for t in pipeline if t['type'].rsplit('.', 1)[-1] not in _NOT_OF_IMAGES]


def _step(transform: Mapping) -> dict[str, Any]:
    known = {k: v for k, v in transform.items() if k != 'type'}
    name = transform['type'].rsplit('.', 1)[-1]
    if name == 'Resize' and set(known) <= {'scale', 'scale_factor', 'keep_ratio'}:
        keep_ratio = known.get('keep_ratio', False)
        if known.get('scale') is not None:  # has priority over scale_factor
            return dict(step='resize', size=_pair(known['scale']), keep_ratio=keep_ratio)
        if known.get('scale_factor') is not None:
            return dict(step='scale', factor=_pair(known['scale_factor']), keep_ratio=keep_ratio)
    if name == 'ResizeEdge' and {'scale'} <= set(known) <= {'scale', 'edge'}:
        return dict(step='edge', size=known['scale'], edge=known.get('edge', 'short'))
    if name == 'CenterCrop' and set(known) == {'crop_size'}:
        return dict(step='crop', size=_pair(known['crop_size']))
    return dict(step='unknown', transform=json.loads(json.dumps(dict(known, type=name), default=repr)))


def _pair(size: float | Sequence[float]) -> list[float]:
    return [size, size] if isinstance(size, (int, float)) else list(size)


__all__ = ['KINDS', 'METADATA', 'OPSET', 'check_packages', 'export_onnx', 'resize_steps']
