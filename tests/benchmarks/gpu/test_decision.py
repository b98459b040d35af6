"""The rule by which a card gets the Triton kernels, on tables made by hand."""

import json

import pytest
from gpu.decision import BOTH, FORWARD, RanTests, decide, read_tests, write

GOOD_TESTS = RanTests(True, passed=80, skipped=5)
SHAPES = ('64x256x56x56', '64x2048x7x7')
# GPU us forward + backward, host us, peak bytes. Triton is at 0.4 and 0.5 of the faster rival: mean 0.447.
COLUMNS = ('gpu_us', 'host_us', 'peak_bytes')
TIMES = {
    SHAPES[0]: dict(triton=(400, 100, 1050), torch=(1000, 300, 1000), reference=(1200, 200, 3000)),
    SHAPES[1]: dict(triton=(50, 100, 100), torch=(120, 300, 100), reference=(100, 200, 300)),
}
COMPILED = {SHAPES[0]: 500, SHAPES[1]: 60}


def operators(dtype='float16', layout='contiguous', way='whole', **changes):
    """Rows of ``op.csv``, strings as read from a file; changes are ``provider__column=value`` at the last shape."""
    rows = []
    for shape, of in TIMES.items():
        made = {name: dict(zip(COLUMNS, values)) for name, values in of.items()}
        made['compiled'] = dict(gpu_us=COMPILED[shape], host_us='', peak_bytes=2000)
        made['triton']['error_of_allowed'] = 0.6
        if shape == SHAPES[-1]:
            for key, value in changes.items():
                provider, column = key.split('__')
                made[provider][column] = value
        for provider, cells in made.items():
            common = dict(shape=shape, dtype=dtype, layout=layout, way=way, provider=provider)
            texts = {k: str(v) for k, v in cells.items()}
            rows.append(dict(common, mode=BOTH, **texts))
            rows.append(dict(common, mode=FORWARD, **{**texts, 'gpu_us': str(float(cells['gpu_us'] or 0) / 3)}))
    return rows


def networks(triton='25.0', torch='26.0', batch='64'):
    rows = [dict(comparison='eager', network='plain', mode='train', batch=batch, ms_p50='24.0')]
    rows += [
        dict(comparison='eager', network=f'ccd-{name}', mode='train', batch=batch, ms_p50=ms)
        for name, ms in (('triton', triton), ('torch', torch))
    ]
    # A step in another comparison and a forward pass do not count.
    rows.append(dict(comparison='compiled', network='ccd-triton', mode='train', batch=batch, ms_p50='99'))
    rows.append(dict(comparison='eager', network='ccd-triton', mode='forward', batch='1', ms_p50='99'))
    return rows


def one(rows=None, backbones=None, tests=GOOD_TESTS):
    [verdict] = decide(operators() if rows is None else rows, networks() if backbones is None else backbones, tests)
    return verdict


def holds(verdict):
    return ''.join(name for name, finding in verdict.findings.items() if finding.holds)


def test_taken_where_all_holds():
    verdict = one()
    assert verdict[:4] == ('half', 'contiguous', 'whole', 'triton')
    assert holds(verdict) == 'abcde'
    assert verdict.fast.holds is True
    assert '0.50' in verdict.findings['b'].why and '0.45' in verdict.findings['b'].why
    assert '0.83' in verdict.fast.why  # 50 / 60


@pytest.mark.parametrize(
    ('changes', 'broken', 'number'),
    [
        (dict(triton__error_of_allowed=1.01), 'a', '1.01'),
        (dict(triton__error_of_allowed=float('nan')), 'a', 'nan'),
        (dict(triton__failed='OutOfResources: shared memory'), 'a', SHAPES[1]),
        (dict(triton__gpu_us=91), 'b', '0.91'),  # of the textbook, which is the faster there
        (dict(triton__gpu_us=80), 'b', '0.57'),  # below 0.9 everywhere, but sqrt(0.4 * 0.8) in the mean
        (dict(triton__host_us=201), 'c', '1.00'),
        (dict(triton__peak_bytes=106), 'd', '1.06'),
    ],
)
def test_one_number_breaks_one_condition(changes, broken, number):
    verdict = one(operators(**changes))
    assert verdict.takes == 'torch'
    assert holds(verdict) == 'abcde'.replace(broken, '')
    assert verdict.findings[broken].holds is False
    assert number in verdict.findings[broken].why
    assert verdict.fast.holds is None


@pytest.mark.parametrize('changes', [dict(triton__host_us=200), dict(triton__peak_bytes=105)])
def test_limits_belong_to_what_is_allowed(changes):
    assert one(operators(**changes)).takes == 'triton'


def test_limits_of_time():
    """0.9 at every shape and 0.5 in the mean, both met to the last digit: 0.9 * (5 / 18) = 0.5 ** 2."""
    rows = operators(triton__gpu_us=90)
    for row in rows:
        if row['provider'] == 'triton' and row['mode'] == BOTH and row['shape'] == SHAPES[0]:
            row['gpu_us'] = str(1000 * 5 / 18 - 1e-9)
    assert one(rows).findings['b'].holds is True


