"""The rows of `make matrix`: what they install, and that the workflow of the code host has the same."""

import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def matrix():
    spec = importlib.util.spec_from_file_location('matrix', HERE / 'matrix.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_workflow_has_the_same_rows(matrix, root):
    jobs = yaml.safe_load((root / '.github' / 'workflows' / 'ci.yml').read_text())['jobs']
    rows = {entry['row']: entry['python'] for entry in jobs['matrix']['strategy']['matrix']['include']}
    assert rows == {name: row.python for name, row in matrix.ROWS.items()}
    assert {row.python for row in matrix.ROWS.values()} == {'3.10', '3.11', '3.12', '3.13'}


def test_other_requirements_instead(matrix, root, tmp_path):
    text = '# pins\ntorch==2.11.0\ntorchvision==0.26.0\nscipy==1; python_version < "3.11"\nscipy==2\n'
    assert matrix.changed(text, dict(torch='torch==2.6.0', scipy='scipy')) == (
        '# pins\ntorch==2.6.0\ntorchvision==0.26.0\nscipy\n'
    )
    with pytest.raises(ValueError, match='no requirement named timm, torhc'):
        matrix.changed(text, dict(torhc='torch', timm='timm'))
    for name, row in matrix.ROWS.items():
        path = matrix.write_requirements(row, tmp_path / name)
        lines = path.read_text().splitlines()
        assert all(line in lines for line in row.instead.values())
        assert sum(line.startswith(('torch==', 'torchvision==')) for line in lines) == 2
        tests = path.with_name(path.name.replace('.txt', '-test.txt')).read_text()
        assert f'-r {path.name}\n' in tests


def test_the_python_of_a_row(matrix, capsys):
    version = f'{sys.version_info[0]}.{sys.version_info[1]}'
    assert Path(matrix.find_python(version)).exists()
    assert matrix.find_python('3.99') is None
    with pytest.raises(SystemExit):
        matrix.main(['3.10', '3.9'])
    assert 'unknown row 3.9: there are 3.10, 3.11' in capsys.readouterr().err


def test_results_are_rows_of_a_table(matrix, monkeypatch, capsys):
    monkeypatch.setattr(matrix, 'find_python', lambda v: None if v == '3.12' else f'python{v}')
    monkeypatch.setattr(matrix, 'run_row', lambda name, python: f'| {name} | {python} | 1 min | 6 passed |')
    assert matrix.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(matrix.ROWS)
    assert matrix.main(['3.10', '3.12']) == 1  # who names a row wants it to be run
    assert capsys.readouterr().out.splitlines()[-2:] == [
        '| 3.10 | python3.10 | 1 min | 6 passed |',
        '| 3.12 | | | not run: no Python 3.12 here |',
    ]
    monkeypatch.setattr(matrix, 'run_row', lambda name, python: f'| {name} | | | environment FAILED: no torch |')
    assert matrix.main(['3.10']) == 1


@pytest.mark.parametrize(
    ('script', 'found'),
    [
        ("import time; print('Epoch(train) [1][20/63]', flush=True); time.sleep(60)", 'trains'),
        ("print('error: no data'); raise SystemExit(2)", 'error: no data FAILED'),
    ],
)
def test_the_demo_is_interrupted_when_it_trains(matrix, tmp_path, script, found):
    python = tmp_path / 'python'
    python.write_text(f'#!{sys.executable}\n{script}\n')
    python.chmod(0o755)
    assert matrix.start_demo(python, tmp_path / 'work') == found
