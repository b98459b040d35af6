"""An orderly end on the signals that clusters send before they take a machine away."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_backend, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch.utils.data import DataLoader

from mmccd.registry import HOOKS

from .checkpoint import CheckpointHook

EXIT_CODE = 85
# A file that the hook makes when it ends the training, with the exit code in it: for launchers that pass none on.
MARKER = 'MMCCD_INTERRUPTED'


class Interrupted(SystemExit):
    """Training ended on a signal after saving: the process ends with code 85, unless somebody catches this."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _WorkerOutlives:
    """``worker_init_fn`` for workers that get the signal too: they serve on, until the main process ends or ends them.

    Where the system cannot tell who sent a signal (macOS), they end on it as workers do otherwise.

    Args:
        inner (Callable, optional): The loader's own function.
    """

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self.inner = inner

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if hasattr(signal, 'sigwaitinfo'):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # by this thread and those it starts
            threading.Thread(target=self._end_with, args=(parent_process().pid,), daemon=True).start()
        if self.inner is not None:
            self.inner(worker_id)

    @staticmethod
    def _end_with(parent: int) -> None:
        """Wait for SIGTERM from ``parent``, which is how it ends its workers."""
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


@HOOKS.register_module()
class InterruptHook(Hook):
    """Save and end, with exit code 85, after SIGTERM or SIGUSR1 (slurm's ``--signal=USR1@120``).

    The signal may reach one process or all. After the iteration that runs, and the gradients of which are used, all
    processes agree, ``interrupted.pth`` is saved by :class:`CheckpointHook`, and training continues from there with
    ``--resume``. At an epoch's end its regular checkpoint does. During validation, one process ends immediately where
    the epoch is saved; several end when the validation is complete. Without mmccd's checkpoint hook, nothing is
    changed.

    Where the environment variable ``MMCCD_INTERRUPTED`` holds a path, the exit code is written there as well.
    """

    priority = 'LOWEST'  # after the checkpoint hook
    signals = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}  # empty: not listening
        self._group: torch.distributed.ProcessGroup | None = None  # None: the default one

    def _receive(self, signum: int, frame: Any) -> None:
        self._received = signum

    def before_run(self, runner: Runner) -> None:
        """Listen from now on, if this is a training."""
        if not isinstance(runner._train_loop, BaseLoop):  # a config, of which no loop was built: testing
            return
        found = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if not found:
            runner.logger.warning(
                'SIGTERM and SIGUSR1 end this training without saving: mmccd.InterruptHook needs '
                "default_hooks.checkpoint.type='mmccd.CheckpointHook'"
            )
            return
        self._checkpoint = found[0]
        self._received = None
        if get_backend() == 'nccl':
            # In nccl's own group the question of every iteration would wait for the GPU.
            self._group = torch.distributed.new_group(backend='gloo')
        self._before = {s: signal.signal(s, self._receive) for s in self.signals}
        for loop in (runner._train_loop, runner._val_loop):
            loader = getattr(loop, 'dataloader', None)
            if isinstance(loader, DataLoader) and loader.num_workers > 0:
                loader.worker_init_fn = _WorkerOutlives(loader.worker_init_fn)

    def after_run(self, runner: Runner) -> None:
        """Leave the signals as they were."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)
            self._group = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """End here, unless gradients are still being collected or the epoch is over: that is saved on its own."""
        if not self._before:
            return
        wrapper = runner.optim_wrapper
        collecting = getattr(wrapper, '_inner_count', 0) % getattr(wrapper, '_accumulative_counts', 1) != 0
        if not collecting and not self._checkpoint.epoch_is_over(runner) and self._agreed():
            self._end(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """End before the validation, which is made up for on resuming."""
        if self._before and self._agreed():
            self._end(runner, runner.epoch + 1, runner.iter)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """End within a validation, where nothing has to be saved and nobody waits for this process."""
        if (
            self._received is not None
            and get_world_size() == 1
            and self._before
            and self._checkpoint.is_saved(runner.epoch, runner.iter)
        ):
            self._end(runner, runner.epoch, runner.iter)

    def after_val(self, runner: Runner) -> None:
        """End after a validation."""
        if self._before and self._agreed():
            self._end(runner, runner.epoch, runner.iter)

    def _agreed(self) -> bool:
        """Whether any process has received a signal: all processes get the same answer."""
        received = torch.tensor(int(self._received is not None))
        all_reduce(received, 'max', group=self._group)
        return bool(received)

    def _end(self, runner: Runner, epoch: int, iteration: int) -> None:
        path = self._checkpoint.save_interrupted(runner, epoch, iteration)
        name = signal.Signals(self._received).name if self._received is not None else 'A signal to another process'
        runner.logger.warning(f'{name}: training ends after iteration {iteration}. Continue with --resume from {path}.')
        if MARKER in os.environ:
            Path(os.environ[MARKER]).write_text(str(EXIT_CODE))
        self.after_run(runner)
        barrier()
        raise Interrupted
