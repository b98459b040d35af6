"""The wheel and the source archive, and what mim, MMPretrain's hub and a user find in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import mmccd
from mmccd.cli import config_table

# What a build starts from, as git has it: nothing that lies about in a checkout.
SOURCES = ('mmccd', 'configs', 'tools', 'zoo', 'tests', 'model-index.yml', 'pyproject.toml', 'README.md', 'LICENSE')
BUILD = [
    sys.executable,
    '-c',
    'import sys\nfrom setuptools import build_meta\nprint(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]))',
]
EXCLUDED = tuple(f'tools/{folder}/{name}.py' for folder in ('demo', 'misc') for name in ('demo', 'demo_trees'))
EXCLUDED += ('tools/demo/predict.py',)


@pytest.fixture(scope='module')
def entries(root):
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    assert index == dict(Import=['configs/metafile.yml'])
    return yaml.safe_load((root / 'configs' / 'metafile.yml').read_text())


def test_every_config_is_in_the_metafile(root, entries):
    assert [e['Name'] for e in entries['Models']] == mmccd.list_configs()
    collections = {c['Name'] for c in entries['Collections']}
    types = {a.name: a.type for a in config_table.ATTENTIONS}
    detectors = ['retinanet', 'cascade_rcnn', *(s.name.partition('_{}')[0] for s in config_table.STOCK)]
    for entry in entries['Models']:
        name = entry['Name']
        assert (root / entry['Config']).is_file() and entry['Config'] == f'configs/{name}.py'
        assert 'Weights' not in entry, 'published weights: say so in the head of metafile.yml, and test them'
        # The names tell attention, task and data: test_configs.py holds the configs to them.
        detector, attention, dataset = re.fullmatch(
            rf'(?:({"|".join(detectors)})_)?(?:({"|".join(types)})[-a-z0-9]*_)?[rx]\d+.*_([a-z0-9]+)', name
        ).groups()
        assert entry['In Collection'] in collections
        assert entry['In Collection'] == {None: 'ResNet', **types}[attention]
        tasks = ['Object Detection'] if detector else ['Image Classification']
        tasks += ['Instance Segmentation'] if detector == 'mask_rcnn' else []
        assert [result['Task'] for result in entry['Results']] == tasks
        for result in entry['Results']:
            assert result['Dataset'] == {'in1k': 'ImageNet-1k', 'coco': 'COCO'}.get(dataset, dataset)


def test_metrics_are_the_authors_as_in_the_readme(root, entries):
    published = {}
    for line in (root / 'README.md').read_text().splitlines():
        link = re.search(r'\[(\w+)\]\(configs/\1\.py\)', line)
        if link and line.startswith('|'):
            published[link[1]] = re.findall(r'\| \**(\d\d\.\d+)\** (?=\|)', line)
    found = {}
    for entry in entries['Models']:
        metrics = entry['Results'][0]['Metrics']
        assert all(key.endswith(' (authors)') for key in metrics)
        if metrics:
            found[entry['Name']] = [f'{value:.{1 if "AP" in key else 2}f}' for key, value in metrics.items()]
    assert len(found) == 13
    assert found == published


def pins(root, name):
    """Distribution -> version of a requirements file, without the file that it starts from, for this Python."""
    return pins_of(root, name, f'{sys.version_info[0]}.{sys.version_info[1]}')


def pins_of(root, name, python):
    """The same for any Python."""
    lines = [line for line in (root / name).read_text().splitlines() if line and not line.startswith(('#', '-r '))]
    environment = dict(python_version=python, python_full_version=f'{python}.0')
    wanted = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate(environment)]
    found = {r.name: str(r.specifier).removeprefix('==') for r in wanted}
    assert len(found) == len(wanted)
    return found


@pytest.mark.parametrize('name', ['requirements.txt', 'requirements-test.txt'])
def test_every_python_gets_the_same_packages(root, name):
    """One pin of each; what differs are versions that older Pythons lack, and packages that they need besides."""
    newest = pins_of(root, name, '3.13')
    assert all(re.fullmatch(r'[\w.]+', version) for version in newest.values())
    assert pins_of(root, name, '3.11') == pins_of(root, name, '3.12') == newest
    oldest = pins_of(root, name, '3.10')
    assert set(newest) - set(oldest) <= {'lazy-importer'}
    assert set(oldest) - set(newest) <= {'coloredlogs', 'exceptiongroup', 'humanfriendly', 'pytz', 'tomli'}
    for package in ('torch', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmpretrain'):
        assert oldest.get(package) == newest.get(package)


def test_pythons_that_are_supported(root):
    """requires-python, the Makefile and the classifiers say the same."""
    tomllib = pytest.importorskip('tomllib')  # Python 3.11
    project = tomllib.loads((root / 'pyproject.toml').read_text())['project']
    assert project['requires-python'] == '>=3.10'
    minors = {c.rpartition(':: ')[2] for c in project['classifiers'] if 'Python :: 3.' in c}
    assert minors == {'3.10', '3.11', '3.12', '3.13'}
    assert '(3, 10) <= sys.version_info[:2] <= (3, 13)' in (root / 'Makefile').read_text()


def test_make_finds_a_python(root, tmp_path):
    """The first that fits; none is one line that says what to install; PYTHON names one."""
    if shutil.which('make') is None:
        pytest.skip('no make here')
    for name, script in (('python3.11', 'exit 1'), ('python3.12', f'exec {sys.executable} "$@"')):
        (tmp_path / name).write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / name).chmod(0o755)
    env = dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    target = ('env', f'VENV={tmp_path}/venv')
    assert 'python3.12 -m venv' in run('make', '-n', *target, cwd=root, **env)
    assert 'python3.7 -m venv' in run('make', '-n', *target, 'PYTHON=python3.7', cwd=root, **env)
    for python, message in (('', 'error: no Python 3.10 to 3.13 with venv found: install'), ('false', 'false is not')):
        done = subprocess.run(
            ['make', *target, f'PYTHON={python}'], cwd=root, capture_output=True, text=True, env={**os.environ, **env}
        )
        assert done.returncode == 2
        [line] = [line for line in done.stderr.splitlines() if not line.startswith('make')]
        assert message in line
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize('name', ['requirements', 'requirements-openmmlab'])
def test_what_runs_needs_nothing_of_what_tests(root, name):
    run, test = pins(root, f'{name}.txt'), pins(root, f'{name}-test.txt')
    assert f'-r {name}.txt' in (root / f'{name}-test.txt').read_text().splitlines()
    assert not set(run) & set(test)
    assert {'pytest', 'pytest-xdist', 'hypothesis'} <= set(test)
    assert not set(run) & {'pytest', 'hypothesis', 'playwright', 'ruff', 'mypy', 'Sphinx'}
    if name == 'requirements':
        tomllib = pytest.importorskip('tomllib')  # Python 3.11
        extras = tomllib.loads((root / 'pyproject.toml').read_text())['project']['optional-dependencies']
        assert set(extras.pop('dev')) <= set(test)
        assert {package for packages in extras.values() for package in packages} <= set(run)


@pytest.mark.parametrize(
    ('target', 'files'),
    [
        ('demo', ['requirements.txt']),
        ('test', ['requirements.txt', 'requirements-test.txt']),
        ('lint', ['requirements.txt', 'requirements-test.txt']),
        ('docs', ['requirements.txt', 'docs/requirements.txt']),
    ],
)
def test_a_target_installs_what_it_needs(root, tmp_path, target, files):
    if shutil.which('make') is None:
        pytest.skip('no make here')
    planned = run('make', '-n', target, f'VENV={tmp_path}/venv', cwd=root)
    assert re.findall(r'-r (\S+)', planned) == files


def test_links_of_the_checkout(root):
    mim = root / 'mmccd' / '.mim'
    assert {p.name: p.resolve() for p in mim.iterdir()} == {
        name: root / name for name in ('configs', 'tools', 'zoo', 'model-index.yml')
    }
    assert all(p.is_symlink() and not Path(os.readlink(p)).is_absolute() for p in mim.iterdir())


def test_mmpretrains_hub_and_mmengine_read_the_index(root, monkeypatch):
    from mmengine.config.utils import _get_cfg_metainfo
    from mmpretrain.apis import ModelHub, list_models

    assert _get_cfg_metainfo(str(root / 'mmccd'), 'ccd_r18_digits.py')['Name'] == 'ccd_r18_digits'
    list_models()  # its own come first
    monkeypatch.setattr(ModelHub, '_models_dict', dict(ModelHub._models_dict))
    ModelHub.register_model_index(root / 'mmccd' / '.mim' / 'model-index.yml', config_prefix=root / 'mmccd' / '.mim')
    assert ModelHub.get('ccd_r50_8xb32_in1k').config.model.backbone.attention.type == 'mmccd.CCD'
    ours = [m for m in list_models(task='Image Classification') if m in mmccd.list_configs()]
    assert ours == [n for n in mmccd.list_configs() if '_fpn_' not in n and not n.startswith('dino')]


def run(*command, cwd, **env):
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**{k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}, **env},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def archives(root, tmp_path_factory):
    """The sdist of a clean copy, and the wheel made of the sdist alone; torch and mmengine cannot be imported."""
    folder = tmp_path_factory.mktemp('dist')
    source = folder / 'source'
    source.mkdir()
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(
                root / name, source / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', 'golden')
            )
        else:
            shutil.copy(root / name, source / name)
    for name in ('torch', 'mmengine', 'numpy'):
        (folder / 'blocked' / name).mkdir(parents=True)
        (folder / 'blocked' / name / '__init__.py').write_text('raise ImportError("a build must not need this")')
    env = dict(PYTHONPATH=str(folder / 'blocked'))
    sdist = folder / run(*BUILD, 'sdist', folder, cwd=source, **env).split()[-1]
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / 'unpacked', filter='data')
    [unpacked] = (folder / 'unpacked').iterdir()
    wheel = folder / run(*BUILD, 'wheel', folder, cwd=unpacked, **env).split()[-1]
    return sdist, wheel


@pytest.fixture(scope='module')
def installed(archives, tmp_path_factory):
    """A folder with nothing but the installed wheel."""
    target = tmp_path_factory.mktemp('site')
    run(
        sys.executable,
        '-m',
        'pip',
        'install',
        '-q',
        '--no-deps',
        '--no-index',
        '--disable-pip-version-check',
        '--target',
        target,
        archives[1],
        cwd=target,
    )
    return target


@pytest.mark.slow
def test_wheel_has_package_configs_and_tools(root, archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        found = {n for n in wheel.namelist() if '.dist-info/' not in n}
        executable = {i.filename for i in wheel.infolist() if i.external_attr >> 16 & 0o100}
        assert wheel.read('mmccd/.mim/configs/metafile.yml') == (root / 'configs' / 'metafile.yml').read_bytes()
    expected = {
        str(p.relative_to(root))
        for p in (root / 'mmccd').rglob('*.*')
        if p.is_file() and not {'.mim', '__pycache__'} & set(p.parts)
    }
    expected |= {
        f'mmccd/.mim/{p.relative_to(root)}'
        for folder in ('configs', 'tools')
        for suffix in ('py', 'sh', 'yml')
        for p in (root / folder).rglob(f'*.{suffix}')
    }
    expected |= {f'mmccd/.mim/zoo/{p.name}' for p in (root / 'zoo').glob('*.json')}  # 20 MB of weights stay outside
    expected |= {'mmccd/.mim/model-index.yml'}
    assert found == expected - {f'mmccd/.mim/{name}' for name in EXCLUDED}
    assert {'mmccd/.mim/tools/dist_train.sh', 'mmccd/.mim/tools/slurm_test.sh'} <= executable


@pytest.mark.long
def test_from_the_wheel_in_an_empty_folder(installed, tmp_path):
    """List, get, build and a tool, with nothing of the checkout in sight."""
    mim = installed / 'mmccd' / '.mim'
    code = f"""
import runpy, sys
import mmccd
cfg = mmccd.get_config('retinanet_ccd_r18_fpn_digits')
model = mmccd.init_model('ccd_r18_digits')
print(mmccd.__file__, len(mmccd.list_configs()), cfg.filename, type(model.backbone.layer1[0].ccd).__name__)
# as `mim run mmccd get_flops CONFIG` starts it
sys.argv = ['get_flops.py', {str(mim / 'configs/ccd_r18_digits.py')!r}]
runpy.run_path({str(mim / 'tools/analysis_tools/get_flops.py')!r}, run_name='__main__')
"""
    out = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(installed), CUDA_VISIBLE_DEVICES='')
    assert (
        f'{installed}/mmccd/__init__.py {len(mmccd.list_configs())} {mim}/configs/retinanet_ccd_r18_fpn_digits.py CCD'
    ) in out.splitlines()
    assert '| ccd_r18_digits |' in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_environment_report_of_the_wheel_works_without_the_others(installed, tmp_path):
    """-S: the standard library alone."""
    done = subprocess.run(
        [sys.executable, '-S', installed / 'mmccd/.mim/tools/checks/check_env.py'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert 'Traceback' not in done.stderr
    assert 'mmengine' in done.stdout
