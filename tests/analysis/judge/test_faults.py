"""Every planted fault is found by the check that is for it, and named."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn

from mmccd.analysis.judge import check_attention
from mmccd.analysis.judge.checks import CHECKS

# Class: (definition, check, words in its figure or advice, further options).
SE4, CBAM4, GC4 = (('SE', dict(ratio=4)), ('CBAM', dict(ratio=4)), ('GC', dict(ratio=4)))
FAULTS = {
    'MaximumForAverage': (SE4, 'equality', 'maximum in place of the average'),
    'SumForAverage': (SE4, 'equality', 'sums in place of averages'),
    'WrongRatio': (SE4, 'parameters', 'it is that of ratio=2'),
    'NoSigmoid': (SE4, 'equality', 'it has no sigmoid'),
    'HardSigmoid': (SE4, 'equality', 'hard sigmoid in place of the sigmoid'),
    'DoubleResidual': (SE4, 'equality', 'adds its input once more'),
    'NoReLU': (SE4, 'equality', 'no ReLU between its layers'),
    'GateAlone': (SE4, 'equality', 'is its gate, not multiplied by the input'),
    'SoftmaxForSigmoid': (SE4, 'equality', 'softmax over channels in place of the sigmoid'),
    'CbamWithoutChannelMaximum': (CBAM4, 'equality', 'no maximum branch in its channel gate'),
    'CbamWithoutSpatialMaximum': (CBAM4, 'equality', 'no maximum branch in its spatial gate'),
    'CbamInParallel': (CBAM4, 'equality', 'both gates computed from its input, side by side'),
    'CbamSpatialFirst': (CBAM4, 'equality', 'has the spatial gate first'),
    'CbamOfOneLayer': (CBAM4, 'equality', 'one fully connected layer and no maximum branch'),
    'SoftmaxOverChannels': (GC4, 'equality', 'softmax over channels in place of space'),
    'SoftmaxOverBatch': (GC4, 'equality', 'softmax over the batch in place of space'),
    'GroupsIgnored': (('SGE', dict(groups=4)), 'parameters', 'it is that of groups=1'),
    'NanOnOnePixel': (None, 'sizes', '1 x 1: NaN in the output'),
    'GradientNanOnConstantMaps': (None, 'constant', 'NaN in the gradient of the input'),
    'NanOnZeros': (None, 'constant', 'zeros: NaN in the output'),
    'OverflowInHalfPrecision': (None, 'float16', 'NaN in the output at features of 300'),
    'NanHidden': (None, 'nan', 'it is gone from the output'),
    'ToFloat32': (None, 'dtype', 'float16 becomes float32'),
    'FloatConstant': (None, 'dtype', 'raises with float64'),
    'ViewOnly': (None, 'layouts', 'channels_last: raises (RuntimeError: view size'),
    'ReadsMemory': (None, 'layouts', 'another output'),
    'FixedSize': (None, 'sizes', 'runs at 6 x 6 alone'),
    'SquareOnly': (None, 'sizes', '13 x 11: raises'),
    'EvenOnly': (None, 'sizes', '7 x 7: raises'),
    'RemembersSize': (None, 'sizes', 'it remembers a size'),
    'HalfSize': (None, 'shape', '(2 x 16 x 6 x 6) becomes (2 x 16 x 3 x 3)'),
    'ReturnsTuple': (None, 'shape', 'returns a tuple'),
    'DropsBatch': (None, 'batch', 'raises at a batch of 1'),
    'BatchLeak': (None, 'batch', 'it depends on them'),
    'BatchStatistics': (None, 'batch', 'it depends on them'),
    'UpdatesInEvaluation': (None, 'modes', 'evaluation changes bn.running_mean, bn.running_var'),
    'ModesExchanged': (None, 'modes', 'evaluation changes bn.running_mean'),
    'OnlyInTraining': (None, 'modes', 'training and evaluation differ'),
    'StaysInTraining': (None, 'modes', 'stays in training mode after eval()'),
    'DropoutInEvaluation': (None, 'determinism', 'random in evaluation mode'),
    'RandomGate': (None, 'determinism', 'random in evaluation mode'),
    'InPlace': (None, 'in_place', 'it changes its input'),
    'InPlaceReLU': (None, 'in_place', 'it changes its input'),
    'UnusedBranch': (None, 'gradients', 'spatial.weight (1, 2, 7, 7) is not used'),
    'DeadParameter': (None, 'gradients', 'gamma (1, 16, 1, 1) has no effect'),
    'HalfDead': (None, 'gradients', '50 % of weight is never used'),
    'Detached': (None, 'gradients', 'fc1.weight (4, 16, 1, 1) is not used'),
    'WrongBackward': (None, 'derivative', 'away'),
    'PlainTensor': (None, 'registered', 'mask (1, 16, 1, 1): plain tensors'),
    'PlainList': (None, 'registered', 'layers: modules in a plain list'),
    'StateOutside': (None, 'state_dict', 'another output after loading'),
    'KeepsOutput': (None, 'deepcopy', 'raises RuntimeError'),
    'Lambda': (None, 'pickle', 'raises '),
    'GraphBreak': (None, 'compile', ''),
    'Constructor': (None, 'build', 'cannot be built: NotImplementedError: GE needs'),
    'Raises': (None, 'sizes', '1 x 1: raises (ValueError: a map needs)'),
    'SystemExits': (None, 'sizes', '1 x 1: raises (SystemExit: no)'),
}
SMALL = dict(channels=16, size=(6, 6))
RIGHT = ('Right', 'Cbam', 'Context')
KILLERS = ('Hangs', 'Ends', 'Crashes')


def test_every_module_of_the_file_has_a_row(faulty):
    classes = {k for k, v in vars(faulty).items() if inspect.isclass(v) and issubclass(v, nn.Module)}
    assert classes == {*FAULTS, *RIGHT, *KILLERS}
    assert len(FAULTS) >= 25


@pytest.mark.parametrize('name', [n for n in FAULTS if n != 'GraphBreak'])
def test_fault(faulty, name):
    like, check, words = FAULTS[name]
    like, like_options = like or (None, {})
    verdict = check_attention(getattr(faulty, name), like, like_options=like_options, checks=[check], **SMALL)
    finding = verdict[check]
    assert finding.status == 'fail', verdict.text()
    assert words in finding.figure
    assert '\n' not in finding.figure


@pytest.mark.long
def test_graph_break(faulty):
    finding = check_attention(faulty.GraphBreak, checks=['compile'], **SMALL)['compile']
    assert finding.status == 'fail'
    assert re.search('Unsupported|data-dependent', finding.figure), finding.figure


@pytest.mark.parametrize(('name', 'like'), [('Right', SE4), ('Cbam', CBAM4), ('Context', GC4)])
def test_what_the_faults_begin_from_is_right(faulty, name, like):
    cheap = [n for n in CHECKS if n not in ('compile', 'onnx', 'forward', 'training')]
    verdict = check_attention(getattr(faulty, name), like[0], like_options=like[1], checks=cheap, **SMALL)
    assert not verdict.failed, verdict.text()
    assert verdict['equality'].status == 'pass'
    assert verdict['parameters'].value == sum(p.numel() for p in getattr(faulty, name)(16).parameters())


def test_nothing_is_left_changed(faulty):
    """Neither the module that was given, nor the random numbers, nor the switch for gradients."""
    module = faulty.StateOutside(16).train()
    before = torch.get_rng_state()
    with torch.no_grad():
        check_attention(module, checks=['state_dict', 'modes', 'batch'], **SMALL)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training and module.mean == 0.0
