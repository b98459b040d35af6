"""Combinations of packages that are known not to work together, and the command that fixes each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from mmccd.compat import mmcv_ops
from mmccd.env import OPTIONAL, REQUIRED, c_compiler

from . import installed
from .installed import matching_torchvision, release

# Imported to see whether that works; the order is that of the report.
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
TURNS_WEBP = (4, 13)
# What the default wheels of PyTorch, which are built for CUDA 13, need of the card.
CUDA_13_CAPABILITY = (7, 5)
OLDER_CARDS = 'pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126'
# CUDA that torch is built for: the oldest driver, and what to do with an older one.
DRIVERS = {(13,): ((580,), OLDER_CARDS), (12,): ((525,), 'nvidia-smi    (then install a newer driver)')}


class Problem(NamedTuple):
    """Packages that do not work together.

    Attributes:
        text (str): What is wrong, in one line.
        command (str): What fixes it, to be typed as it is.
        broken (bool): Whether training or testing fails; otherwise it is a warning.
    """

    text: str
    command: str
    broken: bool = True


def _missing_or_old() -> Iterator[Problem]:
    for name, (oldest, distributions) in {**REQUIRED, **OPTIONAL}.items():
        found = installed.providers(name)
        if not found and not installed.can_be_found(name):
            use = '' if name in REQUIRED else ' (classification needs it)'
            yield Problem(
                f'{name} is not installed{use}', f'pip install "{distributions[0]}>={oldest}"', name in REQUIRED
            )
        elif found and release(found[0][1]) < release(oldest):
            yield Problem(
                f'{found[0][0]} {found[0][1]} is too old, {oldest} is the oldest that works',
                f'pip install "{found[0][0]}>={oldest}"',
            )
    for name in ('numpy', 'packaging'):
        if installed.version(name) is None and not installed.can_be_found(name):
            yield Problem(f'{name} is not installed', f'pip install {name}')


def _installed_twice() -> Iterator[Problem]:
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain'):
        found = installed.providers(name)
        if len(found) > 1:
            listed = ' and '.join(f'{d} {v}' for d, v in found)
            yield Problem(
                f'{listed} share the folder {name}/, each with files of the other',
                f'pip uninstall -y {" ".join(d for d, _ in found)} && pip install --no-deps "{"==".join(found[0])}"',
            )


def _mmcv_range() -> Iterator[Problem]:
    """mmdet and mmpretrain say in their ``__init__.py`` which versions of mmcv they accept."""
    mmcv = installed.providers('mmcv')
    for name in ('mmdet', 'mmpretrain'):
        bounds = dict(re.findall(r"^mmcv_(minimum|maximum)_version = '([^']+)'", installed.source(name), re.MULTILINE))
        if not mmcv or len(bounds) < 2:
            continue
        low, high = bounds['minimum'], bounds['maximum']
        if not release(low) <= release(mmcv[0][1]) < release(high):
            who = ' '.join(installed.providers(name)[0]) if installed.providers(name) else name
            yield Problem(
                f'{who} accepts mmcv from {low} to below {high}, and {" ".join(mmcv[0])} is installed',
                f'pip install "{mmcv[0][0]}>={low},<{high}"',
            )


def _torch_pairs() -> Iterator[Problem]:
    torch, torchvision = installed.version('torch'), installed.version('torchvision')
    wanted = installed.pinned('torchvision', 'torch')
    if torch and torchvision and wanted and release(wanted) != release(torch):
        yield Problem(
            f'torchvision {torchvision} is built for torch {wanted}, and torch {torch} is installed',
            f'pip install "{matching_torchvision(release(torch))}"',
        )
    oldest = installed.oldest('torchvision', 'torch')
    if torch and torchvision and oldest and release(torch) < release(oldest):
        yield Problem(
            f'torchvision {torchvision} needs torch {oldest} or newer, and torch {torch} is installed',
            f'pip install "{matching_torchvision(release(torch))}"',
        )
    triton, wanted = installed.version('triton'), installed.pinned('torch', 'triton')
    if triton and wanted and release(wanted) != release(triton):
        yield Problem(
            f'torch {torch} needs triton {wanted}, and triton {triton} is installed',
            f'pip install "triton=={wanted}"',
            broken=False,
        )


def _numpy_pairs() -> Iterator[Problem]:
    mmcv = installed.providers('mmcv')
    if release(installed.version('numpy')) >= (2,) and mmcv and release(mmcv[0][1]) < (2, 2):
        yield Problem(
            f'{" ".join(mmcv[0])} was built before numpy 2, and numpy {installed.version("numpy")} is installed',
            'pip install "numpy<2"',
        )


def _opencv() -> Iterator[Problem]:
    """OpenCV 4.13 decodes WebP differently: measured on an image with orientation 6, 4.12 leaves it as it is stored."""
    for name in ('opencv-python-headless', 'opencv-python'):
        version = installed.version(name)
        if release(version) >= TURNS_WEBP:
            yield Problem(
                f'{name} {version} turns WebP images by their EXIF orientation, as 4.12 and older do not: boxes that '
                'were drawn, or learnt, without that lie elsewhere',
                f'pip install "{name}<4.13"',
                broken=False,
            )
            return


def _setuptools() -> Iterator[Problem]:
    """mmengine 0.10.7 imports pkg_resources; onedl-mmengine does not, and a build of mmcv gets its own setuptools."""
    version = installed.version('setuptools')
    if version and release(version) >= FIRST_BAD_SETUPTOOLS and installed.mentions('mmengine', 'pkg_resources'):
        who = ' '.join((*installed.providers('mmengine'), ('mmengine',))[0])
        yield Problem(
            f'setuptools {version} has no pkg_resources, which {who} imports',
            'pip install "setuptools>=80,<82"',
        )


def _import_command(module: str, error: str) -> str:
    """What fixes a package that is installed and cannot be imported."""
    if module == 'cv2':
        version = installed.version('opencv-python-headless') or installed.version('opencv-python') or '4.11.0.86'
        return f'pip install --force-reinstall --no-deps "opencv-python-headless=={version}"'
    if module == 'numba':
        return 'pip install --upgrade numba    (or: pip uninstall numba, and CCD runs on stock operators)'
    if 'numpy.dtype size changed' in error or '_ARRAY_API' in error or 'compiled using NumPy 1' in error:
        return f'pip install --force-reinstall --no-cache-dir --no-deps {module.partition(".")[0]}'
    distributions = {**REQUIRED, **OPTIONAL}.get(module, (None, (module.partition('.')[0],)))[1]
    found = next((d for d in distributions if installed.version(d)), distributions[0])
    version = installed.version(found)
    return f'pip install --force-reinstall "{found}{f"=={version}" if version else ""}"'


def _imports() -> Iterator[Problem]:
    for module in IMPORTS:
        error = installed.import_error(module)
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
        error = installed.import_error('mmcv._ext')
        if error is not None:
            yield Problem(
                f"mmcv's compiled operators cannot be loaded (built for another torch?): {error}",
                mmcv_ops.build_commands(),
            )
    elif state == 'none' and mode == 'off':
        yield Problem(
            f'mmcv has no compiled operators, and {mmcv_ops.ENV_VAR}=off disables the replacement',
            f'unset {mmcv_ops.ENV_VAR}',
        )


def _ccd_backend() -> Iterator[Problem]:
    torch, backends = sys.modules.get('torch'), sys.modules.get('mmccd.ops.backends')
    if torch is None or backends is None:
        return
    try:
        backends.wanted_impl('auto')
    except ValueError as e:
        yield Problem(str(e), f'unset {backends.ENV_VAR}')


def _gpu() -> Iterator[Problem]:
    torch = sys.modules.get('torch')
    if torch is None or not hasattr(torch, 'cuda') or not installed.nvidia_driver():
        return
    if torch.version.cuda is not None and c_compiler() is None:
        yield Problem(
            'Triton, and with it torch.compile, needs a C compiler, and this machine has neither gcc nor clang',
            'apt-get install -y gcc libc6-dev',
            broken=False,
        )
    elif torch.version.cuda is not None and not installed.python_headers():
        yield Problem(
            f"Triton, and with it torch.compile, needs Python's headers, and {sys.executable} has no Python.h",
            f'apt-get install -y python{sys.version_info[0]}.{sys.version_info[1]}-dev',
            broken=False,
        )
    driver, cuda = installed.nvidia_driver_version(), release(torch.version.cuda)
    oldest, command = DRIVERS.get(cuda[:1], ((), ''))
    if driver and driver < oldest:
        yield Problem(
            f'torch {torch.__version__} is built for CUDA {torch.version.cuda}, which needs driver {oldest[0]} or '
            f'newer, and this machine has {".".join(map(str, driver))}',
            command,
        )
        return
    if torch.cuda.is_available():
        if cuda >= (13,):
            for index in range(torch.cuda.device_count()):
                capability = torch.cuda.get_device_capability(index)
                if capability < CUDA_13_CAPABILITY:
                    yield Problem(
                        f'{torch.cuda.get_device_name(index)} (sm_{"".join(map(str, capability))}) is older than what '
                        f'torch {torch.__version__} is built for, sm_75 and newer',
                        OLDER_CARDS,
                    )
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
    """All known problems of this environment, what is broken first."""
    found = [
        problem
        for check in (
            _missing_or_old,
            _installed_twice,
            _mmcv_range,
            _torch_pairs,
            _numpy_pairs,
            _opencv,
            _setuptools,
            _imports,
            _mmcv_operators,
            _ccd_backend,
            _gpu,
        )
        for problem in check()
    ]
    return sorted(found, key=lambda p: not p.broken)
