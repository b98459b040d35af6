"""What is explained: the classes of a classifier, or detections followed back to the raw scores that they came from.

A detection's raw score is that of the anchor or point of a dense head, or of the region in all stages of a two-stage
detector. The detections are computed once, as always, with the heads' outputs as leaves of the graph; their gradient
leads through thresholds and NMS to that place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .models import as_list, box_heads
from .results import Finding

# Findings, the highest score of all, and the function from the input to the raw scores.
Targets = tuple[list[Finding], float, Callable[[Tensor], Any]]


def class_targets(
    model: nn.Module, inputs: Tensor, samples: list, categories: Collection[int] | None, topk: int | None
) -> Targets:
    """Classes of a classifier; its raw scores are (1, classes)."""
    with torch.no_grad():
        scores = model(inputs, samples, mode='predict')[0].pred_score
    best = int(scores.argmax())
    findings = [Finding(i, float(scores[i]), None, lambda raw, i=i: raw[0, i]) for i in categories or [best]]
    return sorted(findings, key=lambda f: -f.score)[:topk], float(scores[best]), lambda x: model(x, mode='tensor')


@dataclass(frozen=True)
class Place:
    """Raw score of a place of a dense head's output: (level, channel, y, x)."""

    index: tuple[int, int, int, int]

    def __call__(self, raw: Sequence[Tensor]) -> Tensor:
        level, *place = self.index
        return raw[level][(0, *place)]


@dataclass(frozen=True)
class Region:
    """Raw score of a region, from the maps: mean over the stages, each with its own box (1, 5)."""

    roi_head: nn.Module
    rois: list[Tensor]
    label: int

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        scores = []
        for extractor, head, roi in zip(
            as_list(self.roi_head.bbox_roi_extractor), as_list(self.roi_head.bbox_head), self.rois
        ):
            x = extractor(maps[: extractor.num_inputs], roi)
            if self.roi_head.with_shared_head:
                x = self.roi_head.shared_head(x)
            scores.append(head(x)[0][0, self.label])
        return sum(scores) / len(scores)


def detection_targets(
    model: nn.Module,
    inputs: Tensor,
    samples: list,
    categories: Collection[int] | None,
    topk: int | None,
    score_thr: float,
) -> Targets:
    """Detections with the places that they came from."""
    heads = as_list(box_heads(model))
    outputs, rois, latest = {}, {}, []

    def cut(i: int, output: tuple) -> tuple:
        outputs[i] = _leaves(output)
        rois[i] = latest[-1] if latest else None
        return outputs[i]

    hooks = [h.register_forward_hook(lambda m, args, out, i=i: cut(i, out)) for i, h in enumerate(heads)]
    if hasattr(model, 'roi_head'):
        hooks += [
            e.register_forward_pre_hook(lambda m, args: latest.append(args[1].detach()))
            for e in as_list(model.roi_head.bbox_roi_extractor)
        ]
    try:
        with torch.enable_grad(), _NoDetach():
            found = model(inputs, samples, mode='predict')[0].pred_instances
    finally:
        for hook in hooks:
            hook.remove()

    findings = []
    scores, labels, boxes = (t.detach().cpu().numpy() for t in (found.scores, found.labels, found.bboxes))
    chosen = (scores >= score_thr) & (True if categories is None else np.isin(labels, list(categories)))
    weights = found.bboxes.new_tensor([1, 2, 4, 8])  # not to cancel each other
    for i in [i for i in np.argsort(-scores, kind='stable') if chosen[i]][:topk]:
        # The box as well: the gradient of a score of exactly 1 is 0, as is that of a box as large as the image.
        value = found.scores[i] + (weights * found.bboxes[i]).sum()
        label = int(labels[i])
        if hasattr(model, 'roi_head'):
            row = _row(value, list(outputs.values()))
            target = Region(model.roi_head, [r[row : row + 1] for r in rois.values()], label)
        else:
            target = Place(_place(value, heads[0], outputs[0], label))
        findings.append(Finding(label, float(scores[i]), boxes[i], target))
    run = model.extract_feat if hasattr(model, 'roi_head') else lambda x: model.bbox_head(model.extract_feat(x))[0]
    return findings, float(scores.max(initial=0)), run


class _NoDetach(TorchFunctionMode):
    """Lets gradients pass where MMDetection's dense heads call ``detach`` before they decode."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if func is Tensor.detach else func(*args, **(kwargs or {}))


def _leaves(output: Any) -> Any:
    """The same tensors, in the same tuples and lists, as leaves of a graph."""
    if isinstance(output, (tuple, list)):
        return type(output)(map(_leaves, output))
    return output.data.requires_grad_() if isinstance(output, Tensor) else output


def _first_nonzero(value: Tensor, leaves: list[Tensor]) -> tuple[int, list[int]]:
    """(Index of the leaf, index in it) of a number that ``value`` depends on."""
    grads = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True) if value.requires_grad else ()
    for i, grad in enumerate(grads):
        if grad is not None and grad.any():
            return i, grad.nonzero()[0].tolist()
    raise ValueError('a detection does not depend on the outputs of the head in a way that can be followed back')


def _row(value: Tensor, stages: list[tuple[Tensor, Tensor | None]]) -> int:
    """Index of the region that a detection came from."""
    return _first_nonzero(value, [t for stage in stages for t in stage if isinstance(t, Tensor)])[1][0]


def _place(value: Tensor, head: nn.Module, output: Any, label: int) -> tuple[int, int, int, int]:
    """Where the raw score of a detection is in a dense head's output: (level, channel, y, x)."""
    scores, boxes = output[:2] if isinstance(output, tuple) and len(output) > 1 else (None, None)
    classes = getattr(head, 'cls_out_channels', None)
    if not classes or not all(
        isinstance(maps, (tuple, list))
        and len(maps) == len(scores)
        and all(m.ndim == 4 and m.shape[1] % n == 0 for m in maps)
        for maps, n in ((scores, classes), (boxes, 4))
    ):
        raise ValueError(
            f'{type(head).__name__} has no maps of scores and boxes: its detections cannot be followed back to a place'
        )
    i, (_, channel, y, x) = _first_nonzero(value, [*scores, *boxes])
    level = i % len(scores)
    anchors = scores[level].shape[1] // classes
    anchor = channel * anchors // [*scores, *boxes][i].shape[1]
    return level, anchor * classes + label, y, x
