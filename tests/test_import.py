import subprocess
import sys
from importlib import metadata

import pytest

from mmccd import env as requirements


def run(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)


def test_import_is_light_and_touches_no_device():
    heavy = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'numba', 'triton', 'cv2')
    out = run(f'import sys, mmccd; print([m for m in {heavy} if m in sys.modules])')
    assert out.stdout.strip() == '[]', out.stdout + out.stderr


@pytest.mark.long
def test_models_import_without_triton_and_cuda():
    out = run(
        'import sys; sys.modules["triton"] = None\n'
        'import mmccd.models, torch\n'
        'print(torch.cuda.is_initialized(), mmccd.models.CCD(64)(torch.ones(1, 64, 2, 2)).shape)'
    )
    assert out.stdout.strip().endswith('False torch.Size([1, 64, 2, 2])'), out.stderr


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'mmdet': None}, r'mmdet is not installed: pip install "onedl-mmdetection>=3\.3\.0"'),
        ({'mmengine': '0.8.0'}, r'mmengine is too old \(\S+ 0\.8\.0, needed is 0\.10\.7 or newer\)'),
        ({'torch': '1.13.1+cpu', 'mmcv': None}, r'torch is too old .*\n.*mmcv is not installed'),
    ],
)
def test_says_what_is_missing_or_too_old(monkeypatch, changes, message):
    real, find = metadata.version, requirements.util.find_spec
    owner = {d: name for name, (_, ds) in requirements.REQUIRED.items() for d in ds}

    def version(distribution):
        name = owner.get(distribution)
        if name in changes:
            if changes[name] is None:
                raise metadata.PackageNotFoundError(distribution)
            return changes[name]
        return real(distribution)

    monkeypatch.setattr(requirements.metadata, 'version', version)
    monkeypatch.setattr(requirements.util, 'find_spec', lambda n: None if changes.get(n, '') is None else find(n))
    with pytest.raises(ImportError, match=f'(?s){message}'):
        requirements.check_requirements()


def test_this_environment_is_complete():
    requirements.check_requirements('mmpretrain')
    assert requirements.installed_distribution('mmdet')[0] in ('mmdet', 'onedl-mmdetection')
