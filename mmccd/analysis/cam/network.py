"""The network as pytorch-grad-cam needs it: run once, with hooks on the layers that the maps are computed from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmccd.errors import suggest

from .models import is_detector
from .results import Finding


class Network(nn.Module):
    """From an image to the raw scores: one output an image, layers to be hooked.

    It runs once: further calls return the outputs of the first one, since findings differ only in what comes behind
    it. The graph begins at the layers.

    Args:
        run (Callable): From the input to raw scores.
        names (list[str]): Layers that the maps are computed from.
        visible (tuple[int, int]): Height and width of the input without its padding.
    """

    def __init__(
        self, model: nn.Module, run: Callable[[Tensor], Any], names: list[str], visible: tuple[int, int]
    ) -> None:
        super().__init__()
        self.model, self.run, self.visible = model, run, visible
        self.layers = {model.get_submodule(name): name for name in names}
        self.ran: list[nn.Module] = []  # and their outputs, call by call
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
                    raise ValueError(f'layer {name!r} ({type(layer).__name__}) does not contribute to the scores')
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


def compute_maps(cam_class: type, network: Network, inputs: Tensor, findings: Sequence[Finding]) -> list[np.ndarray]:
    """A map for each finding, (h, w) of the visible part of the input, 0 to 1."""

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
def gradients_of_activations_only(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters, and no checkpointing, which would run layers and their hooks again in backward."""
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


def default_layers(model: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the modules whose outputs are those of the neck (detectors that have one) or of the backbone.

    For a detector, all outputs that a module makes; for a classifier, the last one.
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


def check_layers(model: nn.Module, names: Collection[str]) -> None:
    """Raise ValueError for a name that no module of the model has, and suggest similar ones."""
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in names:
        if name not in known:
            inner = [n for n in known if n.endswith(f'.{name}')]
            hint = suggest(name, inner or known, n=3, cutoff=0 if inner else 0.4)
            raise ValueError(f'layer {name!r} does not exist in the model{hint}')
        if name.startswith('roi_head.'):
            raise ValueError(
                f'layer {name!r} works on regions cut out of the maps, not on the image: choose one '
                'of the backbone or the neck'
            )
