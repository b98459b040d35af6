"""Class activation maps: which parts of an image speak for a class, or for one detection.

The maps are pytorch-grad-cam's (https://github.com/jacobgil/pytorch-grad-cam): Grad-CAM (ICCV 2017,
https://arxiv.org/abs/1610.02391), Grad-CAM++ (WACV 2018, https://arxiv.org/abs/1710.11063), HiResCAM
(https://arxiv.org/abs/2011.08891) and Eigen-CAM (IJCNN 2020, https://arxiv.org/abs/2008.00299).

Grad-CAM and Grad-CAM++ weight whole channels: of a detection, they show all places that look like what speaks for it,
other objects as well. HiResCAM multiplies the gradient with the map place by place, and shows those that really have a
part in this score; it is the default for detectors. Before a global average pooling, as in a ResNet, Grad-CAM and
HiResCAM of the last stage are the same. Eigen-CAM knows no class and no detection: one map an image.

What is explained is a raw class score, before sigmoid or softmax. A detection's is that of the very place which it came
from, of an anchor or point of a dense head, or of a region in all stages of a two-stage detector: the detections are
computed once, as always, with the heads' outputs as leaves of the graph, and their gradient leads through thresholds
and NMS to the place. The map is then the gradient of that one score; thresholds, NMS and proposals have no part in it.

Several layers: each map is scaled to the image and to 0..1, then they are averaged, and the mean is scaled again. A
level of an FPN that a detection does not depend on adds nothing.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmccd.analysis.attention_maps.gates import rgb_pixels
from mmccd.data.classes import nearest
from mmccd.errors import UserError

METHODS = {'gradcam': 'GradCAM', 'gradcam++': 'GradCAMPlusPlus', 'hirescam': 'HiResCAM', 'eigencam': 'EigenCAM'}
_FLIPS = {'horizontal': (1,), 'vertical': (0,), 'diagonal': (0, 1)}  # axes of an image


@dataclass(frozen=True)
class Finding:
    """A class that a classifier sees in an image, or a detection.

    Attributes:
        label (int): Index of the class.
        score (float): After sigmoid or softmax.
        box (np.ndarray | None): x1, y1, x2, y2 in pixels of the image that is shown; None for a classifier.
        target (Callable): From the network's raw outputs to the raw score behind ``score``, a tensor without
            dimensions.
    """

    label: int
    score: float
    box: np.ndarray | None
    target: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Cam:
    """A map and what it explains.

    Attributes:
        values (np.ndarray): float32, 0 to 1, (H, W) of the image that is shown.
        findings (list[Finding]): One; with Eigen-CAM, which knows no target, all.
    """

    values: np.ndarray
    findings: list[Finding]


@dataclass(frozen=True)
class Explanation:
    """Maps of an image.

    Attributes:
        pixels (np.ndarray): RGB, uint8, (H, W, 3): the image itself; where the pipeline cuts something off, what
            it leaves.
        method (str): One of :data:`METHODS`.
        layers (list[str]): Names of the layers that the maps are made of.
        cams (list[Cam]): The highest score first; empty if a detector found nothing.
        best (float): The highest score of all, also where that is below the threshold; 0 if there is none.
    """

    pixels: np.ndarray
    method: str
    layers: list[str]
    cams: list[Cam]
    best: float

    def arrays(self) -> dict[str, np.ndarray]:
        """For ``np.savez``: ``image``; ``maps`` (M, H, W); ``labels``, ``scores`` and, of detections, ``boxes``."""
        findings = [f for cam in self.cams for f in cam.findings]
        arrays = dict(
            image=self.pixels,
            maps=np.stack([cam.values for cam in self.cams]),
            labels=np.array([f.label for f in findings]),
            scores=np.array([f.score for f in findings], np.float32),
        )
        if findings[0].box is not None:
            arrays['boxes'] = np.stack([f.box for f in findings])
        return arrays


def is_detector(model: nn.Module) -> bool:
    return hasattr(model, 'bbox_head') or hasattr(model, 'roi_head')


def num_classes(model: nn.Module) -> int:
    """Classes that the model's head tells apart, without background."""
    return (_as_list(_box_heads(model))[-1] if is_detector(model) else model.head).num_classes


