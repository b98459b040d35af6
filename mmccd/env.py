"""The packages that mmccd needs, the process that it runs in, and the C library's memory."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata, util

# import name: (oldest version that is tested, distributions that provide it, the maintained one first)
REQUIRED = {
    'torch': ('2.6.0', ('torch',)),
    'torchvision': ('0.21.0', ('torchvision',)),
    'mmengine': ('0.10.7', ('onedl-mmengine', 'mmengine')),
    'mmcv': ('2.1.0', ('onedl-mmcv', 'mmcv', 'mmcv-lite')),
    'mmdet': ('3.3.0', ('onedl-mmdetection', 'mmdet')),
}
OPTIONAL = {
    'mmpretrain': ('1.2.0', ('onedl-mmpretrain', 'mmpretrain')),
}


def installed_distribution(name: str) -> tuple[str, str] | None:
    """``(distribution, version)`` that provides the import ``name``, or None. Imports nothing."""
    _, distributions = {**REQUIRED, **OPTIONAL}[name]
    for distribution in distributions:
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def c_compiler() -> str | None:
    """Path of the C compiler that Triton, and with it torch.compile, builds its launchers with; None without one."""
    named = os.environ.get('CC')  # Triton's own order
    return next((path for name in ([named] if named else ['gcc', 'clang']) if (path := shutil.which(name))), None)


def check_requirements(*optional: str) -> None:
    """Raise ImportError, with one line and one command a package, if something is missing or too old.

    Args:
        *optional (str): Import names out of ``OPTIONAL`` that are needed now as well, e.g. ``'mmpretrain'``.
    """
    from packaging.version import Version  # not at the top: the table above is read where packages are missing, too

    problems = []
    for name in (*REQUIRED, *optional):
        oldest, distributions = {**REQUIRED, **OPTIONAL}[name]
        found = installed_distribution(name)
        # A checkout on PYTHONPATH has no distribution: that it can be imported has to do.
        if found is None and util.find_spec(name) is None:
            problems.append(f'{name} is not installed: pip install "{distributions[0]}>={oldest}"')
        elif found is not None and Version(found[1]) < Version(oldest):
            problems.append(
                f'{name} is too old ({found[0]} {found[1]}, needed is {oldest} or newer): '
                f'pip install "{found[0]}>={oldest}"'
            )
    if problems:
        raise ImportError(
            'mmccd needs other packages:\n  '
            + '\n  '.join(problems)
            + '\nThe set that is tested together is in requirements.txt; tools/checks/check_env.py checks '
            'the whole environment.'
        )


_OWN_RANKS = {  # of launchers that do not set LOCAL_RANK and RANK
    'slurm': {'LOCAL_RANK': 'SLURM_LOCALID', 'RANK': 'SLURM_PROCID'},
    'mpi': {'LOCAL_RANK': 'OMPI_COMM_WORLD_LOCAL_RANK', 'RANK': 'OMPI_COMM_WORLD_RANK'},
}

_WARNED: set[str] = set()  # former names


def is_first_on_machine() -> bool:
    """Whether this process is the first of its machine: of its launcher's, or the only one.

    From the environment, since it is asked before the processes know each other. What slurm and MPI set counts once
    the launcher is theirs (:func:`set_ranks`): with another, each of their processes is on its own.
    """
    return os.environ.get('LOCAL_RANK', '0') == '0'


def is_first_of_all() -> bool:
    """Whether this process is the first of all machines; as :func:`is_first_on_machine`."""
    return os.environ.get('RANK', '0') == '0'


def warn_renamed(then: str, now: str, log: Callable[[str], None] | None = None) -> None:
    """Say once in a process that a name has changed; both work.

    Args:
        then (str): The former name, which was used.
        now (str): The present one.
        log (Callable, optional): Writes the message. Default: a line on stderr, by the first process of the machine.
    """
    if then in _WARNED:
        return
    _WARNED.add(then)
    text = f'{then} is now called {now}'
    if log is not None:
        log(text)
    elif is_first_on_machine():
        print(f'warning: {text}', file=sys.stderr)


def set_ranks(launcher: str, argument: int = 0) -> None:
    """Put this process's number on its machine into ``LOCAL_RANK``, where mmengine and PyTorch look for it.

    Of slurm's and MPI's processes, the number among all goes into ``RANK``, too, where torchrun puts it.

    Args:
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``. The latter two have a variable of their
            own, which goes first.
        argument (int): What ``torch.distributed.launch`` passed as ``--local-rank``, used where nothing sets
            ``LOCAL_RANK``. Default: 0.
    """
    for name, own in _OWN_RANKS.get(launcher, {}).items():
        if own in os.environ:
            os.environ[name] = os.environ[own]
    os.environ.setdefault('LOCAL_RANK', str(argument))


def processor_name() -> str:
    """Model of the CPU; its kind where the system tells no more."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as f:
            names = [line.partition(':')[2].strip() for line in f if line.startswith('model name')]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: returned to the system, every large tensor's pages are cleared and mapped again.

    An eighth of a training step on the CPU. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if platform.libc_ver()[0] == 'glibc' else None
    if mallopt is not None:
        for parameter, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX: nothing by mmap; M_TRIM_THRESHOLD: never
            mallopt(parameter, value)


def is_local(checkpoint: str) -> bool:
    """Whether a checkpoint is named by a path, not by a URL or a name like torchvision://resnet50."""
    return '://' not in checkpoint
