"""Constant, zero and broken maps; the gain of the module, and whether it can be initialised as the identity."""

from __future__ import annotations

import inspect

import torch

from ..results import Finding, failed, note, passed
from ..subject import BuildError, Subject, find
from .base import Case, attempt, check, difference, number, trouble, with_gradient


@check('gain', 'Does it hurt a pretrained network? mean |output| / mean |input| with its initial weights')
def gain(s: Subject, case: Case) -> Finding:
    ratios = {}
    for name in ('features', 'features after a ReLU'):
        case(name)
        x = s.features(4, dtype=torch.float32)
        x = x.relu() if 'ReLU' in name else x
        with torch.no_grad():
            y, error = attempt(lambda: s.build()(x.clone()))  # noqa: B023
        if error:
            return failed(f'raises {error}')
        ratios[name] = (y.abs().mean() / x.abs().mean()).item()
    value = ratios['features']
    text = f'{value:.3f} ({ratios["features after a ReLU"]:.3f} after a ReLU)'
    if value != value or value == float('inf'):
        return failed(f'{text}: not finite', 'check the initial weights', value)
    if 0.95 <= value <= 1.05:
        return Finding('', 'pass', text, value=value)
    if value > 1.05:
        why = 'features grow with every block'
    elif value == 0:
        why = 'nothing of the features is left'
    else:
        why = f'after 16 blocks in a row {value**16:.1g} of the features would be left'
    return note(f'{text}: {why}', 'in a pretrained network, initialise it as the identity', value)


@check('identity', 'Can it be initialised as the identity?')
def identity(s: Subject, case: Case) -> Finding:
    case('initial weights')
    x = s.features(2)
    with torch.no_grad():
        y, error = attempt(lambda: s.build().to(s.dtype)(x.clone()))
        if error:
            return failed(f'raises {error}')
        if difference(y, x) <= s.tolerance:
            return passed('it is the identity at first')
        case('weights of zero')
        module = s.build().to(s.dtype)
        for p in module.parameters():
            p.data = torch.zeros_like(p)
        y, error = attempt(lambda: module(x.clone()))
    named = _identity_options(s)
    if named:
        return note('not at first, but it has an option for it', f'pass {named}')
    if error:
        return note(f'not at first; with weights of zero it raises {error}')
    factor = ((y * x).sum() / (x * x).sum()).item()
    if difference(y, factor * x) <= 1e-6 and factor:
        if abs(factor - 1) < 1e-6:
            return note('not at first; with weights of zero it is', 'set the weights of its last layer to zero')
        return note(
            f'not at first; with weights of zero it is {factor:.4g} times the input',
            f'set the last layer to zero and divide its gate by {factor:.4g}, as identity_init=True does in mmccd',
        )
    return note('not at first, and not with weights of zero', 'put it into a branch whose last weight is zero')


def _identity_options(s: Subject) -> str:
    """Options of the constructor that are called as if they did it, and have not been given."""
    try:
        make = find(s.source) if isinstance(s.source, str) else s.source
        names = list(inspect.signature(make).parameters) if not isinstance(make, torch.nn.Module) else []
    except (BuildError, TypeError, ValueError):
        return ''
    words = ('identity_init', 'zero_init', 'init_values', 'zero_init_last', 'layer_scale_init_value')
    return next((f'--options {name}=...' for name in names if name in words and name not in s.options), '')


@check('constant', 'Are outputs and gradients finite on zero and constant maps?')
def constant(s: Subject, case: Case) -> Finding:
    x = s.features(2)
    inputs = {
        'zeros': torch.zeros_like(x),
        'ones': torch.ones_like(x),
        'a constant a channel': x.mean((2, 3), keepdim=True).expand_as(x).clone(),
        'one pixel': torch.zeros_like(x).index_put(
            (torch.tensor(0), torch.tensor(0), torch.tensor(0), torch.tensor(0)), torch.ones((), dtype=x.dtype)
        ),
    }
    problems = {}
    for name, value in inputs.items():
        for mode in ('evaluation', 'training'):
            case(f'{name}, {mode}')
            module = s.lively(4).train(mode == 'training')
            found, error = attempt(lambda: with_gradient(module, value))  # noqa: B023
            if error:
                problems[name] = f'raises ({error})'
                continue
            values = {'the output': found[0], 'the gradient of the input': found[1]}
            values.update({f'the gradient of {k}': p.grad for k, p in module.named_parameters() if p.grad is not None})
            if text := trouble(values):
                problems[name] = text
    if problems:
        return failed(
            '; '.join(f'{k}: {v}' for k, v in problems.items()),
            'guard divisions and roots: the derivative of a root, and so of a deviation or norm, is infinite at 0',
        )
    return passed('finite on zeros, constants and a single pixel')


@check('nan', 'Does a NaN in the features stay visible, and in its own sample?')
def nan(s: Subject, case: Case) -> Finding:
    """It must not vanish, since a training that looks for it would continue with a wrong result; it may spread in its
    sample, over which statistics are taken, but not to others.
    """
    case('NaN at one pixel')
    x = s.features(3)
    row, column = s.size[0] // 2, s.size[1] // 3
    x[1, 0, row, column] = float('nan')
    with torch.no_grad():
        y, error = attempt(lambda: s.lively(5)(x.clone()))
    if error:
        return failed(f'raises {error}')
    if not y[1].isnan().any():
        return failed('it is gone from the output', 'do not replace NaN (nan_to_num, masks): let it be seen')
    if y[[0, 2]].isnan().any():
        return failed('it reaches other samples of the batch', 'take no statistics over the batch in evaluation mode')
    if not y[1, 0, row, column].isnan():
        return note('it is gone from its own pixel and channel, and seen elsewhere in the sample')
    share = y[1].isnan().double().mean().item()
    return passed(f'seen in {100 * share:.3g} % of its own sample, in no other', share)


@check('padding', 'How much does padding by a larger neighbour in the batch change the features?')
def padding(s: Subject, case: Case) -> Finding:
    """Zeros below, as much as the map is high: mean change relative to the mean feature, within the map."""
    case('map of twice the height')
    module = s.lively(6)
    x = s.features(2)
    height = s.size[0]
    padded = torch.cat([x, torch.zeros_like(x)], 2)
    with torch.no_grad():
        alone, error = attempt(lambda: module(x.clone()))
        if not error:
            together, error = attempt(lambda: module(padded)[:, :, :height])
    if error:
        return note(f'not measured: raises {error}')
    value = ((together - alone).abs().mean() / alone.abs().mean()).item()
    if value <= s.tolerance:
        return passed('no change', value)
    if value != value:
        return note('NaN', value=value)
    return note(
        f'{number(100 * value)} % where half of the map is padding',
        'test with the batch composition that it was trained with, or take statistics over the valid area',
        value,
    )