def class_index(text: str, names: Sequence[str]) -> int:
    """Index of the class that ``text`` names: one of ``names``, or of the synonyms in one (ImageNet's have commas),
    else an index itself.

    Raises:
        ValueError: If there is none, or several.
    """
    found = [i for i, name in enumerate(names) if text == name]
    found = found or [i for i, name in enumerate(names) if text in name.split(', ')]
    if len(found) > 1:
        raise ValueError(f'class {text!r} is the name of several: take one of the indices {", ".join(map(str, found))}')
    if not found and text.isdecimal() and int(text) < len(names):
        return int(text)
    if not found:
        raise ValueError(
            f'class {text!r} does not exist{nearest(text, names)}: it must be a name, or an index from 0 '
            f'to {len(names) - 1}'
        )
    return found[0]


def check_layers(model: nn.Module, names: Collection[str]) -> None:
    """Raise ValueError for a name that no module of the model has, with the nearest ones."""
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in names:
        if name not in known:
            close = [n for n in known if n.endswith(f'.{name}')] or difflib.get_close_matches(name, known, cutoff=0.4)
            hint = f'; nearest: {", ".join(close[:3])}' if close else ''
            raise ValueError(f'layer {name!r} does not exist in the model{hint}')
        if name.startswith('roi_head.'):
            raise ValueError(
                f'layer {name!r} sees regions cut out of the maps, not the image: choose one of the '
                'backbone or the neck'
            )


def explain(
    model: nn.Module,
    batch: dict[str, Any],
    method: str | None = None,
    layers: Sequence[str] | None = None,
    categories: Collection[int] | None = None,
    topk: int | None = None,
    score_thr: float = 0.3,
) -> Explanation:
    """Compute the maps of an image.

    Args:
        model (nn.Module): A classifier of MMPretrain or a detector of MMDetection, in evaluation mode. Detectors: a
            dense head with one output per place and class (RetinaNet and its like), or a two-stage one (Faster and
            Cascade R-CNN).
        batch (dict): One image, what ``model.data_preprocessor`` takes
            (:func:`mmccd.analysis.prepare_image`).
        method (str | None): One of :data:`METHODS`. Default: None, 'gradcam' for a classifier, 'hirescam' for a
            detector.
        layers (Sequence[str] | None): Names of modules whose output is a map (1, C, H, W). A module that runs once per
            level counts as one layer for each. Default: None, the outputs of the neck of a detector, the last output
            of the backbone of a classifier.
        categories (Collection[int] | None): A classifier: classes to explain. A detector: classes whose detections
            are explained. Default: None, the predicted class, or all.
        topk (int | None): At most so many, the highest scores first. Default: None, one for a classifier without
            ``categories``, else all.
        score_thr (float): Detections have at least this score. Default: 0.3.

    Raises:
        UserError: If pytorch-grad-cam is not installed.
        ValueError: If a layer does not exist or gives no map, or the detections of this model cannot be followed.
    """
    method = method or ('hirescam' if is_detector(model) else 'gradcam')
    cam_class = load_cam_class(method)
    sample = batch['data_samples'][0]
    pixels = rgb_pixels(batch['inputs'][0])
    model.eval()
    with _for_inputs_alone(model):
        data = model.data_preprocessor(batch, False)
        inputs = data['inputs']
        view = _View(sample.metainfo, pixels)
        if is_detector(model):
            findings, best, run = _detections(model, inputs, data['data_samples'], categories, topk, score_thr)
            findings = [view.place(f) for f in findings]
        else:
            findings, best, run = _classes(model, inputs, data['data_samples'], categories, topk)
        names = list(dict.fromkeys(layers or default_layers(model, inputs)))
        check_layers(model, names)
        network = _Network(model, run, names, view.visible)
        groups = [findings] if method == 'eigencam' and findings else [[f] for f in findings]
        maps = _compute(cam_class, network, inputs, [group[0] for group in groups])
        cams = [Cam(view.show(values), group) for values, group in zip(maps, groups)]
    return Explanation(view.pixels, method, names, cams, best)


