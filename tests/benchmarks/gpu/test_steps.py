"""Parts of the steps that need no GPU."""

import json

import pytest
import torch
from gpu import knobs
from gpu.clock import Prepared, in_turns, inputs_for_cold_cache
from gpu.memcheck import summary
from gpu.profiling import kernels
from gpu.task import cases
from gpu.tuning import overall

from mmccd.ops.options import make_options
from mmccd.ops.triton_backend import plan


def test_cases_are_the_layers_of_resnet50():
    found = list(cases(False))
    assert len(found) == 8 * 3 * 2
    for size in ('224', '800x1344'):
        mine = [c for c in found if (c.size, c.dtype, c.layout) == (size, 'float16', 'channels_last')]
        assert sum(c.layers for c in mine) == 16
    assert {c.shape for c in found[:4]} == {(64, 256, 56, 56), (64, 512, 28, 28), (64, 1024, 14, 14), (64, 2048, 7, 7)}
    assert {c.shape for c in found[4:8]} == {
        (2, 256, 200, 336),
        (2, 512, 100, 168),
        (2, 1024, 50, 84),
        (2, 2048, 25, 42),
    }
    assert {c.dtype for c in found[:16]} == {'float16'}  # the most important first


def test_a_small_case_has_the_same_groups_of_channels():
    case = next(iter(cases(False)))
    small = case.small()
    assert small.shape == (1, 64, 56, 56)
    assert small.shape[1] // small.groups == case.shape[1] // case.groups


def test_time_of_a_call_in_a_graph():
    calls = []
    prepared = {'a': Prepared(lambda: calls.append('a'), 5), 'b': Prepared(lambda: calls.append('b'), 0)}
    times = in_turns(prepared, torch.device('cpu'), runs=3)
    assert calls == ['a', 'b'] * 5  # two rounds do not count
    assert times['a'].clock == 'graph' and times['b'].clock == 'calls'
    assert 0 <= times['a'].p20 <= times['a'].p50 <= times['a'].p80


def test_one_input_on_a_cpu():
    assert inputs_for_cold_cache(1, torch.device('cpu')) == 1


def test_kernels_and_gaps():
    found = kernels([('gate', 10.0, 14.0), ('conv', 0.0, 8.0), ('gate', 13.0, 20.0), ('copy', 25.0, 26.0)])
    assert found['kernels'] == 4
    assert found['span_us'] == 26.0
    assert found['gaps_us'] == 7.0  # 8 to 10, 20 to 25; two overlap
    assert found['by_name'] == [
        dict(name='gate', count=2, us=11.0),
        dict(name='conv', count=1, us=8.0),
        dict(name='copy', count=1, us=1.0),
    ]
    assert kernels([]) == {}


def test_memcheck_says_what_it_saw():
    text = '========= COMPUTE-SANITIZER\nchecked 1x8x7x7\nchecked 2x8x14x14\n========= ERROR SUMMARY: 3 errors\n'
    assert summary(text) == dict(shapes=['1x8x7x7', '2x8x14x14'], errors=3)
    assert summary(text[:50]) == dict(shapes=['1x8x7x7'], errors=None)  # stopped


def test_settings_are_compared_by_the_cases_they_share():
    def case(**us):
        return dict(settings=[dict(setting=json.loads(k), us=v) for k, v in us.items()])

    now, other = '{}', '{"A": 2}'
    results = [
        case(**{now: 10.0, other: 5.0}),
        case(**{now: 4.0, other: 6.0}),
        case(**{now: 3.0}),
        case(**{other: None}),
    ]
    assert overall(results) == [
        dict(setting={'A': 2}, cases=2, of_now=0.866),  # of 0.5 and 1.5
        dict(setting={}, cases=3, of_now=1.0),
    ]


def test_no_setting_is_compared_without_the_constants_as_they_are():
    assert overall([dict(settings=[dict(setting={}, us=None), dict(setting={'A': 2}, us=1.0)])]) == []


@pytest.mark.parametrize(('size', 'expected'), [(7, 'whole'), (600, 'split')])
def test_way(size, expected):
    """Of the Triton backend: benchmarks/gpu/knobs.py has to follow it."""
    assert knobs.way((2, 64, size, size), make_options(64)) == expected


def test_constants_are_changed_for_a_while():
    before = plan.WHOLE_LIMIT
    with knobs.constants(dict(WHOLE_LIMIT=0)):
        assert plan.WHOLE_LIMIT == 0
        assert knobs.way((2, 64, 7, 7), make_options(64)) == 'split'
    assert before == plan.WHOLE_LIMIT
    assert knobs.way((2, 64, 7, 7), make_options(64)) == 'whole'


def test_a_constant_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match='NO_SUCH'), knobs.constants(dict(NO_SUCH=1)):
        pass


def test_settings_leave_out_what_makes_no_difference():
    options = make_options(64)
    whole = knobs.settings((2, 256, 7, 7), options)
    split = knobs.settings((2, 256, 200, 336), options)
    assert whole[0] == split[0] == {}
    assert not any('TILE_ELEMENTS' in values for values in whole)
    assert {values['TILE_ELEMENTS'] for values in split if 'TILE_ELEMENTS' in values} == {2048, 8192}
    assert not any(set(values) & set(knobs.missing()) for values in split)
    assert len({tuple(sorted(values.items())) for values in split}) == len(split)