@pytest.mark.parametrize(
    ('changes', 'condition', 'named'),
    [
        (dict(triton__error_of_allowed=''), None, ''),  # the other shape has one
        (dict(torch__gpu_us=''), 'b', 'torch'),
        (dict(reference__host_us=''), 'c', 'reference'),
        (dict(triton__peak_bytes=''), 'd', 'triton'),
    ],
)
def test_what_was_not_measured_does_not_hold(changes, condition, named):
    verdict = one(operators(**changes))
    if condition is None:
        assert verdict.takes == 'triton'
        return
    assert verdict.takes == 'torch'
    assert verdict.findings[condition].holds is None
    assert named in verdict.findings[condition].why and '1 of 2' in verdict.findings[condition].why


def test_a_dry_run_decides_nothing():
    rows = [{**row, 'gpu_us': '', 'host_us': '', 'peak_bytes': ''} for row in operators()]
    verdict = one(rows, [{**row, 'ms_p50': ''} for row in networks()])
    assert verdict.takes == 'torch'
    assert [finding.holds for finding in verdict.findings.values()] == [True, None, None, None, None]


@pytest.mark.parametrize(
    ('tests', 'expected', 'named'),
    [
        (RanTests(True, 79, 5, ('tests.ops.test_a',)), False, '1 test'),
        (RanTests(False, 40), None, 'end'),
        (RanTests(True, 0, 85), None, 'no test'),
        (RanTests(False), None, 'no test'),
    ],
)
def test_tests_have_to_pass(tests, expected, named):
    verdict = one(tests=tests)
    assert verdict.takes == 'torch'
    assert verdict.findings['a'].holds is expected and named in verdict.findings['a'].why


@pytest.mark.parametrize(
    ('backbones', 'expected'),
    [
        (networks('26.0', '26.0'), True),
        (networks('26.1', '26.0'), False),
        (networks() + networks('13.0', '12.0', '32'), False),  # every batch counts
        (networks('', '26.0'), None),
        ([], None),
    ],
)
def test_the_step_of_the_network(backbones, expected):
    verdict = one(backbones=backbones)
    assert verdict.findings['e'].holds is expected
    assert (verdict.takes == 'triton') is (expected is True)


def test_classes_are_apart():
    slow = {'triton__gpu_us': 91}
    rows = [
        *operators(),
        *operators(dtype='bfloat16', **slow),  # spoils half, contiguous, whole
        *operators(dtype='float32'),
        *operators(layout='channels_last', **slow),
        *operators(dtype='float32', layout='channels_last', way='split'),
    ]
    takes = {verdict[:3]: verdict.takes for verdict in decide(rows, networks(), GOOD_TESTS)}
    assert takes == {
        ('half', 'contiguous', 'whole'): 'torch',
        ('float', 'contiguous', 'whole'): 'triton',
        ('half', 'channels_last', 'whole'): 'torch',
        ('float', 'channels_last', 'split'): 'triton',
    }


def test_a_class_needs_every_shape_of_its_way():
    cut_off = [row for row in operators(dtype='float32') if row['shape'] != SHAPES[1]]
    verdicts = decide([*operators(), *cut_off], networks(), GOOD_TESTS)
    assert [v.takes for v in verdicts] == ['triton', 'torch']
    assert verdicts[1].findings['b'].holds is None and SHAPES[1] in verdicts[1].findings['b'].why


def test_bfloat16_is_judged_without_host_times_and_a_compiled_rival():
    bfloat16 = operators(dtype='bfloat16', triton__host_us='', reference__host_us='', compiled__gpu_us='')
    verdict = one([*operators(), *bfloat16])
    assert verdict.takes == 'triton' and verdict.fast.holds is True


def test_fast_needs_more_than_auto():
    verdict = one(operators(compiled__gpu_us=49))
    assert verdict.takes == 'triton'
    assert verdict.fast.holds is False and '1.02' in verdict.fast.why


def test_nothing_measured():
    assert decide([], [], GOOD_TESTS) == []


def test_tests_as_pytest_writes_them(tmp_path):
    path = tmp_path / 'tests.xml'
    path.write_text(
        '<testsuites><testsuite>'
        '<testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two"><failure/></testcase>'
        '<testcase classname="tests.a" name="three"><skipped/></testcase>'
        '<testcase classname="tests.a" name="four"><error/></testcase>'
        '</testsuite></testsuites>'
    )
    assert read_tests(path, True) == RanTests(True, 1, 1, ('tests.a.two', 'tests.a.four'))
    assert read_tests(path, False).ended is False
    path.write_text(path.read_text()[:-20])
    assert read_tests(path, True) == read_tests(tmp_path / 'none.xml', True) == RanTests(False)


def test_written(tmp_path):
    write([one()], dict(device='a card', capability='9.0'), tmp_path / 'decision.json')
    content = json.loads((tmp_path / 'decision.json').read_text())
    assert content['capability'] == '9.0' and content['limits']['every_shape'] == 0.9
    [verdict] = content['verdicts']
    assert (
        verdict['takes'] == 'triton' and verdict['findings']['e']['holds'] is True and verdict['fast']['holds'] is True
    )
