"""What the judge is made of: arguments of constructors, weights mapped by shape, tables, and its documentation."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import nn

import mmccd
from mmccd.analysis.judge.checks import CHECKS
from mmccd.analysis.judge.checks.base import difference
from mmccd.analysis.judge.mapping import candidates
from mmccd.analysis.judge.packages import modules_of
from mmccd.analysis.judge.page import html
from mmccd.analysis.judge.references import REFERENCES, find_reference
from mmccd.analysis.judge.results import Finding, Table, Verdict
from mmccd.analysis.judge.run import make_subject
from mmccd.analysis.judge.subject import BuildError, arguments_of, parse_options

SIZE = (14, 12)


def required(in_channels, out_channels, kernel_size): ...
def unnamed(width_of_it, ratio=4): ...
def with_default(channels=512, reduction=16): ...
def no_channels(e_lambda=1e-4): ...
def none_by_default(channels=None, kernel_size=3): ...
def of_a_size(dim, h, w): ...
def of_two(inp, oup, resolution): ...
def keywords(channel, **others): ...


@pytest.mark.parametrize(
    ('make', 'options', 'expected'),
    [
        (required, {}, dict(in_channels=8, out_channels=8, kernel_size=3)),
        (required, dict(kernel_size=5), dict(in_channels=8, out_channels=8, kernel_size=5)),
        (unnamed, {}, dict(width_of_it=8)),
        (with_default, {}, dict(channels=8)),
        (with_default, dict(reduction=2), dict(channels=8, reduction=2)),
        (no_channels, {}, {}),
        (none_by_default, {}, dict(channels=8)),
        (of_a_size, {}, dict(dim=8, h=14, w=12)),
        (of_two, {}, dict(inp=8, oup=8, resolution=SIZE)),
        (keywords, dict(act='relu'), dict(channel=8, act='relu')),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_arguments(make, options, expected):
    assert arguments_of(make, 8, SIZE, options) == ([], expected)


def test_arguments_that_cannot_be_guessed():
    with pytest.raises(BuildError, match="needs 'thing': pass --options thing="):
        arguments_of(lambda dim, thing: None, 8, SIZE, {})
    with pytest.raises(BuildError, match=r"does not take 'reductoin'; did you mean 'reduction'\?"):
        arguments_of(with_default, 8, SIZE, dict(reductoin=2))


def test_options():
    pairs = ['a=1', 'b=true', 'c=relu', 'd=(1, 2)', 'e=None', 'f=1e-3', 'g=a=b']
    assert parse_options(pairs) == dict(a=1, b=True, c='relu', d=(1, 2), e=None, f=1e-3, g='a=b')
    with pytest.raises(mmccd.UserError, match=re.escape("options must be name=value, got '=1'")):
        parse_options(['=1'])


class Turned(nn.Module):
    """Two layers of the same shape under other names, in another order, and a convolution with its inputs exchanged."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, bias=False)
        self.last, self.first = nn.Conv2d(6, 6, 1), nn.Linear(6, 6)


