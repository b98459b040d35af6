"""Report of the environment: what is installed and in use, what is known not to go together, and what mends it.

``python -m mmccd.analysis.doctor.collect_env``, or ``python tools/checks/check_env.py`` where ``import mmccd`` fails.
Imports nothing but the standard library by itself, and survives whatever it imports to try it.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from mmccd.compat import mmcv_ops
from mmccd.env import OPTIONAL, REQUIRED

# Beside those of mmccd.env; what a bug report needs.
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
# Imported to find out whether they can be; the order is that of the report.
IMPORTS = (
    'numpy',
    'torch',
    'torchvision',
    'cv2',
    'pycocotools._mask',
    'numba',
    'mmengine',
    'mmcv',
    'mmdet',
    'mmpretrain',
)
FIRST_BAD_SETUPTOOLS = (82,)


class Problem(NamedTuple):
    """Something that does not go together.

    Attributes:
        text (str): What, in one line.
        command (str): What mends it, to be typed as it stands.
        broken (bool): Whether training or testing fails over it; otherwise it is a warning.
    """

    text: str
    command: str
    broken: bool = True


# ------------------------------------------------------- what is installed; replaced by fakes in the tests


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _requires(distribution: str) -> list[str]:
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def _can_be_found(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing; it is half loaded
        return False


def _import_error(module: str) -> str | None:
    """Last line of what importing it raises; None if it works or is not installed."""
    if not _can_be_found(module.partition('.')[0]):
        return None
    try:
        importlib.import_module(module)
    except Exception as e:  # broken packages raise anything
        return f'{type(e).__name__}: {str(e).strip().splitlines()[-1] if str(e).strip() else ""}'
    return None


def _source(module: str) -> str:
    """Text of a package's ``__init__.py``, which is not run."""
    spec = util.find_spec(module) if _can_be_found(module) else None
    return Path(spec.origin).read_text(encoding='utf-8') if spec and spec.origin else ''


def _nvidia_driver() -> bool:
    return Path('/proc/driver/nvidia/version').exists()


# ---------------------------------------------------------------------------------------------- versions


def _release(version: str | None) -> tuple[int, ...]:
    """Leading numbers of a version, 2.11.0+cu130 as (2, 11, 0); () for None."""
    return tuple(int(n) for n in re.findall(r'\d+', re.match(r'[\d.]*', version or '').group()))


def _providers(name: str) -> list[tuple[str, str]]:
    """``(distribution, version)`` of everything installed that provides the import ``name``."""
    found = [(d, _version(d)) for d in {**REQUIRED, **OPTIONAL}[name][1]]
    return [(d, v) for d, v in found if v is not None]


def _pinned(distribution: str, requirement: str) -> str | None:
    """Exact version of ``requirement`` that an installed distribution asks for."""
    for line in _requires(distribution):
        match = re.match(rf'{requirement}\s*\(?==\s*([\w.+]+)', line)
        if match:
            return match.group(1)
    return None


def _matching_torchvision(torch: tuple[int, ...]) -> str:
    """torchvision is released with torch: 0.15.0 with 2.0.0, 0.16.0 with 2.1.0, and so on."""
    return f'0.{torch[1] + 15}.{torch[2] if len(torch) > 2 else 0}' if torch[:1] == (2,) else '*'


# ----------------------------------------------------------------------------------------------- checks


def _missing_or_old() -> Iterator[Problem]:
    for name, (oldest, distributions) in {**REQUIRED, **OPTIONAL}.items():
        found = _providers(name)
        if not found and not _can_be_found(name):
            use = '' if name in REQUIRED else ' (classification needs it)'
            yield Problem(
                f'{name} is not installed{use}', f'pip install "{distributions[0]}>={oldest}"', name in REQUIRED
            )
        elif found and _release(found[0][1]) < _release(oldest):
            yield Problem(
                f'{found[0][0]} {found[0][1]} is too old, {oldest} is the oldest that works',
                f'pip install "{found[0][0]}>={oldest}"',
            )
    for name in ('numpy', 'packaging'):
        if _version(name) is None and not _can_be_found(name):
            yield Problem(f'{name} is not installed', f'pip install {name}')


