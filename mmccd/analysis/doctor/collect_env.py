"""Report of the environment: what is installed and in use, known problems, and the command that fixes each.

``python -m mmccd.analysis.doctor.collect_env``, or ``python tools/checks/check_env.py`` where ``import mmccd`` fails.
By itself it imports only the standard library; errors of the packages that it imports as a test are reported.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

from mmccd.compat import mmcv_ops
from mmccd.env import OPTIONAL, REQUIRED

from . import installed
from .problems import find_problems

# Beside those of mmccd.env, for bug reports.
OTHERS = (
    'numpy',
    'packaging',
    'setuptools',
    'numba',
    'triton',
    'opencv-python',
    'opencv-python-headless',
    'pycocotools',
    'pillow',
    'scipy',
)


def _ccd_implementations() -> Iterator[tuple[str, str]]:
    """What ``mmccd.ops.ccd(impl='auto')`` chooses on each kind of device of this machine."""
    import torch

    from mmccd.ops.backends import automatic
    from mmccd.ops.options import make_options

    for device in ('cpu', *(('cuda',) if torch.cuda.is_available() else ())):
        name = automatic(torch.empty(1, 1, 1, 1, device=device), make_options(1))
        yield f"mmccd.ops.ccd(impl='auto') on {device}", name


def collect_env() -> dict[str, str]:
    """mmengine's ``collect_env``, and what matters to mmccd; what fails is named."""
    info = {'sys.platform': f'{sys.platform} ({platform.machine()})', 'Python': sys.version.replace('\n', '')}
    try:
        from mmengine.utils.dl_utils import collect_env as collect_base_env

        info.update((k, str(v)) for k, v in collect_base_env().items() if k != 'numpy_random_seed')
    except Exception as e:
        info["mmengine's report"] = f'none ({type(e).__name__}: {e})'
    for name in {**REQUIRED, **OPTIONAL}:
        found = installed.providers(name)
        info[name] = ', '.join(f'{v} ({d})' for d, v in found) or (
            'no distribution, but importable' if installed.can_be_found(name) else 'not installed'
        )
    for name in OTHERS:
        info[name] = installed.version(name) or 'not installed'
    try:
        info['mmcv operators'] = mmcv_ops.install()
    except ValueError as e:
        info['mmcv operators'] = str(e)
    try:
        info.update(_ccd_implementations())
    except Exception as e:
        info["mmccd.ops.ccd(impl='auto')"] = f'not available ({type(e).__name__}: {e})'
    return info


def main() -> int:
    """Print report and problems. Returns 1 if something is broken, else 0."""
    for name, value in collect_env().items():
        print(f'{name}: {value}')
    problems = find_problems()
    print()
    for problem in problems:
        print(f'{"BROKEN" if problem.broken else "warning"}: {problem.text}')
        print('  fix with:  ' + problem.command.replace('\n', '\n             '))
    if not problems:
        print('No problem found.')
    return int(any(p.broken for p in problems))


if __name__ == '__main__':
    sys.exit(main())