class Straight(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.conv = nn.Conv2d(2, 1, 3, bias=False)


def test_mapping_finds_the_order_of_like_layers():
    ours, theirs = Turned(), Straight()
    seen = []
    for mapping in candidates(ours, theirs):
        mapping.fill()
        seen.append(
            (
                torch.equal(theirs.first.weight.flatten(), ours.first.weight.flatten()),
                torch.equal(theirs.last.bias, ours.last.bias),
                torch.equal(theirs.conv.weight, ours.conv.weight.flip(1)),
            )
        )
    assert (True, True, True) in seen and (False, False, False) in seen
    assert len(seen) == len(set(seen)) + 2  # two orders, three turns of the kernel
    assert list(candidates(nn.Linear(2, 3), theirs)) == []


def test_differences():
    inf, nan = float('inf'), float('nan')
    of = lambda a, b: difference(torch.tensor(a), torch.tensor(b))  # noqa: E731
    assert of([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert of([0.5], [0.0]) == 0.5
    assert of([nan, 1.0], [nan, 1.0]) == 0
    assert of([nan, 1.0], [1.0, 1.0]) == of([inf], [1.0]) == of([1.0], [1.0, 2.0]) == inf


def test_definitions_by_any_of_their_names():
    assert find_reference('cbam') is REFERENCES['CBAM']
    assert find_reference('FcaNet') is REFERENCES['FCA']
    with pytest.raises(mmccd.UserError, match=r"--like must be one of BAM, .*got 'SENet'"):
        find_reference('SENet')


def verdicts():
    bad = Finding('sizes', 'fail', 'NaN | <b>', 'guard', 1.0)
    return [
        Verdict('a:B', 8, (6, 6), 'SE', dict(r=4), [Finding('parameters', 'pass', '9', value=9.0), bad]),
        Verdict('a:C', 8, (6, 6), None, {}, [Finding('padding', 'note', '5 %', value=0.05)]),
    ]


def test_tables():
    table = Table(verdicts(), {'a:D': 'needs a thing'})
    assert table.failed and not Table(verdicts()[1:]).failed
    assert table.rows() == [
        ['a:B', 'SE', '9', '', '', '', '', 'sizes'],
        ['a:C', '', '', '', '', '', '5 %', 'none'],
    ]
    text = table.markdown()
    assert '| a:B | SE | 9 |  |  |  |  | sizes |' in text
    assert '## a:B(8, r=4) like SE\n\n* **sizes**: NaN \\| &lt;b>' in text
    assert '* a:D: needs a thing' in text
    assert table.text().splitlines()[-1] == '2 modules judged, 1 with a failed check, 1 left out'
    assert json.loads(json.dumps(table.as_dict()))['modules'][0]['findings'][1]['status'] == 'fail'
    page = html(table, 'Two <attentions>', 'make "it"')
    assert 'NaN | &lt;b&gt;' in page and 'Two &lt;attentions&gt;' in page and '<b>' not in page.split('</header>')[1]
    assert verdicts()[0]['sizes'].advice == 'guard'
    with pytest.raises(KeyError):
        verdicts()[0]['gain']


def test_json_has_no_nan():
    """Every parser reads it: null in the place of what is no number, and options as texts."""
    findings = [Finding('padding', 'note', 'NaN', value=math.nan), Finding('gain', 'fail', 'inf', value=math.inf)]
    verdict = Verdict('a:B', 8, (6, 6), None, dict(limit=math.inf, ratio=0.5, act=None), findings)
    content = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert [f['value'] for f in content['findings']] == [None, None]
    assert content['options'] == dict(limit='inf', ratio=0.5, act=None)


def test_unfit():
    assert verdicts()[0].unfit is None
    assert Verdict('a', 8, (6, 6), findings=[Finding('shape', 'fail', 'half as large')]).unfit == 'half as large'


def test_modules_of_a_package():
    found, broken = modules_of('torch.nn.modules.activation')
    assert 'torch.nn.modules.activation:ReLU' in found and broken == {}
    assert all(name.startswith('torch.nn.modules.activation:') for name in found)
    with pytest.raises(mmccd.UserError, match='--all: no_such cannot be imported: ModuleNotFoundError'):
        modules_of('no_such')


def test_a_module_that_is_built(faulty):
    module = faulty.Right(8)
    verdict = mmccd.check_attention(module, channels=8, size=(5, 4), checks=['parameters'])
    assert (verdict.module, verdict['parameters'].value) == ('faulty:Right', 8 * 2 * 2 + 10)
    wrong = mmccd.check_attention(module, channels=16, size=(5, 4), checks=['gain'])
    assert [f.status for f in wrong.findings] == ['pass', 'fail', 'skipped']
    assert 'pass --channels' in wrong['shape'].advice
    with_options = mmccd.check_attention(module, channels=8, options=dict(ratio=2), checks=['gain'])
    assert with_options['build'].figure == 'options are for a class, and faulty:Right is built already'
    with pytest.raises(mmccd.UserError, match='channels must be at least 1, got 0'):
        mmccd.check_attention(module, channels=0)
    of_a_function = mmccd.check_attention(
        lambda n: faulty.Right(n, 2), 'SE', 8, (5, 4), like_options=dict(ratio=2), checks=['equality']
    )
    assert of_a_function['equality'].status == 'pass'


def test_documented_checks(root):
    """docs/check_attention.md has the checks, their questions and the definitions."""
    text = (root / 'docs' / 'check_attention.md').read_text()
    rows = re.findall(r'^\| `(\w+)` \| (.+) \|$', text, re.MULTILINE)
    assert rows == [(name, check.question.replace('|', '\\|')) for name, check in CHECKS.items()]
    flat = ' '.join(text.split())
    assert ', '.join(REFERENCES) in flat


def test_options_of_the_definition_are_taken_over():
    """But not a ratio of another meaning."""
    subject = make_subject('a:B', 'gc', 64, SIZE, dict(ratio=8, act='relu'), None)
    assert (subject.like, subject.like_options) == ('GC', dict(ratio=8))
    assert make_subject('a:B', 'GC', 64, SIZE, dict(ratio=1 / 16), None).like_options == {}
    assert make_subject('a:B', 'GC', 64, SIZE, dict(ratio=1 / 16), dict(ratio=4)).like_options == dict(ratio=4)
    assert make_subject('a:B', 'CCD', 64, SIZE, dict(scales=(1,)), None).like_options == dict(scales=(1,))


class OtherEps(nn.Module):
    """GC whose norm has another eps."""

    def __init__(self, channels):
        super().__init__()
        self.mask, self.down = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, channels // 4, 1)
        self.norm, self.up = nn.LayerNorm([channels // 4, 1, 1], eps=1e-6), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        weight = self.mask(x).flatten(2).softmax(2)
        context = (x.flatten(2) * weight).sum(2)[:, :, None, None]
        return x + self.up(torch.relu(self.norm(self.down(context))))


def test_another_eps_is_a_note():
    verdict = mmccd.check_attention(OtherEps, 'GC', 16, (5, 4), like_options=dict(ratio=4), checks=['equality'])
    assert verdict['equality'].status == 'note'
    assert 1e-7 < verdict['equality'].value < 1e-4
