"""What Windows and macOS lack, taken away from Python, in a process that then runs a tool or imports all of mmccd.

    python other_platform.py windows import
    python other_platform.py windows tools/train.py CONFIG ...

The processes that it spawns begin like this as well. What the libraries ask ``sys.platform`` for stays as it is.
"""

import builtins
import ctypes
import importlib
import os
import pkgutil
import platform
import runpy
import signal
import sys

# Python itself, and libraries that ask sys.platform, use under Linux what is taken away below: they may keep it.
KEEP = ('multiprocessing.popen_spawn_posix', 'multiprocessing.resource_tracker', 'subprocess', 'tempfile', 'torch')
for name in KEEP:
    importlib.import_module(name)

LACKS = {
    'windows': {
        signal: (
            'SIGUSR1 SIGUSR2 SIGHUP SIGKILL SIGALRM SIGPIPE SIGQUIT SIGCONT SIGTSTP SIGSTOP alarm setitimer pause '
            'sigwait sigwaitinfo sigtimedwait sigpending pthread_kill siginterrupt'
        ),
        os: (
            'fork forkpty register_at_fork killpg getpgid setpgid getpgrp setsid nice '
            'getloadavg mkfifo chown lchown wait wait3 wait4 sched_getaffinity sched_setaffinity O_DIRECTORY '
            'O_NOFOLLOW O_NONBLOCK pread pwrite sendfile posix_fadvise posix_fallocate memfd_create'
        ),
    },
    'macos': {
        signal: 'sigwaitinfo sigtimedwait',
        os: 'sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate memfd_create',
    },
}
MODULES = {'windows': 'fcntl resource pwd grp termios tty pty syslog', 'macos': ''}


def simulate(system: str) -> None:
    for module, names in LACKS[system].items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    absent, load = MODULES[system].split(), builtins.__import__

    def without_unix(name: str, globals: object = None, *args: object, **kwargs: object) -> object:
        # mmccd alone lacks them: mmengine asks platform.system() before it imports resource.
        if name in absent and (globals or {}).get('__name__', '').startswith(('mmccd', '__main__')):
            raise ImportError(f'no module named {name!r}')
        return load(name, globals, *args, **kwargs)

    builtins.__import__ = without_unix
    os.environ.setdefault('USERNAME', 'user')  # as Windows does
    # Neither glibc nor GNU's OpenMP.
    platform.libc_ver = lambda *args, **kwargs: ('', '')
    found = ctypes.CDLL.__getattr__

    def without_gnu(self: ctypes.CDLL, name: str) -> object:
        if name in ('GOMP_parallel', 'mallopt'):
            raise AttributeError(name)
        return found(self, name)

    ctypes.CDLL.__getattr__ = without_gnu


def import_everything() -> None:
    """Every module of mmccd but programs; Triton's need Triton, which is for Linux."""
    import mmccd

    names = [m.name for m in pkgutil.walk_packages(mmccd.__path__, 'mmccd.')]
    for name in names:
        if 'triton' not in name and not name.endswith('.__main__'):
            importlib.import_module(name)
    print(f'{len(names)} modules')


simulate(sys.argv[1])
if __name__ == '__main__':
    if sys.argv[2] == 'import':
        import_everything()
    else:
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name='__main__')
