"""Training and evaluation mode, the other samples of the batch, randomness, and changes of the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ..results import Finding, failed, note, passed
from ..subject import Subject
from .base import Case, attempt, check, difference, number


@check('batch', 'Is the output of a sample independent of its neighbours, in evaluation mode?')
def batch(s: Subject, case: Case) -> Finding:
    module = s.lively(8)
    x = s.features(3)
    with torch.no_grad():
        case('batch of 3')
        together, error = attempt(lambda: module(x.clone()))
        if error:
            return failed(f'raises at a batch of 3 ({error})')
        worst = 0.0
        for i in range(3):
            case('batch of 1')
            alone, error = attempt(lambda: module(x[i : i + 1].clone()))  # noqa: B023
            if error:
                return failed(f'raises at a batch of 1 ({error})', 'squeeze() drops the batch too: name the dimension')
            if alone.shape != x[:1].shape:
                return failed(
                    f'a batch of 1 becomes {tuple(alone.shape)}', 'squeeze() drops the batch too: name the dimension'
                )
            worst = max(worst, difference(alone, together[i : i + 1]))
        case('other neighbours')
        other = torch.cat([x[:1], 10 * s.features(2, seed=3)])
        again, error = attempt(lambda: module(other))
        worst = worst if error else max(worst, difference(again[:1], together[:1]))
    if worst > s.tolerance * 100:
        return failed(
            f'it depends on them ({number(worst)})',
            'a norm with statistics of the batch, or a softmax or mean over dimension 0, at test time',
            worst,
        )
    return passed(f'{number(worst)}', worst)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)}


def _changed(before: dict[str, Tensor], module: nn.Module) -> list[str]:
    after = _state(module)
    return [k for k, v in before.items() if k in after and not torch.equal(v, after[k])]


def _norms_and_dropouts(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, (_NormBase, _DropoutNd)) or type(m).__name__ == 'DropPath']


@check('modes', 'Do training and evaluation mode do what they are for?')
def modes(s: Subject, case: Case) -> Finding:
    x = s.features(4)
    module = s.lively(9)
    case('evaluation')
    if stuck := [name for name, m in module.named_modules() if m.training]:
        return failed(f'{stuck[0] or "it"} stays in training mode after eval()', 'let train() reach all its children')
    before = _state(module)
    with torch.no_grad():
        evaluated, error = attempt(lambda: module(x.clone()))
    if error:
        return failed(f'raises {error}')
    if changed := _changed(before, module):
        return failed(
            f'evaluation changes {", ".join(changed)}',
            'pass training=self.training to functional norms; update statistics in training alone',
        )
    case('training')
    module.train()
    _, error = attempt(lambda: module(x.clone()))
    if error:
        return failed(f'raises in training ({error})')
    buffers = [k for k in before if k.endswith(('running_mean', 'running_var'))]
    updated = _changed(before, module)
    if any(not torch.equal(before[k], v) for k, v in _state(module).items() if k in dict(module.named_parameters())):
        return failed('a forward in training mode changes parameters', 'leave them to the optimizer')
    # With norms and dropout in evaluation mode, nothing is left that the mode should decide.
    case('training, with norms and dropout in evaluation mode')
    module = s.lively(9).train()
    for m in _norms_and_dropouts(module):
        m.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        first, error = attempt(lambda: module(x.clone()))
        torch.manual_seed(1)
        second, _ = attempt(lambda: module(x.clone()))
        if not error and second is not None and difference(first, second) > s.tolerance:
            return note('random in training mode, by itself, not by nn.Dropout', 'nothing, if this is meant')
    if not error and difference(first, evaluated) > s.tolerance:
        return failed(
            f'training and evaluation differ by {number(difference(first, evaluated))}, beside norms and dropout',
            'what self.training decides is not a norm or dropout: both modes must compute the same features',
        )
    if buffers and not any(k in updated for k in buffers):
        return failed(
            'training does not update the running statistics', 'pass training=self.training to functional norms'
        )
    case('training, batch of 1')
    _, error = attempt(lambda: s.lively(9).train()(s.features(1)))
    if error:
        return note(
            f'evaluation is free of it, but training raises at a batch of 1 ({error})',
            'a BatchNorm over pooled features needs two samples: GroupNorm or a larger batch',
        )
    return passed('evaluation changes no state' + (f'; training updates {len(updated)} buffers' if updated else ''))


@check('determinism', 'Does it give the same output twice, in evaluation mode?')
def determinism(s: Subject, case: Case) -> Finding:
    case('two calls')
    module, x = s.lively(10), s.features(2)
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            y, error = attempt(lambda: module(x.clone()))
        if error:
            return failed(f'raises {error}')
        outputs.append(y)
    value = difference(outputs[1], outputs[0])
    if value > 0:
        functional = not any(isinstance(m, _DropoutNd) for m in module.modules())
        how = 'F.dropout needs training=self.training' if functional else 'a dropout is active'
        return failed(
            f'random in evaluation mode (by {number(value)})', f'{how}; draw no random numbers at test time', value
        )
    return passed('bit for bit', 0.0)


@check('in_place', 'Does it leave its input alone?')
def in_place(s: Subject, case: Case) -> Finding:
    aliased = False
    for training in (False, True):
        case('training' if training else 'evaluation')
        module, x = s.lively(11).train(training), s.features(2)
        kept = x.clone()
        with torch.no_grad():
            y, error = attempt(lambda: module(x))  # noqa: B023
        if error:
            return failed(f'raises {error}')
        if not torch.equal(kept, x):
            value = difference(x, kept)
            return failed(
                f'it changes its input (by {number(value)})',
                'the residual connection reads it afterwards: no inplace=True and no x *= ... on it',
                value,
            )
        aliased = aliased or y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    if aliased:
        return note(
            'the output lies in the memory of the input', 'nothing, unless something changes the output in place'
        )
    return passed('unchanged', 0.0)