def load_cam_class(method: str) -> type:
    """The class of pytorch-grad-cam behind a method, made to look at the visible part of a :class:`_Network`'s input.

    Raises:
        UserError: If the package is not installed.
    """
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.image import scale_cam_image
    except ImportError as e:
        raise UserError(
            f'class activation maps need pytorch-grad-cam, which cannot be imported ({e}): pip install grad-cam'
        ) from e

    class VisibleCam(getattr(pytorch_grad_cam, METHODS[method])):
        def compute_cam_per_layer(self, *args) -> list[np.ndarray]:
            self.target_layers = self.model.ran  # hooked once, they may have run several times
            # They run once for all targets; the gradients' hooks are on that run's tensors.
            recorded = self.activations_and_grads
            self.model.activations = recorded.activations = recorded.activations or self.model.activations
            h, w = self.model.visible
            # Scaled again without the padding, which otherwise may hold the extremes.
            return [scale_cam_image(cam[:, 0, :h, :w])[:, None] for cam in super().compute_cam_per_layer(*args)]

    if method != 'eigencam':
        return VisibleCam

    class VisibleEigenCam(VisibleCam):
        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth) -> np.ndarray:
            return np.stack([first_component(a) for a in activations])

    return VisibleEigenCam


def first_component(activations: np.ndarray) -> np.ndarray:
    """Projection of a map (C, H, W) on its first principal component, (H, W); its larger side is the positive one.

    As pytorch-grad-cam's, which would need a matrix of all places times all places, and whose sign is arbitrary.
    """
    channels = activations.reshape(len(activations), -1).astype(np.float64)
    channels = channels - channels.mean(1, keepdims=True)
    component = np.linalg.eigh(channels @ channels.T)[1][:, -1]
    projected = component @ channels
    if -projected.min() > projected.max():
        projected = -projected
    return projected.reshape(activations.shape[1:]).astype(np.float32)


