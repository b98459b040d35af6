"""Windows and macOS, as far as Linux can play them: what they lack is taken away from Python."""

import io
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mmccd
from mmccd.configs import _find_configs

SCRIPT = Path(__file__).parent / 'other_platform.py'
CONFIG = 'ccd_r18_digits'
OPTIONS = [
    'train_dataloader.batch_size=16',
    'train_cfg.max_epochs=1',
    'model.backbone.base_channels=8',
    'model.backbone.attention.groups=8',
    'model.head.in_channels=64',
    'env_cfg.mp_cfg.mp_start_method=spawn',  # mmengine itself does this where there is no fork
]


def run(system, *args, cwd, env, expect=0):
    done = subprocess.run(
        [sys.executable, SCRIPT, system, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.long
@pytest.mark.parametrize('system', ['windows', 'macos'])
def test_everything_can_be_imported(system, root, cpu_env):
    done = run(system, 'import', cwd=root, env=cpu_env)
    assert done.stdout.splitlines()[-1] == f'{len(list(pkgutil.walk_packages(mmccd.__path__, "mmccd.")))} modules'


@pytest.mark.long
@pytest.mark.parametrize('system', ['windows', 'macos'])
def test_training_with_workers(system, root, workplace, cpu_env):
    """An epoch, a validation and a checkpoint, with a worker that is spawned; Ctrl-C would save here as well."""
    run(
        system,
        root / 'tools' / 'train.py',
        root / 'configs' / f'{CONFIG}.py',
        '--cfg-options',
        *OPTIONS,
        cwd=workplace,
        env=cpu_env,
    )
    folder = workplace / 'work_dirs' / CONFIG
    assert (folder / 'epoch_1.pth').is_file()
    [log] = folder.glob('*/*.log')
    assert 'accuracy/top1' in log.read_text()


def test_signals_that_a_system_has(monkeypatch):
    from mmccd.engine.hooks import interrupt

    assert interrupt.SIGNALS == (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT) == interrupt.InterruptHook.signals


def test_demo_on_a_system_without_fork(tmp_path, monkeypatch):
    """No function to run before the program, which Windows refuses; a training that saves on Ctrl-C has saved."""
    from mmccd.cli import demo

    class Process:
        stdout = io.StringIO('')
        code = None
        started = None

        def __init__(self, command, preexec_fn, **options):
            Process.started = preexec_fn

        def wait(self):
            if self.code is None:
                Process.code = 130
                raise KeyboardInterrupt
            return self.code

        poll = wait

    monkeypatch.delattr(demo.os, 'fork')
    monkeypatch.setattr(demo.subprocess, 'Popen', Process)
    with pytest.raises(demo.Interrupted) as e:
        demo.run(str(tmp_path / 'log'), 'train.py')
    assert (Process.started, e.value.code, e.value.saved) == (None, 130, True)
    Process.code = None
    with pytest.raises(demo.Interrupted) as e:
        demo.run(str(tmp_path / 'log'), 'test.py')
    assert not e.value.saved


def test_configs_of_a_checkout_without_links(tmp_path):
    """Where git writes a link as a file with its target in it."""
    package = tmp_path / 'mmccd'
    (package / '.mim').mkdir(parents=True)
    (package / '.mim' / 'configs').write_text('../../configs')
    assert _find_configs(package) == tmp_path / 'configs'
    assert _find_configs(Path(mmccd.__file__).parent) == Path(mmccd.__file__).parent / '.mim' / 'configs'