def _installed_twice() -> Iterator[Problem]:
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain'):
        found = _providers(name)
        if len(found) > 1:
            listed = ' and '.join(f'{d} {v}' for d, v in found)
            yield Problem(
                f'{listed} share the folder {name}/, each with files of the other',
                f'pip uninstall -y {" ".join(d for d, _ in found)} && pip install --no-deps "{"==".join(found[0])}"',
            )


def _mmcv_range() -> Iterator[Problem]:
    """mmdet and mmpretrain say in their ``__init__.py`` which versions of mmcv they accept."""
    mmcv = _providers('mmcv')
    for name in ('mmdet', 'mmpretrain'):
        bounds = dict(re.findall(r"^mmcv_(minimum|maximum)_version = '([^']+)'", _source(name), re.MULTILINE))
        if not mmcv or len(bounds) < 2:
            continue
        low, high = bounds['minimum'], bounds['maximum']
        if not _release(low) <= _release(mmcv[0][1]) < _release(high):
            who = ' '.join(_providers(name)[0]) if _providers(name) else name
            yield Problem(
                f'{who} accepts mmcv from {low} to below {high}, and {" ".join(mmcv[0])} is installed',
                f'pip install "{mmcv[0][0]}>={low},<{high}"',
            )


def _torch_pairs() -> Iterator[Problem]:
    torch, torchvision = _version('torch'), _version('torchvision')
    wanted = _pinned('torchvision', 'torch')
    if torch and torchvision and wanted and _release(wanted) != _release(torch):
        yield Problem(
            f'torchvision {torchvision} is built for torch {wanted}, and torch {torch} is installed',
            f'pip install "torchvision=={_matching_torchvision(_release(torch))}"',
        )
    triton, wanted = _version('triton'), _pinned('torch', 'triton')
    if triton and wanted and _release(wanted) != _release(triton):
        yield Problem(
            f'torch {torch} wants triton {wanted}, and triton {triton} is installed',
            f'pip install "triton=={wanted}"',
            broken=False,
        )


def _numpy_pairs() -> Iterator[Problem]:
    mmcv = _providers('mmcv')
    if _release(_version('numpy')) >= (2,) and mmcv and _release(mmcv[0][1]) < (2, 2):
        yield Problem(
            f'{" ".join(mmcv[0])} is of the time before numpy 2, and numpy {_version("numpy")} is installed',
            'pip install "numpy<2"',
        )


def _setuptools() -> Iterator[Problem]:
    version = _version('setuptools')
    if version and _release(version) >= FIRST_BAD_SETUPTOOLS:
        yield Problem(
            f'setuptools {version} has no pkg_resources, which mmengine and the build of mmcv import',
            'pip install "setuptools>=80,<82"',
        )


def _import_command(module: str, error: str) -> str:
    """What mends a package that is installed and cannot be imported."""
    if module == 'cv2':
        version = _version('opencv-python-headless') or _version('opencv-python') or '4.11.0.86'
        return f'pip install --force-reinstall --no-deps "opencv-python-headless=={version}"'
    if module == 'numba':
        return 'pip install --upgrade numba    (or: pip uninstall numba, and CCD runs on stock operators)'
    if 'numpy.dtype size changed' in error or '_ARRAY_API' in error or 'compiled using NumPy 1' in error:
        return f'pip install --force-reinstall --no-cache-dir --no-deps {module.partition(".")[0]}'
    distributions = {**REQUIRED, **OPTIONAL}.get(module, (None, (module.partition('.')[0],)))[1]
    installed = next((d for d in distributions if _version(d)), distributions[0])
    version = _version(installed)
    return f'pip install --force-reinstall "{installed}{f"=={version}" if version else ""}"'


def _imports() -> Iterator[Problem]:
    for module in IMPORTS:
        error = _import_error(module)
        if error is not None:
            optional = module in OPTIONAL
            yield Problem(
                f'{module} is installed and cannot be imported: {error}',
                _import_command(module, error),
                broken=not optional,
            )


