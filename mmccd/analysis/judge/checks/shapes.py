"""Shapes, dtypes, sizes and memory layouts of the features."""

from __future__ import annotations

import torch
from torch import Tensor

from ..results import Finding, failed, note, passed, skipped
from ..subject import BuildError, Subject
from .base import (
    Case,
    attempt,
    check,
    difference,
    is_missing_kernel,
    is_out_of_memory,
    number,
    shape_of,
    trouble,
    with_gradient,
)

SIZES = ((1, 1), (1, 9), (9, 1), (2, 2), (7, 7), (13, 11), (16, 40), (200, 336))
LARGEST = SIZES[-1]  # a stride-4 map of COCO's images


@check('build', 'Can it be imported and built?')
def build(s: Subject, case: Case) -> Finding:
    case('its constructor')
    try:
        s.prepare()
    except BuildError as e:
        return failed(str(e), 'check the name and pass what the constructor needs with --options name=value')
    return passed(type(s.build()).__name__)


@check('shape', 'Are the features as many and as large as before?')
def shape(s: Subject, case: Case) -> Finding:
    """Also decides the dtype of most other checks: float64 if the module computes in it."""
    case(f'{s.channels} channels, {shape_of(s.size)}, float32')
    x = s.features(2, dtype=torch.float32)
    with torch.no_grad():
        y, error = attempt(lambda: s.build()(x.clone()))
    if error:
        fits = 'does it take that many channels? ' if isinstance(s.source, torch.nn.Module) else ''
        return failed(f'raises {error}', f'{fits}pass --channels, --size or --options it can work with')
    if not isinstance(y, Tensor):
        return failed(f'returns a {type(y).__name__}, no tensor', 'return the features alone')
    if y.shape != x.shape:
        return failed(
            f'({shape_of(x.shape)}) becomes ({shape_of(y.shape)})', 'return features of the shape of the input'
        )
    case(f'{s.channels} channels, {shape_of(s.size)}, float64')
    with torch.no_grad():
        y, error = attempt(lambda: s.lively(dtype=torch.float64)(x.double()))
    s.dtype = torch.float32 if error or y.dtype != torch.float64 else torch.float64
    return passed(f'({shape_of(x.shape)})')


@check('dtype', 'Is the output of the dtype of the input?')
def dtype(s: Subject, case: Case) -> Finding:
    wrong, left_out, kept = [], [], []
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        name = str(kind).removeprefix('torch.')
        case(name)
        with torch.no_grad():
            y, error = attempt(lambda kind=kind: s.lively(dtype=kind)(s.features(2, dtype=kind)))
        if error and is_missing_kernel(error):
            left_out.append(name)
        elif error:
            wrong.append(f'raises with {name} ({error})')
        elif y.dtype != kind:
            wrong.append(f'{name} becomes {str(y.dtype).removeprefix("torch.")}')
        else:
            kept.append(name)
    tail = f'; not on this device: {", ".join(left_out)}' if left_out else ''
    if wrong:
        return failed(
            '; '.join(wrong) + tail,
            'end with .to(x.dtype); make tensors with x.new_* or register them as buffers, which module.half() reaches',
        )
    return passed(', '.join(kept) + tail)


@check('sizes', 'Does it take maps of any size?')
def sizes(s: Subject, case: Case) -> Finding:
    """In evaluation mode, with gradients where the map is small; one instance for all, to find what it remembers."""
    module = s.lively(1)
    problems: dict[str, str] = {}
    costly = ''
    before, _ = attempt(lambda: module(s.features(2)).detach())
    for size in SIZES:
        name = shape_of(size)
        case(name)
        large = size == LARGEST
        x = s.features(1 if large else 2, size, dtype=torch.float32 if large else s.dtype)
        if large:
            module32 = s.lively(1, torch.float32)
            with torch.no_grad():
                y, error = attempt(lambda: module32(x))  # noqa: B023
            values = {} if error else {'the output': y}
        else:
            found, error = attempt(lambda: with_gradient(module, x))  # noqa: B023
            values = {} if error else {'the output': found[0], 'the gradient': found[1]}
        if error and is_out_of_memory(error):
            costly = f'no memory for {name}: {error}'
        elif error:
            problems[name] = f'raises ({error})'
        elif values['the output'].shape != x.shape:
            problems[name] = f'the output is {shape_of(values["the output"].shape[2:])}'
        elif text := trouble(values):
            problems[name] = text
    after, _ = attempt(lambda: module(s.features(2)).detach())
    if before is not None and after is not None and difference(after, before) > s.tolerance:
        problems[shape_of(s.size)] = 'another result after other sizes: it remembers a size'
    if len(problems) >= len(SIZES) - 1 and len(set(SIZES) - {s.size}) <= len(problems):
        return failed(
            f'runs at {shape_of(s.size)} alone: {next(iter(problems.values()))}',
            'take height and width from the input, not from the constructor',
        )
    if problems:
        nan = any('NaN' in text or 'infinite' in text for text in problems.values())
        advice = (
            'a deviation of one number is 0 / 0, and its gradient at 0 is infinite: treat flat maps apart'
            if nan
            else 'pool and reshape by the sizes of the input'
        )
        return failed('; '.join(f'{k}: {v}' for k, v in problems.items()), advice)
    if costly:
        return note(costly, 'its memory grows with the square of the map: use it on small maps')
    return passed(', '.join(shape_of(size) for size in SIZES))


