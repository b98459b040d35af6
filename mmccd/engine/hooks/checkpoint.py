"""Checkpoints that appear whole or not at all, and from which training continues as if nothing had happened."""

from __future__ import annotations

import json
import math
import os
import os.path as osp
from collections.abc import Iterator
from numbers import Real
from typing import Any

from mmengine.dist import all_gather_object, barrier, broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import ParamSchedulerHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmccd.checkpoints.files import PARTIAL, finite_or_null, write_atomically
from mmccd.errors import UserError, suggest
from mmccd.registry import HOOKS

from ..random_states import get_random_states, make_resumable, set_random_states

INTERRUPTED = 'interrupted.pth'
VALIDATED = 'last_validation.json'
# What a training's numbers depend on. Workers, logs, hooks and validation change none of them.
RECIPE = ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr')
# Of that, what a checkpoint has the values of, which replace the config's on resuming.
KEPT = ('optim_wrapper.optimizer.', 'optim_wrapper.paramwise_cfg', 'param_scheduler')
NOT_RECIPE = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'timeout')


def recipe_of(cfg: Any) -> dict[str, str]:
    """What a training's numbers depend on in a config, flat: ``{'optim_wrapper.optimizer.lr': '0.01', ...}``."""

    def flatten(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for k, v in value.items():
                if key != 'train_dataloader' or k not in NOT_RECIPE:
                    yield from flatten(v, f'{key}.{k}')
        elif isinstance(value, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in value):
            for i, v in enumerate(value):
                yield from flatten(v, f'{key}.{i}')
        else:
            yield key, repr(list(value)) if isinstance(value, (list, tuple)) else repr(value)

    return dict(item for key in RECIPE if cfg.get(key) is not None for item in flatten(cfg[key], key))


def _has_value(name: str, value: Any) -> bool:
    """Whether a metric is a number: COCO's evaluation gives -1 to what no box is there for, others NaN."""
    number = isinstance(value, (int, float)) and math.isfinite(value)
    return number and not (value == -1 and ('AP' in name or 'AR@' in name))


class _RemoveLater:
    """File backend whose removals wait: an old checkpoint goes when the new one is there."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.waiting: list[tuple] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.waiting.append((self.backend.remove, path))

    def rmtree(self, path: str) -> None:  # what DeepSpeed saves is a folder
        self.waiting.append((self.backend.rmtree, path))

    def flush(self, keep: set[str]) -> None:
        """Remove what waits, but for what has been written again meanwhile."""
        for remove, path in self.waiting:
            if path not in keep:
                remove(path)


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's hook, with the same arguments, for days on machines that fail.

    * A checkpoint on a local disk is written beside its place, synced and renamed, with its SHA-256 in
      ``.<name>.sha256``. The one before it is removed after that. What cannot be written raises ``OSError`` and leaves
      the folder as it was.
    * It has, beside mmengine's entries, ``resume``: random states of all processes, how far the epoch was, the seed
      of the sampler, the number of processes, the batch of all of them, and the recipe (:func:`recipe_of`).
    * Training continues from there with the same random numbers, in the middle of an epoch as well: images that the
      epoch has had are left out. In an :class:`~mmengine.runner.EpochBasedTrainLoop` each sample has a seed of its own
      for this, and validation leaves the random states as they were.
    * Processes, batch or recipe that have changed are named in a warning. A validation that the interruption cut off
      is repeated; one that came after the checkpoint counts for schedules by metrics (``ReduceOnPlateauLR``).

    Checkpoints of mmengine's own hook can be resumed as before.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resumed: dict | None = None  # the entry of the checkpoint; empty if mmengine's own hook wrote it
        self._entry: dict | None = None  # the entry of the checkpoint that is being written
        self._pending_states: dict | None = None
        self._states_before_val: dict | None = None
        self._batches = None
        self._samples = 0
        self._validated = -1  # iteration of the last validation that schedules and the best score know of
        self._metrics: dict[str, Any] = {}  # of that validation
        self._saved: tuple[int, int] | None = None
        self._training = False

    # Resuming

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what training continues from."""
        if runner._resume:
            self._resumed = checkpoint.get('resume', {})

    def before_train(self, runner: Runner) -> None:
        """Prepare folder and loader; if resumed, continue."""
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir or ''):
            self.backend_args = dict(backend='mmccd.atomic')
        super().before_train(runner)
        self._training = True
        if is_main_process() and self._local:
            os.makedirs(self.out_dir, exist_ok=True)
            for name in os.listdir(self.out_dir):
                if name.endswith(('.pth' + PARTIAL, '.pth.sha256' + PARTIAL)):  # a process was killed while it wrote
                    os.remove(osp.join(self.out_dir, name))
        self._check_same_checkpoint(runner)
        self._prepare_loader(runner)
        if self._resumed is not None:
            self._warn_of_changes(runner)
            states = self._resumed.get('random_states', [])
            if len(states) == get_world_size():
                self._pending_states = states[runner.rank]
            self._saved = (runner.epoch, runner.iter)
            self._make_up_for_validation(runner)

    @property
    def _local(self) -> bool:
        return (self.backend_args or {}).get('backend') == 'mmccd.atomic'

    def _check_same_checkpoint(self, runner: Runner) -> None:
        """Processes that resumed from different checkpoints would train on without an error."""
        resumed = all_gather_object((runner.epoch, runner.iter))
        if len(set(resumed)) > 1:
            raise RuntimeError(
                'the processes resumed from different checkpoints, at (epoch, iteration) '
                f'{sorted(set(resumed))}: is the work folder shared by all machines?'
            )

    def _batch_of_all(self, runner: Runner) -> int | None:
        loader = runner.train_dataloader
        batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
        return batch and batch * get_world_size()

    def _prepare_loader(self, runner: Runner) -> None:
        """Give the samples seeds, and skip what the epoch has had."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return  # the loop over iterations advances its loader itself
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', None)
        if self._resumed is not None and hasattr(sampler, 'seed'):
            # The runner takes the seed over, but the loader was built before that.
            sampler.seed = self._resumed.get('sampler_seed', runner.seed)
        self._batches = make_resumable(loader, getattr(sampler, 'seed', runner.seed))
        if self._resumed is not None and self._batches is not None:
            batch = self._batch_of_all(runner)
            samples = self._resumed.get('samples_of_epoch', (runner.iter - runner.epoch * len(loader)) * batch)
            self._batches.skip = min(max(samples // batch, 0), len(loader))
            self._samples = self._batches.skip * batch
            if self._batches.skip:
                runner.logger.info(
                    f'Epoch {runner.epoch + 1} continues after {self._batches.skip} of {len(loader)} '
                    'batches, whose images are not loaded again.'
                )

    def _warn_of_changes(self, runner: Runner) -> None:
        now = self._describe(runner)
        for key, text in (('processes', 'The number of processes'), ('batch', 'The batch of all processes')):
            if self._resumed.get(key, now[key]) != now[key]:
                runner.logger.warning(
                    f'{text} was {self._resumed[key]} in the checkpoint and is {now[key]} now: the '
                    'learning rate may not fit, and the training will not be the same.'
                )
        old, new = self._resumed.get('course', now['course']), now['course']
        changed = {
            k: f'{k}: {old.get(k, "(not there)")} -> {new.get(k, "(not there)")}'
            for k in dict.fromkeys((*old, *new))
            if old.get(k) != new.get(k)
        }
        kept = [text for k, text in changed.items() if k.startswith(KEPT)]
        used = [text for k, text in changed.items() if not k.startswith(KEPT)]
        for texts, what in (
            (used, 'The config has changed since the checkpoint:'),
            (
                kept,
                'These changes of the config have no effect: the optimizer and the schedules continue with what the '
                'checkpoint has. For other values, start another training from its weights (load_from, without '
                '--resume):',
            ),
        ):
            if texts:
                more = [f'... and {len(texts) - 12} more'] if len(texts) > 12 else []
                runner.logger.warning('\n  '.join([what, *texts[:12], *more]))

    def _make_up_for_validation(self, runner: Runner) -> None:
        """Validate the epoch of the checkpoint if that was due and cut off; if it came later, count it in schedules."""
        self._validated = self._resumed.get('validated', -1)
        loop = runner.train_loop
        due = (
            isinstance(loop, EpochBasedTrainLoop)
            and runner.val_loop is not None
            and self._samples == 0
            and 'samples_of_epoch' in self._resumed
            and self._validated < runner.iter
            and runner.epoch >= max(loop.val_begin, 1)
            and (runner.epoch % loop.val_interval == 0 or runner.epoch == runner.max_epochs)
        )
        last = [self._last_validation(runner) if due and is_main_process() else {}]
        broadcast_object_list(last)
        if not due:
            return
        if last[0].get('iter', runner.iter) < runner.iter:
            runner.logger.info(f'The validation of epoch {runner.epoch} was cut off: it is done now.')
            runner.val_loop.run()
        elif last[0].get('iter') == runner.iter and last[0]['metrics']:  # not those of a later epoch
            for hook in runner.hooks:
                if isinstance(hook, ParamSchedulerHook):
                    hook.after_val_epoch(runner, metrics=last[0]['metrics'])
            self._validated = runner.iter

    def _last_validation(self, runner: Runner) -> dict[str, Any]:
        """``iter`` of the last validation that was finished, and its ``metrics``; empty if it is not known."""
        if not self._local or osp.dirname(osp.abspath(runner._load_from or '')) != osp.abspath(self.out_dir):
            return {}
        try:
            with open(osp.join(self.out_dir, VALIDATED)) as f:
                last = json.load(f)
            metrics = {k: math.nan if v is None else v for k, v in last.get('metrics', {}).items()}
            return dict(iter=int(last['iter']), metrics=metrics)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return dict(iter=-1)

    # Random states and the place in the epoch

    def before_train_epoch(self, runner: Runner) -> None:
        """Give the loader the epoch."""
        if self._batches is not None:
            self._batches.epoch = runner.epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Random states of the checkpoint, once everything is set up."""
        if self._pending_states is not None:
            set_random_states(self._pending_states)
            self._pending_states = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count the samples of the epoch; save if iterations are counted."""
        if self._batches is not None:
            self._samples += self._batch_of_all(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save if epochs are counted."""
        self._samples = 0
        super().after_train_epoch(runner)

    def before_val(self, runner: Runner) -> None:
        """Set the training's random states aside."""
        self._states_before_val = get_random_states()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Take the random states back; while training, save the best checkpoint."""
        if self._states_before_val is not None:
            set_random_states(self._states_before_val)
            self._states_before_val = None
        if self._training:
            self._validated, self._metrics = runner.iter, metrics or {}
            super().after_val_epoch(runner, metrics or {})

    def after_val(self, runner: Runner) -> None:
        """Note that the validation is complete."""
        if self._training and is_main_process() and self._local:
            numbers = {k: float(v) for k, v in self._metrics.items() if isinstance(v, Real)}
            last = dict(iter=runner.iter, metrics=finite_or_null(numbers))
            write_atomically(osp.join(self.out_dir, VALIDATED), json.dumps(last).encode())

    # Saving

    def epoch_is_over(self, runner: Runner) -> bool:
        """Whether no batch of the epoch is left."""
        return self._batches is not None and self._samples >= len(self._batches) * self._batch_of_all(runner)

    def is_saved(self, epoch: int, iteration: int) -> bool:
        """Whether the newest checkpoint is of this epoch and iteration."""
        return self._saved == (epoch, iteration)

    def save_interrupted(self, runner: Runner, epoch: int, iteration: int) -> str:
        """Save as ``interrupted.pth``, unless this is saved; all processes have to call this.

        The file goes when the next regular checkpoint is there.

        Args:
            runner (Runner): The runner.
            epoch (int): Complete epochs.
            iteration (int): Complete iterations.

        Returns:
            str: Path of the newest checkpoint.
        """
        if not self.is_saved(epoch, iteration):
            self._save(runner, INTERRUPTED, dict(epoch=epoch, iter=iteration))
        return self.last_ckpt

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what resuming needs."""
        if self._entry is not None:
            checkpoint['resume'] = self._entry

    def _describe(self, runner: Runner) -> dict[str, Any]:
        # These keys are in the checkpoints of version 0.1, and stay.
        return dict(processes=get_world_size(), batch=self._batch_of_all(runner), course=recipe_of(runner.cfg))

    def _save(self, runner: Runner, filename: str, meta: dict) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        states = all_gather_object(get_random_states())
        self._entry = dict(self._describe(runner), random_states=states, validated=self._validated)
        if self._batches is not None:
            self._entry.update(samples_of_epoch=self._samples, sampler_seed=self._batches.seed)
        try:
            runner.save_checkpoint(
                self.out_dir,
                filename,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        finally:
            self._entry = None
        self._saved = (meta['epoch'], meta['iter'])
        if is_main_process():
            write_atomically(osp.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt.encode())
            interrupted = self.file_backend.join_path(self.out_dir, INTERRUPTED)
            if filename != INTERRUPTED and self.file_backend.isfile(interrupted):
                self.file_backend.remove(interrupted)
        barrier()  # no process continues, or ends, before the file is there

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """mmengine's, but the outdated checkpoint goes after the new one has come, and no file is ever half written."""
        outdated = None
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                )
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta)
        if is_main_process() and outdated not in (None, self.last_ckpt):
            if self.file_backend.isfile(outdated):
                self.file_backend.remove(outdated)
            elif self.file_backend.isdir(outdated):
                self.file_backend.rmtree(outdated)

    def _with_values(self, runner: Runner, metrics: dict) -> dict:
        """The metrics, with None, which mmengine passes over, for those without an example (NaN; COCO's -1)."""
        if not self.save_best:
            return metrics
        names = [next(iter(metrics)) if name == 'auto' else name for name in self.key_indicators]
        for name in names:
            if name not in metrics:
                raise UserError(
                    f'save_best={name!r}: the validation has no such metric, it gives {", ".join(metrics)}; --resume '
                    f'continues with another save_best (or None){suggest(name, metrics)}'
                )
            value = metrics[name]
            if not _has_value(name, value):
                runner.logger.warning(
                    f'{name} is {value}: the validation split has no example for it, and no checkpoint is the best'
                )
        return {
            name: value if name not in names or _has_value(name, value) else None for name, value in metrics.items()
        }

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """mmengine's, but the best so far goes after the new one has come, and what has no value is never the best."""
        metrics = self._with_values(runner, metrics)
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        except ValueError as e:
            if 'Cannot infer the rule' not in str(e):
                raise
            raise UserError(
                f"save_best='auto' takes the first metric, {next(iter(metrics))}, and whether more of it is better is "
                "not known: set default_hooks.checkpoint.rule='greater' or 'less', and continue with --resume"
            ) from e
        finally:
            self.file_backend = backend
        best = (getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values())
        later.flush(keep={self.last_ckpt, *best})
