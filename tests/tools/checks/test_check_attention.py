"""tools/checks/check_attention.py: processes of their own, the files it writes, bad input, no OpenMMLab."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = 'checks/check_attention.py'
JUDGED = Path(__file__).parents[2] / 'analysis' / 'judge'
SMALL = ('--channels', '16', '--size', '6', '6')
CHEAP = ('--checks', 'parameters', 'equality', 'gain', 'sizes', 'nan', 'batch')


@pytest.fixture
def main(load_tool, monkeypatch):
    """The tool in this process; what it judges is in others."""
    monkeypatch.syspath_prepend(str(JUDGED))
    return load_tool(TOOL).main


def test_one_module(main, capsys, tmp_path):
    out = [str(tmp_path / f'a.{kind}') for kind in ('md', 'json', 'html')]
    command = ['faulty:WrongRatio', '--like', 'se', '--like-options', 'ratio=4', *SMALL, *CHEAP, '--out', *out]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert printed.startswith('faulty:WrongRatio(16) like SE\n')
    assert '-> pass --like-options ratio=2 if this is meant' in printed
    assert printed.splitlines()[-1] == '5 pass, 1 note, 2 fail, 0 skipped'
    found = json.loads((tmp_path / 'a.json').read_text())
    [module] = found['modules']
    assert (module['module'], module['like'], module['channels'], module['failed']) == (
        'faulty:WrongRatio',
        'SE',
        16,
        True,
    )
    assert [f['check'] for f in module['findings'] if f['status'] == 'fail'] == ['parameters', 'equality']
    assert {'mmccd', 'torch', 'python'} <= set(found['versions'])
    assert '| parameters | **fail** | 280, and SE has 148' in (tmp_path / 'a.md').read_text()
    page = (tmp_path / 'a.html').read_text()
    assert 'faulty:WrongRatio judged' in page and 'ratio=2' in page and 'https://' not in page


@pytest.mark.parametrize(
    ('name', 'check', 'words'),
    [
        ('Ends', 'nan', 'the process ended (exit code 3) at NaN at one pixel'),
        pytest.param('Crashes', 'sizes', 'the process ended (signal SIGSEGV) at 1 x 1', marks=pytest.mark.long),
        pytest.param('Hangs', 'sizes', 'no answer within 2 s at 1 x 1', marks=pytest.mark.long),
    ],
)
def test_what_ends_a_process_is_a_line(main, capsys, name, check, words):
    limit = ('--time-limit', '2') if name == 'Hangs' else ()
    assert main([f'faulty:{name}', *SMALL, '--checks', 'gain', 'sizes', 'nan', '--json', *limit]) == 1
    [module] = json.loads(capsys.readouterr().out)['modules']
    found = {f['check']: f for f in module['findings']}
    assert list(found) == ['build', 'shape', 'gain', 'sizes', 'nan'] or name == 'Hangs'
    assert (found[check]['status'], found[check]['figure']) == ('fail', words)
    others = [f['status'] for k, f in found.items() if k != check]
    assert 'fail' not in others, module


def test_bad_input(main, capsys, tmp_path):
    wrong = tmp_path / 'wrong.json'
    wrong.write_text('[{"module": "a:B", "lik": "SE"}]')
    for args, message in (
        ((), 'name a MODULE as package.module:Class'),
        (
            ('torch.nn.Identity',),
            "MODULE must be package.module:Class, e.g. 'mmccd.models:CCD', got 'torch.nn.Identity'",
        ),
        (('a:B', '--like', 'CABM'), '--like must be one of BAM, CBAM, CCD, CoordAttention, ECA, '),
        (('a:B', '--like', 'CABM'), "got 'CABM'; did you mean 'CBAM'?"),
        (('a:B', '--channels', '0'), 'channels must be at least 1, got 0'),
        (('a:B', '--size', '0', '4'), 'size must be at least 1, got 0'),
        (('a:B', '--options', 'groups'), "options must be name=value, got 'groups'"),
        (('a:B', '--like-options', 'ratio=4'), "options of the definition need --like, got {'ratio': 4}"),
        (('a:B', '--like', 'SE', '--like-options', 'ratoi=4'), "SE has no option 'ratoi'; did you mean 'ratio'?"),
        (('a:B', '--checks', 'size'), "there is no check 'size'; did you mean 'sizes'?"),
        (
            ('a:B', '--out', 'no/where.md'),
            "--out must be .md, .json or .html in a folder that exists, got 'no/where.md'",
        ),
        (('a:B', '--out', 'a.pdf'), "got 'a.pdf'"),
        (('a:B', '--time-limit', '0'), '--time-limit must be above 0, got 0.0'),
        (('--list', 'no.json'), '--list: no.json cannot be read as JSON'),
        (('--list', str(wrong)), "a:B has the key 'lik'; did you mean 'like'?"),
    ):
        assert main(list(args)) == 2, args
        printed = capsys.readouterr()
        assert printed.err.startswith('error: ') and message in printed.err, (args, printed.err)
        assert printed.out == ''


@pytest.mark.long
def test_what_cannot_be_imported_or_built_is_a_line(main, capsys):
    modules = ['no_such_package:Gate', 'faulty:Rihgt', 'faulty:Constructor', 'faulty:SPACE']
    assert main([*modules, *SMALL, '--checks', 'gain', '--json']) == 1
    found = [m['findings'] for m in json.loads(capsys.readouterr().out)['modules']]
    assert [[f['status'] for f in fs] for fs in found] == [['fail', 'skipped', 'skipped']] * 4
    for findings, words in zip(
        found,
        (
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
            "faulty has no Rihgt; did you mean 'Right'?",
            'cannot be built: NotImplementedError: GE needs',
            'faulty:SPACE is a tuple, no class of modules',
        ),
    ):
        assert findings[0]['figure'] == words


@pytest.mark.long
def test_all_modules_of_a_package(main, capsys, tmp_path):
    package = tmp_path / 'gates'
    package.mkdir()
    (package / '__init__.py').write_text('from .right import Gate\n')
    (package / 'right.py').write_text(
        'import torch\nfrom torch import nn\n\n\nclass Gate(nn.Module):\n'
        '    def __init__(self, dim):\n        super().__init__()\n        self.fc = nn.Conv2d(dim, dim, 1)\n\n'
        '    def forward(self, x):\n        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))\n\n\n'
        'class Half(nn.MaxPool2d):\n    def __init__(self):\n        super().__init__(2)\n\n\n'
        'class Needs(nn.Module):\n    def __init__(self, dim, thing):\n        super().__init__()\n'
    )
    (package / 'broken.py').write_text('import no_such_package\n')
    sys.path.insert(0, str(tmp_path))
    out = tmp_path / 'all.md'
    try:
        assert main(['--all', 'gates', *SMALL, *CHEAP, '--out', str(out)]) == 0
    finally:
        sys.path.remove(str(tmp_path))
    text = out.read_text()
    assert '| gates.right:Gate |  | 272 |' in text
    assert '* gates.right:Half: (2 x 16 x 6 x 6) becomes (2 x 16 x 3 x 3)' in text
    assert "* gates.right:Needs: needs 'thing': pass --options thing=..." in text
    assert '* gates.broken: cannot be imported: ModuleNotFoundError' in text
    assert '1 module judged, 0 with a failed check, 3 left out' in text


@pytest.mark.long
@pytest.mark.parametrize(
    ('code', 'words'),
    [
        ('import os; os._exit(4)', '--all: importing gates ends the process (exit code 4)'),
        ('raise SystemExit(1)', '--all: gates cannot be imported: SystemExit: 1'),
        ('import no_such_package', '--all: gates cannot be imported: ModuleNotFoundError'),
    ],
)
def test_packages_that_cannot_be_imported(main, capsys, tmp_path, monkeypatch, code, words):
    (tmp_path / 'gates.py').write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(['--all', 'gates']) == 2
    assert words in capsys.readouterr().err


@pytest.mark.long
def test_where_only_torch_and_numpy_are_importable(root, tmp_path):
    """From a user's folder with a module of their own, and with a definition that has CCD's operator in it."""
    names = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'torchvision', 'tqdm', 'rich', 'onnx', 'onnxruntime', 'numba',
             'scipy', 'matplotlib', 'cv2', 'PIL', 'einops', 'packaging', 'triton')  # fmt: skip
    (tmp_path / 'blocked').mkdir()
    (tmp_path / 'blocked' / 'sitecustomize.py').write_text(
        f'import sys\nfor name in {names}:\n    sys.modules[name] = None\n'
    )
    (tmp_path / 'mine.py').write_text(
        'import torch\nfrom torch import nn\n\n\nclass Gate(nn.Module):\n    def __init__(self, channels):\n'
        '        super().__init__()\n        self.scale = nn.Parameter(torch.zeros(64))\n'
        '        self.bias = nn.Parameter(torch.ones(64))\n\n    def forward(self, x):\n        return x\n'
    )
    command = [sys.executable, str(root / 'tools' / TOOL), 'mine:Gate', '--like', 'CCD', '--channels', '64', '--json']
    env = {**os.environ, 'PYTHONPATH': str(tmp_path / 'blocked')}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    [module] = json.loads(done.stdout)['modules']
    found = {f['check']: f for f in module['findings']}
    assert found['equality']['figure'] == 'it returns its input'
    assert found['onnx']['figure'] == 'onnx is not installed'
    assert {k for k, f in found.items() if f['status'] == 'fail'} == {'equality', 'gradients'}


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.mark.long
def test_page_in_chromium(main, tmp_path, capsys):
    sync_api = pytest.importorskip('playwright.sync_api')
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('there is no Chromium')
    out = tmp_path / 'page.html'
    modules = ['faulty:Right', 'faulty:NanOnOnePixel', 'faulty:HalfSize']
    assert main([*modules, *SMALL, *CHEAP, '--out', str(out)]) == 1
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
        page, complaints, requests = browser.new_page(), [], []
        page.on('console', lambda message: complaints.append(message.text))
        page.on('request', lambda request: requests.append(request.url))
        page.goto(f'file://{out}')
        assert page.title() == '3 attentions judged'
        grid = page.locator('table[aria-label="Modules and checks"]')
        assert grid.locator('tbody tr').count() == 3
        assert grid.locator('td.fail').count() == 2
        grid.locator('td.fail a').first.click()
        assert page.url.endswith('#m2')
        page.set_viewport_size(dict(width=360, height=740))
        assert page.evaluate('document.documentElement.scrollWidth') <= 360
        browser.close()
    assert complaints == []
    assert requests and all(r.startswith(('file:', 'data:')) for r in requests)