def _mmcv_operators() -> Iterator[Problem]:
    state, mode = mmcv_ops.in_use(), os.environ.get(mmcv_ops.ENV_VAR, 'auto')
    if mode not in mmcv_ops.MODES:
        yield Problem(f'{mmcv_ops.ENV_VAR}={mode!r} is none of {mmcv_ops.MODES}', f'unset {mmcv_ops.ENV_VAR}')
    if state == 'compiled':
        error = _import_error('mmcv._ext')
        if error is not None:
            yield Problem(
                f"mmcv's compiled operators cannot be loaded (built for another torch?): {error}",
                mmcv_ops.build_commands(),
            )
    elif state == 'none' and mode == 'off':
        yield Problem(
            f'mmcv has no compiled operators, and {mmcv_ops.ENV_VAR}=off keeps the stand-in out',
            f'unset {mmcv_ops.ENV_VAR}',
        )


def _gpu() -> Iterator[Problem]:
    torch = sys.modules.get('torch')
    if torch is None or not hasattr(torch, 'cuda') or not _nvidia_driver() or torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        yield Problem(
            f'this machine has an NVIDIA driver, and torch {torch.__version__} is built for the CPU',
            'pip install --force-reinstall torch torchvision    (see https://pytorch.org for your CUDA)',
            broken=False,
        )
    else:
        hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
        why = f'is it older than CUDA {torch.version.cuda}?' if hidden is None else f'CUDA_VISIBLE_DEVICES={hidden!r}'
        yield Problem(
            f'this machine has an NVIDIA driver, and torch sees no GPU ({why})',
            'nvidia-smi' if hidden is None else 'unset CUDA_VISIBLE_DEVICES',
            broken=False,
        )


def find_problems() -> list[Problem]:
    """All that is known not to work in this environment, what is broken first."""
    found = [
        problem
        for check in (
            _missing_or_old,
            _installed_twice,
            _mmcv_range,
            _torch_pairs,
            _numpy_pairs,
            _setuptools,
            _imports,
            _mmcv_operators,
            _gpu,
        )
        for problem in check()
    ]
    return sorted(found, key=lambda p: not p.broken)


# ----------------------------------------------------------------------------------------------- report


def _ccd_implementations() -> Iterator[tuple[str, str]]:
    """What ``mmccd.ops.ccd(impl='auto')`` takes on each kind of device that is here."""
    import torch

    from mmccd.ops.backends import name_of_choice
    from mmccd.ops.options import make_options

    for device in ('cpu', *(('cuda',) if torch.cuda.is_available() else ())):
        name = name_of_choice(torch.empty(1, 1, 1, 1, device=device), make_options(1))
        yield f"mmccd.ops.ccd(impl='auto') on {device}", name


def collect_env() -> dict[str, str]:
    """What mmengine's ``collect_env`` has, and what matters to mmccd; as much of it as can be found out."""
    info = {'sys.platform': f'{sys.platform} ({platform.machine()})', 'Python': sys.version.replace('\n', '')}
    try:
        from mmengine.utils.dl_utils import collect_env as collect_base_env

        info.update((k, str(v)) for k, v in collect_base_env().items() if k != 'numpy_random_seed')
    except Exception as e:
        info["mmengine's report"] = f'none ({type(e).__name__}: {e})'
    for name in {**REQUIRED, **OPTIONAL}:
        found = _providers(name)
        info[name] = ', '.join(f'{v} ({d})' for d, v in found) or (
            'no distribution, but importable' if _can_be_found(name) else 'not installed'
        )
    for name in OTHERS:
        info[name] = _version(name) or 'not installed'
    try:
        info['mmcv operators'] = mmcv_ops.install()
    except ValueError as e:
        info['mmcv operators'] = str(e)
    try:
        info.update(_ccd_implementations())
    except Exception as e:
        info["mmccd.ops.ccd(impl='auto')"] = f'not to be had ({type(e).__name__}: {e})'
    return info


def main() -> int:
    """Print report and problems. Returns 1 if something is broken, else 0."""
    for name, value in collect_env().items():
        print(f'{name}: {value}')
    problems = find_problems()
    print()
    for problem in problems:
        print(f'{"BROKEN" if problem.broken else "warning"}: {problem.text}')
        print('  mend with:  ' + problem.command.replace('\n', '\n              '))
    if not problems:
        print('No problem found.')
    return int(any(p.broken for p in problems))


if __name__ == '__main__':
    sys.exit(main())