class _Network(nn.Module):
    """From an image to the raw scores, as pytorch-grad-cam wants it: one output an image, layers to be hooked.

    It runs once, whatever image it is given then: what differs from one finding to the next comes behind it. The
    graph begins at the layers.

    Args:
        run (Callable): From the input to raw scores.
        names (list[str]): Layers to look at.
        visible (tuple[int, int]): Height and width of the input without its padding.
    """

    def __init__(
        self, model: nn.Module, run: Callable[[Tensor], Any], names: list[str], visible: tuple[int, int]
    ) -> None:
        super().__init__()
        self.model, self.run, self.visible = model, run, visible
        self.layers = {model.get_submodule(name): name for name in names}
        self.ran: list[nn.Module] = []  # and what came out, call by call
        self.maps: list[Tensor] = []
        self.outputs: list[tuple[Any, list[Tensor]]] = []
        self.activations: list[Tensor] = []

    def forward(self, x: Tensor) -> list[tuple[Any, list[Tensor]]]:
        if not self.outputs:
            # Before pytorch-grad-cam's hooks, which take maps with a gradient alone.
            hooks = [layer.register_forward_hook(self._record, prepend=True) for layer in self.layers]
            try:
                self.outputs = [(self.run(x), self.maps)]
            finally:
                for hook in hooks:
                    hook.remove()
            for layer, name in self.layers.items():
                if layer not in self.ran:
                    raise ValueError(f'layer {name!r} ({type(layer).__name__}) has no part in the scores')
        return self.outputs

    def _record(self, layer: nn.Module, args: tuple, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            what = f'a tensor {tuple(output.shape)}' if isinstance(output, Tensor) else f'a {type(output).__name__}'
            raise ValueError(f'layer {self.layers[layer]!r} ({type(layer).__name__}) gives {what}, no map (N, C, H, W)')
        if not output.requires_grad:
            output = output.detach().requires_grad_(torch.is_grad_enabled()).clone()  # may be written into
        self.ran.append(layer)
        self.maps.append(output)
        return output


def _compute(cam_class: type, network: _Network, inputs: Tensor, findings: Sequence[Finding]) -> list[np.ndarray]:
    """A map of each finding over the visible part of the input."""

    def target(output: tuple[Any, list[Tensor]], finding: Finding) -> Tensor:
        raw, maps = output
        # Layers that the score does not depend on get a gradient, too: by its number one is assigned to its layer.
        return finding.target(raw) + sum((0 * m).sum() for m in maps)

    # Copies, since layers behind may write into the output of this one.
    cam = cam_class(network, list(network.layers), reshape_transform=torch.clone)
    try:
        with torch.set_grad_enabled(cam.uses_gradients):
            return [cam(inputs, [partial(target, finding=f)])[0] for f in findings]
    finally:
        cam.activations_and_grads.release()


@contextmanager
def _for_inputs_alone(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters, and nothing computed twice, with its hooks, in the backward pass."""
    trained = [p for p in model.parameters() if p.requires_grad]
    checkpointing = [m for m in model.modules() if getattr(m, 'with_cp', False) is True]
    for p in trained:
        p.requires_grad_(False)
    for m in checkpointing:
        m.with_cp = False
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        for m in checkpointing:
            m.with_cp = True


class _View:
    """The image that is shown, and the way back to it from the network's input.

    It is the image itself if the test pipeline resized, flipped and padded it, and the network's input without
    padding if the pipeline cut something off.
    """

    def __init__(self, meta: dict[str, Any], seen: np.ndarray) -> None:
        h, w = seen.shape[:2]
        self.axes = _FLIPS[meta.get('flip_direction') or 'horizontal'] if meta.get('flip') else ()
        original = tuple(meta['ori_shape'][:2]) if 'ori_shape' in meta else (h, w)
        known = original == (h, w) or 'scale_factor' in meta
        self.scale = np.array(meta.get('scale_factor', (1.0, 1.0)))[:2]  # of width and height
        resized = tuple(round(n * s) for n, s in zip(original, self.scale[::-1]))
        image = mmcv.imread(meta['img_path'], channel_order='rgb') if 'img_path' in meta else None
        self.whole = image is not None and image.shape[:2] == original and known and resized[0] <= h and resized[1] <= w
        self.visible = resized if self.whole else (h, w)
        self.pixels = image if self.whole else np.ascontiguousarray(np.flip(seen, self.axes))

    def show(self, cam: np.ndarray) -> np.ndarray:
        """A map of the visible part, over the image that is shown."""
        cam = np.ascontiguousarray(np.flip(cam, self.axes))
        return cv2.resize(cam, self.pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    def place(self, finding: Finding) -> Finding:
        """A detection whose box is scaled back to the image, but flipped if that was."""
        box = finding.box.reshape(2, 2) * (1 if self.whole else self.scale)
        for axis in self.axes:
            box[:, 1 - axis] = self.pixels.shape[axis] - box[::-1, 1 - axis]
        return Finding(finding.label, finding.score, box.reshape(4), finding.target)


def default_layers(model: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the modules whose outputs are the neck's, of a detector that has one, or else the backbone's.

    All of a detector's that a module makes, the last of a classifier's.
    """
    detector = is_detector(model)
    root = 'neck' if detector and getattr(model, 'neck', None) is not None else 'backbone'
    made, ends = {}, []
    hooks = [
        module.register_forward_hook(
            lambda m, args, out, name=name: made.update({name: weakref.ref(out)}) if isinstance(out, Tensor) else None
        )
        for name, module in model.named_modules()
        if name == root or name.startswith(f'{root}.')
    ]
    hooks.append(model.get_submodule(root).register_forward_hook(lambda m, args, out: ends.append(out)))
    try:
        with torch.no_grad():
            model.extract_feat(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    ends = [ends[0]] if isinstance(ends[0], Tensor) else list(ends[0])
    order = [name for name, _ in model.named_modules() if name in made]  # the outermost first
    found = [next((n for n in order if made[n]() is end), None) for end in (ends if detector else ends[-1:])]
    found = [name for name in found if name is not None]
    if not found:
        raise ValueError(
            f'no module of the {root} ({type(model.get_submodule(root)).__name__}) gives its output: '
            'name layers (--target-layers)'
        )
    return found


# ---------------------------------------------------------------------------- what is explained


def _classes(
    model: nn.Module, inputs: Tensor, samples: list, categories: Collection[int] | None, topk: int | None
) -> tuple[list[Finding], float, Callable[[Tensor], Any]]:
    """Classes that a classifier sees, the highest score, and how the raw scores (1, classes) are computed."""
    with torch.no_grad():
        scores = model(inputs, samples, mode='predict')[0].pred_score
    best = int(scores.argmax())
    findings = [Finding(i, float(scores[i]), None, lambda raw, i=i: raw[0, i]) for i in categories or [best]]
    return sorted(findings, key=lambda f: -f.score)[:topk], float(scores[best]), lambda x: model(x, mode='tensor')


def _box_heads(model: nn.Module) -> nn.Module:
    return model.roi_head.bbox_head if hasattr(model, 'roi_head') else model.bbox_head


def _as_list(modules: nn.Module) -> list[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


@dataclass(frozen=True)
class _Place:
    """Raw score of a place of a dense head's output: (level, channel, y, x)."""

    index: tuple[int, int, int, int]

    def __call__(self, raw: Sequence[Tensor]) -> Tensor:
        level, *place = self.index
        return raw[level][(0, *place)]


@dataclass(frozen=True)
class _Region:
    """Raw score of a region, from the maps: mean over the stages, each with its own box (1, 5)."""

    roi_head: nn.Module
    rois: list[Tensor]
    label: int

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        scores = []
        for extractor, head, roi in zip(
            _as_list(self.roi_head.bbox_roi_extractor), _as_list(self.roi_head.bbox_head), self.rois
        ):
            x = extractor(maps[: extractor.num_inputs], roi)
            if self.roi_head.with_shared_head:
                x = self.roi_head.shared_head(x)
            scores.append(head(x)[0][0, self.label])
        return sum(scores) / len(scores)


def _detections(
    model: nn.Module,
    inputs: Tensor,
    samples: list,
    categories: Collection[int] | None,
    topk: int | None,
    score_thr: float,
) -> tuple[list[Finding], float, Callable[[Tensor], Any]]:
    """Detections with the places that they came from, the highest score of all, and how raw outputs are computed."""
    heads = _as_list(_box_heads(model))
    outputs, rois, latest = {}, {}, []

    def cut(i: int, output: tuple) -> tuple:
        outputs[i] = _leaves(output)
        rois[i] = latest[-1] if latest else None
        return outputs[i]

    hooks = [h.register_forward_hook(lambda m, args, out, i=i: cut(i, out)) for i, h in enumerate(heads)]
    if hasattr(model, 'roi_head'):
        hooks += [
            e.register_forward_pre_hook(lambda m, args: latest.append(args[1].detach()))
            for e in _as_list(model.roi_head.bbox_roi_extractor)
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
            target = _Region(model.roi_head, [r[row : row + 1] for r in rois.values()], label)
        else:
            target = _Place(_place(value, heads[0], outputs[0], label))
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
    """Where the raw score of a detection stands in a dense head's output: (level, channel, y, x)."""
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
