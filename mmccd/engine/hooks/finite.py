"""Losses and gradients that are NaN or infinite."""

from __future__ import annotations

import json
import math
import os
import os.path as osp
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmccd.checkpoints.files import write_atomically
from mmccd.registry import HOOKS

CAUSES = """Likely causes:
  * the learning rate is too high for this batch, or its warm-up too short: compare the learning rate above with the
    config's auto_scale_lr.base_batch_size, try --auto-scale-lr or a tenth of it;
  * gradients explode: set optim_wrapper.clip_grad=dict(max_norm=35);
  * an image or its boxes: check those named in the report, e.g. with tools/checks/check_dataset.py;
  * half precision: try without --amp."""


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a parameter is NaN or infinite."""


def _finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers of many tensors are finite; one wait for the device."""
    tensors = [t.detach() for t in tensors if t.numel() > 0]
    if not tensors:
        return True
    if all(t.device.type == 'cpu' for t in tensors):
        # A finite sum has finite terms, and takes a tenth of the time there; finite terms may overflow, so look again.
        sums = [t.sum(dtype=torch.promote_types(t.dtype, torch.float32)).float() for t in tensors]
        if bool(torch.stack(sums).isfinite().all()):
            return True
    # Largest magnitudes: other norms of finite numbers may overflow.
    largest = [n.to(tensors[0].device, torch.float32) for n in torch._foreach_norm(tensors, math.inf)]
    return bool(torch.stack(largest).isfinite().all())


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Stop, before parameters or checkpoints are spoilt, when a loss or a gradient is NaN or infinite.

    * Gradients are checked before the optimizer uses them. With a loss scaler (``AmpOptimWrapper`` in half precision)
      the scaler does that, and leaves steps out while it looks for its scale; what stops the training then is a scale
      below ``min_loss_scale``: that many steps in a row were left out.
    * Losses are checked after each iteration, without another wait for the device: mmengine logs them.
    * Parameters are checked before a checkpoint is written.

    Each process that finds something writes ``nonfinite/rank_<n>.json`` in the work folder: what was found, where
    first, the losses, the iteration, the learning rates, the images of the batch, and the last checkpoint; then it
    raises :class:`NonFiniteError` with likely causes.

    Args:
        interval (int, optional): Iterations from one check of the gradients to the next, each of which waits for the
            device. Default: None, which is 1 on the CPU and 10 elsewhere.
        min_loss_scale (float): Smallest scale of the loss. Default: 2 ** -10, after 26 steps in a row from PyTorch's
            start of 2 ** 16.
    """

    priority = 'BELOW_NORMAL'  # before the checkpoint hook

    def __init__(self, interval: int | None = None, min_loss_scale: float = 2**-10) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'interval must be at least 1 or None, got {interval}')
        self.interval = interval
        self.min_loss_scale = min_loss_scale
        self._handles: list = []
        self._batch: Any = None
        self._losses: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Check every step of the optimizers from now on."""
        interval = self.interval or (1 if get_device() == 'cpu' else 10)
        self._remove_handles()
        wrappers = runner.optim_wrapper
        for wrapper in wrappers.values() if hasattr(wrappers, 'values') else [wrappers]:
            if self._scaler(wrapper) is None:
                self._handles.append(
                    wrapper.optimizer.register_step_pre_hook(lambda *_: self._check_gradients(runner, interval))
                )
        self._handles.append(runner.model.register_forward_hook(self._keep_losses))

    def _remove_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @staticmethod
    def _scaler(wrapper: Any) -> Any:
        scaler = getattr(wrapper, 'loss_scaler', None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    def _keep_losses(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, dict) and module.training:
            self._losses = output

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the batch."""
        self._batch = data_batch

    def _check_gradients(self, runner: Runner, interval: int) -> None:
        if (runner.iter + 1) % interval == 0:
            named = {n: p.grad for n, p in runner.model.named_parameters() if p.grad is not None}
            if not _finite([g for g in named.values() if not g.is_sparse]):
                self._stop(runner, 'gradient', named, 'The parameters are as they were before this iteration.')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check the losses, and the scale of the loss."""
        logged = runner.message_hub.log_scalars
        keys = [f'train/{key}' for key in outputs or {}]
        if not all(math.isfinite(logged[key].current()) for key in keys if key in logged):
            named = dict(runner.model.named_parameters())
            self._stop(runner, 'loss', named, 'The optimizer has used it: do not continue with these parameters.')
        wrappers = runner.optim_wrapper
        for wrapper in wrappers.values() if hasattr(wrappers, 'values') else [wrappers]:
            scaler = self._scaler(wrapper)
            if scaler is not None and scaler.get_scale() < self.min_loss_scale:
                self._stop(
                    runner,
                    'gradient',
                    {},
                    f'The loss scaler has left out one step after another: its scale is {scaler.get_scale():g}.',
                )
        self._batch, self._losses = None, {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """No checkpoint of parameters that are NaN or infinite takes the place of a good one."""
        states = {**checkpoint.get('ema_state_dict', {}), **checkpoint['state_dict']}
        named = {k: v for k, v in states.items() if isinstance(v, Tensor) and v.is_floating_point()}
        if not _finite(list(named.values())):
            self._stop(runner, 'parameter', named, 'This checkpoint is not written.')

    def after_train(self, runner: Runner) -> None:
        """Stop checking."""
        self._remove_handles()

    def _stop(self, runner: Runner, what: str, named: dict[str, Tensor], remark: str) -> None:
        """Write the report and raise."""
        first = next((n for n, t in named.items() if not bool(t.detach().isfinite().all())), None)
        report = dict(
            found=what,
            first=first,
            remark=remark,
            epoch=runner.epoch + 1,
            iteration=runner.iter + 1,
            learning_rates=runner.optim_wrapper.get_lr(),
            losses={k: _numbers(v) for k, v in self._losses.items()},
            images=_images(self._batch),
            last_checkpoint=runner.message_hub.runtime_info.get('last_ckpt'),
            seed=runner.seed,
        )
        path = osp.join(runner.work_dir, 'nonfinite', f'rank_{get_rank()}.json')
        os.makedirs(osp.dirname(path), exist_ok=True)
        write_atomically(path, json.dumps(_texts(report), indent=1, default=str).encode())
        losses = {k: v for k, v in report['losses'].items() if not all(math.isfinite(n) for n in v)}
        images = [str(p.get('img_path') or p.get('img_id')) for p in report['images']]
        lines = [
            f'a {what} is NaN or infinite in epoch {report["epoch"]}, iteration {report["iteration"]}'
            + (f', first in {first}' if first and what != 'loss' else '')
            + f'. {remark}',
            *(f'  {name}: {values}' for name, values in losses.items()),
            f'  learning rates: {report["learning_rates"]}',
            f'  images: {", ".join(images) or "unknown"}',
            f'  last checkpoint: {report["last_checkpoint"] or "none"}',
            f'  report: {path}',
            CAUSES,
        ]
        self._remove_handles()
        raise NonFiniteError('\n'.join(lines))


def _texts(value: Any) -> Any:
    """The same for JSON, which has no such numbers: 'nan' and 'inf' are what the report is about, so no null."""
    if isinstance(value, dict):
        return {k: _texts(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_texts(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> list[float]:
    """A loss, which may be a tensor or a list of them, as numbers: means, as they enter the sum."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [float(v.detach().float().mean()) if isinstance(v, Tensor) else float(v) for v in values]


def _images(batch: Any) -> list[dict[str, Any]]:
    """Ids and paths of the images of a batch, as far as the data samples have them."""
    samples = batch.get('data_samples', []) if isinstance(batch, dict) else []
    found = []
    for sample in samples if isinstance(samples, (list, tuple)) else [samples]:
        meta = getattr(sample, 'metainfo', {})
        found.append({k: meta[k] for k in ('img_id', 'img_path', 'sample_idx') if k in meta})
    return found
