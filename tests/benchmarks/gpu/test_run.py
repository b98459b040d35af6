"""The one command, as it is called."""

import csv
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

MINUTES = '40'  # time that a busy machine cannot use up


@pytest.fixture
def run(root, tmp_path):
    def call(*words):
        command = [sys.executable, str(root / 'benchmarks' / 'gpu' / 'run.py'), *words]
        return subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)

    return call


@pytest.mark.long
def test_every_step_on_the_cpu(run, tmp_path):
    out = tmp_path / 'out'
    done = run('--dry', '--minutes', MINUTES, '--out', str(out), '--logs', str(tmp_path / 'logs'))
    assert done.returncode == 0, done.stdout + done.stderr
    report = (out / 'report.md').read_text()
    assert report.startswith('# CCD on a GPU: dry run, CPU\n')
    steps = report.split('## Steps')[1].split('\n## ')[0]
    assert steps.count('| done |') == 8, steps
    assert ' failed' not in steps and 'no such tests' not in steps, steps

    assert {p.name for p in out.iterdir()} == {
        *('env.json', 'tests.xml', 'op.csv', 'tuning.json', 'backbone.csv', 'profile.json', 'decision.json'),
        'report.md',
    }
    tests = list(ElementTree.parse(out / 'tests.xml').iter('testcase'))
    assert len(tests) >= 2 and not any(list(case) for case in tests)  # neither failed nor skipped
    rows = list(csv.DictReader((out / 'op.csv').open()))
    assert {row['provider'] for row in rows} == {'copy', 'triton', 'torch', 'reference', 'compiled', 'SE'}
    assert {row['way'] for row in rows} == {'whole', 'split'}
    assert all(row[name] == '' for row in rows for name in ('gpu_us', 'host_us', 'peak_bytes', 'failed'))
    errors = [float(row['error_of_allowed']) for row in rows if row['error_of_allowed']]
    assert len(errors) == 2 * len({(r['shape'], r['dtype'], r['layout']) for r in rows}) and max(errors) <= 1
    networks = list(csv.DictReader((out / 'backbone.csv').open()))
    assert {row['network'] for row in networks} >= {'plain', 'gc', 'ccd-triton', 'ccd-torch', 'ccd-textbook-compiled'}
    assert all(row['ms_p50'] == row['peak_bytes'] == '' for row in networks)
    tuning = json.loads((out / 'tuning.json').read_text())
    assert all(row['us'] is None and 'failed' not in row for case in tuning['cases'] for row in case['settings'])
    profile = json.loads((out / 'profile.json').read_text())
    assert profile['memcheck'] == dict(shapes=['1x8x7x7'], errors=None)
    decision = json.loads((out / 'decision.json').read_text())
    assert {verdict['takes'] for verdict in decision['verdicts']} == {'torch'}


def test_options_are_checked(run, tmp_path):
    for words, named in (
        (('--out', 'out', '--wheels', 'none'), 'none'),
        (('--out', 'out', '--minutes', '0'), '--minutes must be above 0, got 0'),
        ((), '--out'),
    ):
        done = run(*words)
        assert done.returncode == 2 and named in done.stderr, done.stderr
        assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_without_a_gpu_it_ends_at_once_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    done = run('--minutes', MINUTES, '--out', str(tmp_path / 'out'))
    assert done.returncode == 1
    report = (tmp_path / 'out' / 'report.md').read_text()
    assert '| machine | failed |' in report and '--dry' in report
    assert 'compilation' not in report
