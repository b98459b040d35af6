"""An orderly end on Ctrl-C, and on the signals that clusters send before they take a machine away."""

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

EXIT_CODE = 85  # after SIGTERM and SIGUSR1: whatever started the training may start it again
CTRL_C_CODE = 128 + signal.SIGINT  # after Ctrl-C, as a shell has it: nothing starts it again
# A file that the hook makes when it ends the training, with the exit code in it: for launchers that pass none on.
MARKER = 'MMCCD_INTERRUPTED'
# What ends a training: Windows lacks SIGUSR1, and has SIGBREAK (Ctrl-Break) alone.
_NAMES = ('SIGTERM', 'SIGUSR1', 'SIGBREAK', 'SIGINT')
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Interrupted(SystemExit):
    """Training ended on a signal after saving: the process ends with code 85, or 130 after Ctrl-C, unless caught."""

    def __init__(self, code: int = EXIT_CODE) -> None:
        super().__init__(code)


class _WorkerOutlives:
    """``worker_init_fn`` for workers that get the signal too: they keep working until the main process ends, or ends
    them.

    Where the system does not report the sender of a signal (macOS, Windows), they end on SIGTERM as other workers do.

    Args:
        inner (Callable, optional): The loader's own function.
    """

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self.inner = inner

    def __call__(self, worker_id: int) -> None:
        for signum in SIGNALS:
            if signum != signal.SIGTERM:
                signal.signal(signum, signal.SIG_IGN)
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
    """Save and end after Ctrl-C, SIGTERM or SIGUSR1 (slurm's ``--signal=USR1@120``); Ctrl-C or -Break on Windows.

    The exit code is 130 after Ctrl-C and 85 after the others. The signal may reach one process or all. All processes
    finish the iteration and use its gradients; then :class:`CheckpointHook` saves ``interrupted.pth``, from which
    ``--resume`` continues. At the end of an epoch, its regular checkpoint takes that place. During validation, a single
    process ends at once if the epoch is saved; several processes complete the validation first. A second Ctrl-C ends a
    single process at once. Without mmccd's checkpoint hook, signals do what they do otherwise.

    If the environment variable ``MMCCD_INTERRUPTED`` names a file, the exit code is written to it as well.
    """

    priority = 'LOWEST'  # after the checkpoint hook
    signals = SIGNALS

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}  # empty: not listening
        self._group: torch.distributed.ProcessGroup | None = None  # None: the default one

    def _receive(self, signum: int, frame: Any) -> None:
        # In a group torchrun repeats a Ctrl-C that the processes have got already.
        if signum == signal.SIGINT and get_world_size() == 1:
            if self._received == signal.SIGINT:
                raise KeyboardInterrupt
            # Not by print: the signal may come while the stream is being written to.
            os.write(2, b'\nsaving after this iteration; Ctrl-C again ends at once\n')
        self._received = signum

    def before_run(self, runner: Runner) -> None:
        """Listen from now on, if this is a training."""
        if not isinstance(runner._train_loop, BaseLoop):  # a config, of which no loop was built: testing
            return
        found = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if not found:
            runner.logger.warning(
                'Ctrl-C, SIGTERM and SIGUSR1 end this training without saving: mmccd.InterruptHook needs '
                "default_hooks.checkpoint.type='mmccd.CheckpointHook'"
            )
            return
        self._checkpoint = found[0]
        self._received = None
        if get_backend() == 'nccl':
            # In nccl's own group, the all-reduce of every iteration would wait for the GPU.
            self._group = torch.distributed.new_group(backend='gloo')
        # Where Ctrl-C is ignored (a demo, nohup) or handled by another program, it stays so.
        ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signals = [s for s in self.signals if s != signal.SIGINT or ctrl_c]
        self._before = {s: signal.signal(s, self._receive) for s in signals}
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
        if not collecting and not self._checkpoint.epoch_is_over(runner):
            self._end_if_asked(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """End before the validation, which is made up for on resuming."""
        if self._before:
            self._end_if_asked(runner, runner.epoch + 1, runner.iter)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """End within a validation, where nothing has to be saved and no other process waits for this one."""
        if (
            self._received is not None
            and get_world_size() == 1
            and self._before
            and self._checkpoint.is_saved(runner.epoch, runner.iter)
        ):
            self._end(runner, runner.epoch, runner.iter, self._code)

    def after_val(self, runner: Runner) -> None:
        """End after a validation."""
        if self._before:
            self._end_if_asked(runner, runner.epoch, runner.iter)

    @property
    def _code(self) -> int:
        """The exit code for the signal that this process has received; 0 if none."""
        if self._received is None:
            return 0
        return CTRL_C_CODE if self._received == signal.SIGINT else EXIT_CODE

    def _end_if_asked(self, runner: Runner, epoch: int, iteration: int) -> None:
        """End if any process has received a signal: all processes get the same answer."""
        code = torch.tensor(self._code)
        all_reduce(code, 'max', group=self._group)
        if code:
            self._end(runner, epoch, iteration, int(code))

    def _end(self, runner: Runner, epoch: int, iteration: int, code: int) -> None:
        path = self._checkpoint.save_interrupted(runner, epoch, iteration)
        if self._received is None:
            name = 'A signal to another process'
        else:
            name = 'Ctrl-C' if self._received == signal.SIGINT else signal.Signals(self._received).name
        runner.logger.warning(f'{name}: training ends after iteration {iteration}. Continue with --resume from {path}.')
        if MARKER in os.environ:
            Path(os.environ[MARKER]).write_text(str(code))
        self.after_run(runner)
        barrier()
        raise Interrupted(code)
