"""Packages of logging backends, and logs that are JSON."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.visualization import LocalVisBackend

from mmccd.cli import logs
from mmccd.cli.arguments import run_tool
from mmccd.errors import UserError


def config(*backends: object, **changes: object) -> Config:
    cfg = dict(visualizer=dict(vis_backends=[dict(type=b) for b in backends]), default_hooks=dict(logger=None))
    return Config({**cfg, **changes})


@pytest.mark.parametrize(
    ('name', 'package'),
    [
        ('WandbVisBackend', 'wandb'),
        ('TensorboardVisBackend', 'tensorboard'),
        ('MLflowVisBackend', 'mlflow'),
        ('mmengine.ClearMLVisBackend', 'clearml'),
        ('NeptuneVisBackend', 'neptune'),
        ('DVCLiveVisBackend', 'dvclive'),
        ('AimVisBackend', 'aim'),
    ],
)
def test_backend_without_its_package(monkeypatch, name, package):
    monkeypatch.setattr(logs.util, 'find_spec', lambda found: None)
    with pytest.raises(UserError) as e:
        logs.prepare_logs(config('LocalVisBackend', name))
    assert str(e.value) == (
        f'visualizer.vis_backends.1 ({name.rpartition(".")[2]}) needs a package that is not installed: pip install '
        f'{package}'
    )
    monkeypatch.setattr(logs.util, 'find_spec', lambda found: found == package or None)
    logs.prepare_logs(config(name))


@pytest.mark.parametrize('kind', ['LocalVisBackend', 'mmengine.LocalVisBackend', LocalVisBackend])
@pytest.mark.parametrize('logger', ['LoggerHook', LoggerHook])
def test_logs_become_json(kind, logger):
    cfg = config(kind, default_hooks=dict(logger=dict(type=logger, interval=3)))
    logs.prepare_logs(cfg)
    assert cfg.visualizer.vis_backends == [dict(type='mmccd.LocalVisBackend')]
    assert cfg.default_hooks.logger == dict(type='mmccd.LoggerHook', interval=3)


def test_others_stay():
    cfg = config('OwnBackend', default_hooks=dict(logger=dict(type='OwnHook')))
    logs.prepare_logs(cfg)
    assert (cfg.visualizer.vis_backends[0].type, cfg.default_hooks.logger.type) == ('OwnBackend', 'OwnHook')
    logs.prepare_logs(Config())


def raises(error: Exception, cause: Exception | None = None):
    def main() -> None:
        raise error from cause

    return main


@pytest.mark.parametrize(
    ('error', 'cause', 'line'),
    [
        (ImportError('Please run "pip install x" to install x'), None, 'Please run "pip install x" to install x'),
        (RuntimeError('class `A` in b.py'), ImportError('pip install y'), 'pip install y'),
        (RuntimeError('Please run "pip install timm".'), None, 'Please run "pip install timm".'),  # MMPretrain's
        (
            RuntimeError('class `Albu` in b.py: albumentations is not installed'),  # MMDetection's
            None,
            'the package albumentations is needed here, and not installed: pip install albumentations',
        ),
        (
            RuntimeError('skimage is not installed, please\n   install it'),
            None,
            'the package skimage is needed here, and not installed: pip install scikit-image',
        ),
        (
            ModuleNotFoundError("No module named 'no_such.part'", name='no_such.part'),
            None,
            'the package no_such is needed here, and not installed: pip install no_such',
        ),
    ],
)
def test_package_that_is_not_installed(capsys, monkeypatch, error, cause, line):
    """One line, wherever it is imported."""
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    with pytest.raises(SystemExit, match='2'):
        run_tool(raises(error, cause))
    assert capsys.readouterr().err == f'error: {line}\n'


@pytest.mark.parametrize('error', [ImportError("cannot import name 'x' from 'torch'"), RuntimeError('x')])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_tool(raises(error))


def test_packages_that_are_called_otherwise_than_their_modules(monkeypatch):
    """``pip install sklearn`` fails."""
    monkeypatch.setattr(logs.util, 'find_spec', lambda found: None)
    for module, package in (('sklearn.svm', 'scikit-learn'), ('cv2', 'opencv-python'), ('timm', 'timm')):
        line = logs.missing_package(ModuleNotFoundError(module, name=module))
        assert line.endswith(f'not installed: pip install {package}')
