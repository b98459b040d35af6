"""The environment doctor: every pair that is known to be bad, in faked environments, and the report of this one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmccd.analysis.doctor import collect_env, installed
from mmccd.analysis.doctor import problems as doctor
from mmccd.env import OPTIONAL, REQUIRED

GOOD = {
    'torch': '2.11.0+cu130',
    'torchvision': '0.26.0',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmpretrain': '1.3.6',
    'numpy': '2.4.6',
    'packaging': '26.3',
    'setuptools': '80.9.0',
    'triton': '3.6.0',
    'opencv-python': '4.11.0.86',
    'opencv-python-headless': '4.11.0.86',
}
ORIGINAL = {
    'onedl-mmengine': None,
    'onedl-mmcv': None,
    'onedl-mmdetection': None,
    'onedl-mmpretrain': None,
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmdet': '3.3.0',
    'mmpretrain': '1.2.0',
    'numpy': '1.26.4',
}
SOURCES = {
    'mmdet': "mmcv_minimum_version = '2.0.0rc4'\nmmcv_maximum_version = '2.2.0'\nmmcv_version = digit_version('1')\n",
    'mmpretrain': "mmcv_minimum_version = '2.0.0'\nmmcv_maximum_version = '2.4.0'\n",
}


@pytest.fixture
def problems(monkeypatch):
    """``find_problems`` in an environment that differs from a good one: versions, failing imports, sources, ..."""

    def find(
        versions=(),
        imports=(),
        sources=(),
        operators='replacement',
        driver=False,
        driver_version=(580, 95, 5),
        compiler='/usr/bin/gcc',
        headers=True,
        pairs=('==2.11.0', '==3.6.0'),
    ):
        there = {**GOOD, **dict(versions)}
        required = {
            'torchvision': ['numpy', f'torch ({pairs[0]})', "scipy ; extra == 'scipy'"],
            'torch': [f'triton{pairs[1]}; platform_system == "Linux"'],
        }
        names = {n for n, (_, ds) in {**REQUIRED, **OPTIONAL}.items() if any(there.get(d) for d in ds)}
        monkeypatch.setattr(installed, 'version', there.get)
        monkeypatch.setattr(installed, 'requires', lambda d: required.get(d, []))
        monkeypatch.setattr(installed, 'can_be_found', lambda m: m in names)
        monkeypatch.setattr(installed, 'import_error', dict(imports).get)
        monkeypatch.setattr(installed, 'source', lambda m: dict(sources).get(m, ''))
        # The original mmengine alone imports pkg_resources.
        mentions = {('mmengine', 'pkg_resources')} if there.get('mmengine') else set()
        monkeypatch.setattr(installed, 'mentions', lambda m, text: (m, text) in mentions)
        monkeypatch.setattr(installed, 'python_headers', lambda: headers)
        monkeypatch.setattr(installed, 'nvidia_driver', lambda: driver)
        monkeypatch.setattr(installed, 'nvidia_driver_version', lambda: driver_version if driver else ())
        monkeypatch.setattr(doctor, 'c_compiler', lambda: compiler)
        monkeypatch.setattr(doctor.mmcv_ops, 'in_use', lambda: operators)
        return doctor.find_problems()

    return find


# What pip installs without pins on Python 3.13, where venv brings no setuptools.
NEWEST = {
    'torch': '2.15.0+cu130',
    'torchvision': '0.29.2',
    'triton': '3.9.0',
    'setuptools': '84.2.1',
}


@pytest.mark.parametrize('versions', [{}, ORIGINAL], ids=['maintained', 'original'])
def test_good_environments(problems, versions):
    assert problems(versions, sources=SOURCES if versions else {}) == []


@pytest.mark.parametrize('setuptools', ['84.2.1', None])
def test_newest_environments(problems, setuptools):
    """torchvision 0.29.2 takes torch 2.14 and newer, and torch 2.15 any triton 3.9."""
    pairs = ('>=2.14.0', '~=3.9.0')
    assert problems({**NEWEST, 'setuptools': setuptools}, pairs=pairs) == []
    [problem] = problems({**NEWEST, 'torch': '2.11.0'}, pairs=pairs)
    assert problem.text == 'torchvision 0.29.2 needs torch 2.14.0 or newer, and torch 2.11.0 is installed'
    assert problem.command == 'pip install "torchvision==0.26.0"'
    [problem] = problems({**NEWEST, 'torchvision': '0.26.0'}, pairs=('==2.11.0', '~=3.9.0'))
    assert problem.command == 'pip install "torchvision>=0.29.2"'


@pytest.mark.parametrize(
    ('fake', 'text', 'command', 'broken'),
    [
        (
            dict(versions={'onedl-mmdetection': None}),
            'mmdet is not installed',
            'pip install "onedl-mmdetection>=3.3.0"',
            True,
        ),
        (
            dict(versions={'onedl-mmpretrain': None}),
            'mmpretrain is not installed (classification needs it)',
            'pip install "onedl-mmpretrain>=1.2.0"',
            False,
        ),
        (dict(versions={'packaging': None}), 'packaging is not installed', 'pip install packaging', True),
        (
            dict(versions={'torchvision': '0.20.1'}),
            'torchvision 0.20.1 is too old, 0.21.0 is the oldest that works',
            'pip install "torchvision>=0.21.0"',
            True,
        ),
        (
            dict(versions={'mmcv': '2.1.0'}),
            'onedl-mmcv 2.3.6 and mmcv 2.1.0 share the folder mmcv/',
            'pip uninstall -y onedl-mmcv mmcv && pip install --no-deps "onedl-mmcv==2.3.6"',
            True,
        ),
        (
            dict(versions={'mmengine': '0.10.7'}),
            'onedl-mmengine 0.10.12 and mmengine 0.10.7 share the folder mmengine/',
            'pip uninstall -y onedl-mmengine mmengine && pip install --no-deps "onedl-mmengine==0.10.12"',
            True,
        ),
        (
            dict(versions={**ORIGINAL, 'mmcv-lite': '2.2.0'}, sources=SOURCES),
            'mmdet 3.3.0 accepts mmcv from 2.0.0rc4 to below 2.2.0, and mmcv-lite 2.2.0 is installed',
            'pip install "mmcv-lite>=2.0.0rc4,<2.2.0"',
            True,
        ),
        (
            dict(versions={'torch': '2.10.1'}),
            'torchvision 0.26.0 is built for torch 2.11.0, and torch 2.10.1 is installed',
            'pip install "torchvision==0.25.1"',
            True,
        ),
        (
            dict(versions={'triton': '3.2.0'}),
            'torch 2.11.0+cu130 needs triton 3.6.0, and triton 3.2.0 is installed',
            'pip install "triton==3.6.0"',
            False,
        ),
        (
            dict(versions={**ORIGINAL, 'numpy': '2.0.0'}, sources=SOURCES),
            'mmcv-lite 2.1.0 was built before numpy 2, and numpy 2.0.0 is installed',
            'pip install "numpy<2"',
            True,
        ),
        (
            dict(versions={**ORIGINAL, 'setuptools': '82.0.0'}, sources=SOURCES),
            'setuptools 82.0.0 has no pkg_resources, which mmengine 0.10.7 imports',
            'pip install "setuptools>=80,<82"',
            True,
        ),
        (
            dict(versions={'opencv-python': '4.13.0.92', 'opencv-python-headless': '4.13.0.92'}),
            'opencv-python-headless 4.13.0.92 turns WebP images by their EXIF orientation',
            'pip install "opencv-python-headless<4.13"',
            False,
        ),
        (
            dict(versions={'opencv-python': '5.0.0.93', 'opencv-python-headless': '4.12.0.88'}),
            'opencv-python 5.0.0.93 turns WebP images',
            'pip install "opencv-python<4.13"',
            False,
        ),
        (
            dict(imports={'cv2': 'ImportError: libGL.so.1: cannot open shared object file'}),
            'cv2 is installed and cannot be imported: ImportError: libGL.so.1',
            'pip install --force-reinstall --no-deps "opencv-python-headless==4.11.0.86"',
            True,
        ),
        (
            dict(
                imports={
                    'pycocotools._mask': 'ValueError: numpy.dtype size changed, may indicate binary incompatibility'
                }
            ),
            'pycocotools._mask is installed and cannot be imported',
            'pip install --force-reinstall --no-cache-dir --no-deps pycocotools',
            True,
        ),
        (
            dict(imports={'numba': 'ImportError: Numba needs NumPy 2.3 or less. Got NumPy 2.4.'}),
            'numba is installed and cannot be imported',
            'pip install --upgrade numba ',
            True,
        ),
        (
            dict(imports={'mmdet': 'SyntaxError: invalid syntax'}),
            'mmdet is installed and cannot be imported',
            'pip install --force-reinstall "onedl-mmdetection==3.5.1"',
            True,
        ),
        (
            dict(imports={'mmcv._ext': 'ImportError: undefined symbol: _ZN2at4_ops'}, operators='compiled'),
            "mmcv's compiled operators cannot be loaded (built for another torch?)",
            'pip install "setuptools>=80,<82" wheel packaging\n',
            True,
        ),
    ],
)
def test_known_bad_pairs(problems, fake, text, command, broken):
    [problem] = problems(**fake)
    assert problem.text.startswith(text)
    assert problem.command.startswith(command)
    assert problem.broken is broken


def test_torch_that_is_too_old(problems):
    """Then torchvision, which is built for a newer one, does not fit either."""
    old, pair = problems({'torch': '2.5.1'})
    assert old == ('torch 2.5.1 is too old, 2.6.0 is the oldest that works', 'pip install "torch>=2.6.0"', True)
    assert pair.command == 'pip install "torchvision==0.20.1"'


@pytest.mark.parametrize(
    ('mode', 'texts'),
    [
        ('off', ['mmcv has no compiled operators, and MMCCD_MMCV_OPS=off disables the replacement']),
        ('no', ["MMCCD_MMCV_OPS='no' is none of ('auto', 'off')"]),
    ],
)
def test_switched_off_operators(problems, monkeypatch, mode, texts):
    monkeypatch.setenv('MMCCD_MMCV_OPS', mode)
    found = problems(operators='none')
    assert [p.text for p in found] == texts
    assert found[0].command == 'unset MMCCD_MMCV_OPS'


@pytest.mark.parametrize(
    ('cuda', 'hidden', 'text', 'command'),
    [
        (None, None, 'is built for the CPU', 'pip install --force-reinstall torch torchvision'),
        ('13.0', None, 'is it older than CUDA 13.0?', 'nvidia-smi'),
        ('13.0', '', "CUDA_VISIBLE_DEVICES=''", 'unset CUDA_VISIBLE_DEVICES'),
    ],
)
def test_gpu_that_torch_does_not_see(problems, monkeypatch, cuda, hidden, text, command):
    import torch

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if hidden is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    [problem] = problems(driver=True)
    assert text in problem.text
    assert problem.command.startswith(command)
    assert not problem.broken
    assert problems(driver=False) == []


@pytest.mark.parametrize(
    ('cuda', 'fake', 'capability', 'text', 'command', 'broken'),
    [
        ('13.0', dict(driver_version=(570, 86, 10)), (9, 0), 'needs driver 580 or newer', 'whl/cu126', True),
        ('13.0', {}, (7, 0), '(sm_70) is older', 'whl/cu126', True),
        ('12.6', dict(driver_version=(470, 82)), (7, 0), 'needs driver 525 or newer', 'a newer driver', True),
        ('13.0', dict(compiler=None), (9, 0), 'C compiler', 'apt-get install -y gcc libc6-dev', False),
        (
            '12.8',
            dict(headers=False),
            (9, 0),
            'no Python.h',
            f'apt-get install -y python{sys.version_info[0]}.{sys.version_info[1]}-dev',
            False,
        ),
    ],
)
def test_gpu_that_does_not_fit(problems, monkeypatch, cuda, fake, capability, text, command, broken):
    import torch

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda _: 'A card')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: capability)
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    [problem] = problems(driver=True, **fake)
    assert text in problem.text and command in problem.command and problem.broken is broken
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (7, 5))
    assert problems(driver=True) == []
    monkeypatch.setattr(torch.version, 'cuda', '12.6')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (7, 0))
    assert problems(driver=True, driver_version=(560, 35)) == []


def test_driver_version(monkeypatch, tmp_path):
    file = tmp_path / 'version'
    monkeypatch.setattr(installed, 'Path', lambda _: file)
    assert installed.nvidia_driver_version() == ()
    file.write_text(
        'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x)\nGCC 12.2.0\n'
    )
    assert installed.nvidia_driver_version() == (580, 95, 5)


def test_environment_that_names_no_backend(problems, monkeypatch):
    monkeypatch.setenv('MMCCD_CCD_IMPL', 'numpy')
    import mmccd.ops  # noqa: F401

    [problem] = problems()
    assert "'numpy'" in problem.text and problem.command == 'unset MMCCD_CCD_IMPL'


def test_what_is_broken_comes_first(problems):
    found = problems({'onedl-mmpretrain': None, 'triton': '3.2.0', 'packaging': None})
    assert [p.broken for p in found] == [True, False, False]


def test_exit_codes_and_output(monkeypatch, capsys):
    monkeypatch.setattr(collect_env, 'collect_env', lambda: {'Python': '3.11'})
    bad, warning = doctor.Problem('a', 'do\nthis'), doctor.Problem('b', 'do that', broken=False)
    for found, code, last in (
        ([], 0, 'No problem found.'),
        ([warning], 0, '  fix with:  do that'),
        ([bad, warning], 1, '  fix with:  do that'),
    ):
        monkeypatch.setattr(collect_env, 'find_problems', lambda found=found: found)
        assert collect_env.main() == code
        lines = capsys.readouterr().out.splitlines()
        assert (lines[0], lines[-1]) == ('Python: 3.11', last)
    assert lines[2:5] == ['BROKEN: a', '  fix with:  do', '             this']


def test_versions_are_compared_as_numbers():
    assert installed.release('2.11.0+cu130') == (2, 11, 0) > installed.release('2.6.0')
    assert installed.release('3.0.0rc1') == (3, 0, 0)
    assert installed.release(None) == ()
    assert installed.matching_torchvision((2, 6, 0)) == 'torchvision==0.21.0'


@pytest.mark.slow
def test_report_of_this_environment(root):
    """As a user runs it; this environment trains and tests, so nothing in it may be called broken."""
    done = subprocess.run(
        [sys.executable, '-m', 'mmccd.analysis.doctor.collect_env'],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)
    assert report['mmcv operators'] in ('replacement', 'compiled')
    assert report["mmccd.ops.ccd(impl='auto') on cpu"] in ('cpu', 'torch')
    assert {'PyTorch', 'CUDA available', 'torch', 'mmdet', 'numpy', 'numba', 'triton'} <= set(report)


@pytest.mark.slow
def test_check_env_without_torch_mmcv_and_mmdet(root, tmp_path):
    """Where `import mmccd` raises, the tool reports instead; nothing is installed here but the standard library."""
    assert subprocess.run([sys.executable, '-S', '-c', 'import mmccd'], cwd=root, capture_output=True).returncode == 1
    done = subprocess.run(
        [sys.executable, '-S', root / 'tools/checks/check_env.py'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ''
    for name, command in (
        ('torch', 'torch>=2.6.0'),
        ('mmcv', 'onedl-mmcv>=2.1.0'),
        ('mmdet', 'onedl-mmdetection>=3.3.0'),
        ('mmengine', 'onedl-mmengine>=0.10.7'),
    ):
        assert f'BROKEN: {name} is not installed\n  fix with:  pip install "{command}"\n' in done.stdout
    assert 'BROKEN: packaging is not installed\n  fix with:  pip install packaging\n' in done.stdout
