"""The report: what a reader finds in it, with numbers made by hand."""

import pytest
from gpu.decision import BOTH, FORWARD, RanTests, decide
from gpu.report import Results, markdown, table
from gpu.schedule import Outcome

STAGES = {'64x256x56x56': 3, '64x512x28x28': 4, '64x1024x14x14': 6, '64x2048x7x7': 3}
US = dict(copy=10.0, triton=12.0, torch=60.0, reference=80.0, compiled=30.0, SE=20.0)  # forward; backward twice more


def operators():
    where = dict(size='224', dtype='float16', layout='channels_last', way='whole')
    rows = []
    for shape, layers in STAGES.items():
        for name, us in US.items():
            for mode, factor in ((FORWARD, 1), (BOTH, 3))[: 1 if name == 'copy' else 2]:
                row = dict(where, shape=shape, layers=str(layers), provider=name, mode=mode, gpu_us=str(factor * us))
                error = '0.5' if name == 'triton' else ''
                rows.append(dict(row, host_us='90', peak_bytes='1000', kept_of_x='0.1', error_of_allowed=error))
    return rows


def backbones():
    ratios = {
        'plain': 1,
        'se': 1.1,
        'ge': 1.2,
        'cbam': 1.3,
        'sk': 1.4,
        'gc': 1.15,
        'ccd-triton': 1.02,
        'ccd-torch': 1.5,
    }
    rows = [
        dict(
            comparison='eager', network=name, mode='train', batch='64', size='224', ms_p50=str(20 * of_plain),
            of_plain=str(of_plain), peak_bytes=str(2 << 20),
        )
        for name, of_plain in ratios.items()
    ]  # fmt: skip
    for name, of_plain in {'ccd-triton': 1.02, 'ccd-textbook-compiled': 1.2}.items():
        rows.append(dict(rows[0], comparison='compiled', network=name, of_plain=str(of_plain)))
    return rows


@pytest.fixture
def results():
    tests = RanTests(True, 80, 5)
    return Results(
        dry=False,
        outcomes=[Outcome('machine', 'done', 12.3), Outcome('memcheck', 'skipped', 0.0, ('2 s were left',))],
        where=dict(device='A Card', capability='9.0', copy_gb_per_s=3000.0, date='2026-01-02'),
        tests=tests,
        operators=operators(),
        tuning=dict(
            missing=['TILE_COLUMNS'],
            timed=True,
            overall=[dict(setting={'WHOLE_LIMIT': 8192}, cases=4, of_now=0.91)],
            cases=[
                dict(
                    shape='64x2048x7x7',
                    dtype='float16',
                    layout='contiguous',
                    settings=[
                        dict(setting={'WHOLE_LIMIT': 8192}, us=11.0, way='split'),
                        dict(setting={}, us=12.5, way='whole'),
                    ],
                )
            ],
        ),
        backbones=backbones(),
        profile=dict(
            layers_waits=dict(triton='no wait'),
            step=dict(triton=dict(kernels=500, gaps_us=12.0, by_name=[dict(name='conv', count=53, us=900.0)])),
            detector_waits=dict(torch=dict(iterations=5, waits=355, by_line={'losses.py:10': 5})),
            memcheck=dict(shapes=['1x8x7x7'], errors=0),
        ),
        verdicts=decide(operators(), backbones(), tests),
    )


def section(text, title):
    return text.split(f'\n## {title}\n', 1)[1].split('\n## ', 1)[0]


def row(text, *words):
    [line] = [line for line in text.splitlines() if all(word in line for word in words)]
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_verdict_and_goals(results):
    text = markdown(results)
    assert text.startswith('# CCD on a GPU: A Card\n')
    assert '1 of 1 classes' in section(text, 'Verdict')
    assert row(section(text, 'Verdict'), 'channels_last', 'triton')[3:] == ['triton', *['yes'] * 6]
    goals = section(text, 'Goals')
    assert row(goals, 'forward, in copies')[1:] == ['1.5', '1.20']
    assert row(goals, 'the same, forward + backward')[1:] == ['4.0', '3.60']
    assert row(goals, 'of the compiled textbook (')[2] == '0.40'
    assert row(goals, 'host time of a layer')[2] == '90 us'
    assert row(goals, 'CCD-ResNet-50 of ResNet-50')[2] == '1.02'
    assert row(goals, 'ahead of')[2] == 'yes'
    assert row(goals, 'compiled network')[2] == '0.85'


def test_tables(results):
    text = markdown(results)
    assert row(section(text, 'Steps'), 'memcheck') == ['memcheck', 'skipped', '0 s', '2 s were left']
    operator = section(text, 'Operator')
    # 16 layers of 12 us: 0.192 ms.
    assert row(operator, '| 224 |')[3:6] == ['0.16', '0.19 / 0.58', '0.96 / 2.88']
    shape = row(operator, '64x256x56x56')
    assert shape[4:] == ['12.0 / 36.0', '1.20', '0.20', '0.15', '0.40', '90 / 90', '0.10', '1.00', '0.50']
    assert row(section(text, 'Tuning'), '64x2048x7x7')[3:] == [
        '12.5',
        '11.0: WHOLE_LIMIT 8192, split',
        '12.5: as it is, whole',
    ]
    assert 'TILE_COLUMNS' in section(text, 'Tuning')
    assert row(section(text, 'Networks'), 'cbam') == ['cbam', '26.00 (1.30)', '2']
    profile = section(text, 'Profile')
    assert row(profile, 'RetinaNet', 'waits 355')[1] == 'torch'
    assert row(profile, 'conv') == ['conv', '53', '900.0']
    assert row(profile, 'memcheck')[2] == '1 shapes, errors: 0'


def test_failed_tests_are_named(results):
    text = markdown(results._replace(tests=RanTests(False, 3, 1, ('tests.ops.one',))))
    assert '3 passed, 1 failed, 1 skipped; they did not run to their end.' in text
    assert '* tests.ops.one' in text


def test_one_peer_that_is_faster(results):
    rows = [dict(r, of_plain='1.01') if r['network'] == 'gc' else r for r in results.backbones]
    assert row(section(markdown(results._replace(backbones=rows)), 'Goals'), 'ahead of')[2] == 'no'


def test_a_dry_run_says_so_and_has_no_numbers(results):
    rows = [dict(r, gpu_us='', host_us='', peak_bytes='') for r in results.operators]
    networks = [dict(r, ms_p50='', of_plain='', peak_bytes='') for r in results.backbones]
    verdicts = decide(rows, networks, results.tests)
    text = markdown(results._replace(dry=True, operators=rows, backbones=networks, verdicts=verdicts, where={}))
    assert text.startswith('# CCD on a GPU: dry run, CPU\n')
    assert all(
        cells.endswith('|  |')
        for cells in section(text, 'Goals').splitlines()
        if cells.startswith('| ') and 'goal' not in cells and '---' not in cells
    )
    assert row(section(text, 'Networks'), 'cbam') == ['cbam', '', '']
    assert row(section(text, 'Verdict'), 'half', 'torch', 'yes')[4:] == ['yes', *['not measured'] * 5]


def test_a_run_that_was_cut_off_has_a_report():
    nothing = Results(False, [Outcome('machine', 'failed', 3.0, ('no GPU',))], {}, RanTests(False), [], {}, [], {}, [])
    text = markdown(nothing)
    assert 'None: the operator was not measured.' in text
    assert row(text, 'no GPU')[1] == 'failed'


def test_cells_are_escaped():
    assert table(('a',), [('x | y',)]) == '| a |\n| --- |\n| x \\| y |'