@check('layouts', 'Does it take channels_last, strided and other maps that are not contiguous?')
def layouts(s: Subject, case: Case) -> Finding:
    height, width = s.size
    base = s.features(2)
    big = s.features(2, (2 * height, 2 * width), seed=1)
    wide = torch.cat([base, base], 1)
    inputs = {
        'channels_last': base.contiguous(memory_format=torch.channels_last),
        'transposed': base.transpose(2, 3).contiguous().transpose(2, 3),
        'strided': big[..., ::2, ::2],
        'every second channel': wide.flatten(2)[:, ::2].unflatten(2, (height, width)),
        'channels before samples': base.transpose(0, 1).contiguous().transpose(0, 1),
        'one map expanded': base[:1].expand(2, -1, -1, -1),
    }
    module, problems = s.lively(2), {}
    expected_layout = True
    for name, x in inputs.items():
        case(name)
        upstream = torch.ones(1, dtype=x.dtype).expand(x.shape)
        right, error = attempt(lambda: with_gradient(module, x.contiguous(), upstream.contiguous()))  # noqa: B023
        if error:
            return failed(f'raises on a contiguous map ({error})')
        with torch.no_grad():
            y, error = attempt(lambda: module(x if name == 'one map expanded' else x.clone()))  # noqa: B023
        if not error:
            found, error = attempt(lambda: with_gradient(module, x, upstream))  # noqa: B023
        if error:
            problems[name] = f'raises ({error})'
        elif max(difference(y, right[0]), difference(found[0], right[0])) > s.tolerance:
            problems[name] = f'another output (by {number(difference(found[0], right[0]))})'
        elif difference(found[1], right[1]) > s.tolerance:
            problems[name] = f'another gradient (by {number(difference(found[1], right[1]))})'
        elif name == 'channels_last' and min(s.size) > 1:
            expected_layout = y.is_contiguous(memory_format=torch.channels_last)
    if problems:
        return failed(
            '; '.join(f'{k}: {v}' for k, v in problems.items()), 'use .flatten and .reshape in place of .view'
        )
    text = ', '.join(inputs)
    return passed(text if expected_layout else f'{text}; the output of channels_last is in another layout, a copy')


def half_dtypes(s: Subject, kind: torch.dtype) -> Tensor:
    """Features of 300 with the noise of 300, and some that are nearly alike, in half precision."""
    noise = s.features(1, dtype=torch.float32) * 300
    alike = s.features(1, seed=1, dtype=torch.float32) + 300
    return torch.cat([noise, alike]).to(kind)


def _half(s: Subject, case: Case, kind: torch.dtype, tolerable: float) -> Finding:
    name = str(kind).removeprefix('torch.')
    x = half_dtypes(s, kind)
    case(f'{name}, features of 300')
    if attempt(lambda: s.build().to(kind))[1]:
        return skipped('its weights cannot be converted')
    found, error = attempt(lambda: with_gradient(s.lively(3, kind), x, torch.full_like(x, 1e-3)))
    if error:
        if is_missing_kernel(error):
            return skipped(f'PyTorch lacks an operator on this device: {error}')
        return failed(
            f'raises {error}', 'make tensors with x.new_*, and buffers and statistics of the dtype of the input'
        )
    exact, error = attempt(
        lambda: with_gradient(s.lively(3, kind).double(), x.double(), torch.full_like(x, 1e-3).double())
    )
    text = trouble({'the output': found[0], 'the gradient': found[1]})
    if text:
        if not error and trouble({'the output': exact[0], 'the gradient': exact[1]}):
            return failed(f'{text}, in float64 too')
        largest = 0.0 if error else exact[0].abs().amax().item()
        if largest > torch.finfo(kind).max:
            return note(
                f'{text} at features of 300, where the right output reaches {largest:.2g}',
                'it multiplies features by each other: use bfloat16',
            )
        return failed(
            f'{text} at features of 300', 'take sums, squares and products in float32: x.float(), or x.mean(dtype=...)'
        )
    if error:
        return passed('finite at features of 300')
    away = difference(found[0], exact[0])
    text = f'finite at features of 300, {number(away)} from float64'
    if away > tolerable:
        return note(text, 'take statistics in float32', away)
    return Finding('', 'pass', text, value=away)


@check('float16', 'Does it work in float16 with features of 300?')
def float16(s: Subject, case: Case) -> Finding:
    return _half(s, case, torch.float16, 0.05)


@check('bfloat16', 'Does it work in bfloat16 with features of 300?')
def bfloat16(s: Subject, case: Case) -> Finding:
    return _half(s, case, torch.bfloat16, 0.3)
