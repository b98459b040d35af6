"""Checkpoints, copies, processes, compilers and exporters."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..results import Finding, failed, note, passed, skipped
from ..subject import Subject
from .base import Case, attempt, check, difference, number


def _plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a module holds without registering them."""
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            if key in ('_parameters', '_buffers', '_modules'):
                continue
            for path, tensor in _tensors_in(value, key):
                yield f'{name}.{path}'.lstrip('.'), tensor


def _tensors_in(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors_in(item, f'{path}[{i}]')
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors_in(item, f'{path}[{key!r}]')


def _plain_modules(module: nn.Module) -> list[str]:
    """Modules in a plain list or dict, whose parameters nobody knows."""
    known = set(map(id, module.modules()))
    found = []
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            items = value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else ()
            if key != '_modules' and any(isinstance(v, nn.Module) and id(v) not in known for v in items):
                found.append(f'{name}.{key}'.lstrip('.'))
    return found


@check('registered', 'Does everything follow .to(device), and lie in the checkpoint?')
def registered(s: Subject, case: Case) -> Finding:
    case('tensors that it holds')
    module = s.build()
    hidden = _plain_modules(module)
    plain = {name: t for name, t in _plain_tensors(module) if t.dim() > 0}
    if hidden:
        return failed(f'{", ".join(hidden)}: modules in a plain list or dict', 'use nn.ModuleList or nn.ModuleDict')
    if plain:
        text = ', '.join(f'{name} {tuple(t.shape)}' for name, t in plain.items())
        return failed(
            f'{text}: plain tensors, which stay where they are',
            'register_buffer() for constants, nn.Parameter for weights',
        )
    return passed('parameters and buffers alone')


@check('state_dict', 'Does its state survive state_dict() and load_state_dict()?')
def state_dict(s: Subject, case: Case) -> Finding:
    case('state after some steps in training mode')
    module, x = s.lively(12), s.features(3)
    module.train()
    with torch.no_grad():
        for seed in range(3):
            attempt(lambda: module(s.features(3, seed=20 + seed)))  # noqa: B023
    module.eval()
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    state, error = attempt(lambda: torch.load(buffer, weights_only=True))
    if error:
        return failed(
            f'torch.load(weights_only=True) refuses it ({error})', 'put tensors and numbers alone into the state'
        )
    other = s.lively(13).eval()
    _, error = attempt(lambda: other.load_state_dict(state))
    if error:
        return failed(f'load_state_dict raises {error}')
    with torch.no_grad():
        a, error_a = attempt(lambda: module(x.clone()))
        b, error_b = attempt(lambda: other(x.clone()))
    if error_a or error_b:
        return failed(f'raises {error_a or error_b}')
    value = difference(b, a)
    if value > s.tolerance:
        return failed(
            f'another output after loading (by {number(value)})',
            'something that decides the output is in no parameter and no buffer',
            value,
        )
    return passed(f'{len(state)} tensors', value)


@check('deepcopy', 'Can it be copied, after a forward too?')
def deepcopy(s: Subject, case: Case) -> Finding:
    case('copy.deepcopy')
    module, x = s.lively(14), s.features(2)
    attempt(lambda: module(x.clone()))
    twin, error = attempt(lambda: copy.deepcopy(module))
    if error:
        return failed(f'raises {error}', 'keep no outputs, locks, files or generators in the module (EMA copies it)')
    shared = {p.data_ptr() for p in module.parameters() if p.numel()} & {
        p.data_ptr() for p in twin.parameters() if p.numel()
    }
    if shared:
        return failed('the copy shares parameters with the original', 'leave __deepcopy__ to nn.Module')
    with torch.no_grad():
        a, error = attempt(lambda: module(x.clone()))
        b, other = attempt(lambda: twin(x.clone()))
    if error or other:
        return failed(f'the copy raises {other or error}')
    if difference(b, a) > s.tolerance:
        return failed(f'the copy has another output (by {number(difference(b, a))})')
    return passed('same output')


@check('pickle', 'Can it be pickled, for other processes and torch.save(model)?')
def pickled(s: Subject, case: Case) -> Finding:
    case('pickle')
    module, x = s.lively(15), s.features(2)
    data, error = attempt(lambda: pickle.dumps(module))
    if error:
        return failed(
            f'raises {error}', 'no lambdas and no classes or functions inside of functions: name them in a file'
        )
    twin, error = attempt(lambda: pickle.loads(data))
    if error:
        return failed(f'cannot be read again ({error})')
    with torch.no_grad():
        a, error = attempt(lambda: module(x.clone()))
        b, other = attempt(lambda: twin(x.clone()))
    if error or other:
        return failed(f'raises {other or error}')
    if difference(b, a) > s.tolerance:
        return failed(f'another output (by {number(difference(b, a))})')
    return passed(f'{len(data):,} bytes')


@check('compile', 'Does torch.compile(fullgraph=True) take it?')
def compiled(s: Subject, case: Case) -> Finding:
    """Captured and differentiated (backend aot_eager), without a compiler of kernels, which takes a minute."""
    case('torch.compile')
    module, x = s.lively(16), s.features(2)
    right, error = attempt(lambda: module(x.clone()).detach())
    if error:
        return failed(f'raises {error}')
    torch._dynamo.reset()
    try:
        y, error = attempt(lambda: torch.compile(module, fullgraph=True, backend='aot_eager')(x.clone()).detach())
    finally:
        torch._dynamo.reset()
    if error:
        return failed(
            f'{error}',
            'no .item(), no print, no Python values of tensors in forward: each one breaks the graph',
        )
    value = difference(y, right)
    if value > max(s.tolerance, 1e-6):
        return failed(f'another output (by {number(value)})', value=value)
    return passed('one graph', value)


@check('onnx', 'Can it be exported to ONNX, and does the file compute the same?')
def onnx(s: Subject, case: Case) -> Finding:
    try:
        import onnx as package  # noqa: F401
    except ImportError:
        return skipped('onnx is not installed')
    case('export')
    module = s.lively(17, torch.float32)
    x = s.features(1, dtype=torch.float32)
    buffer = io.BytesIO()
    axes = {'x': {0: 'n', 2: 'height', 3: 'width'}}
    options: dict[str, Any] = dict(opset_version=17, dynamo=False, input_names=['x'], output_names=['y'])
    _, error = attempt(lambda: torch.onnx.export(module, (x,), buffer, dynamic_axes=axes, **options))
    fixed = ''
    if error:  # some poolings need a size that is known
        buffer = io.BytesIO()
        fixed = error
        _, error = attempt(lambda: torch.onnx.export(module, (x,), buffer, **options))
    if error:
        return failed(f'{error}', 'use operators that ONNX has')
    with torch.no_grad():
        right, error = attempt(lambda: module(x.clone()))
    if error:
        return failed(f'raises {error}')
    tail = '; for maps of one size alone' if fixed else ''
    try:
        import onnxruntime
    except ImportError:
        return passed(f'exported, not run: onnxruntime is not installed{tail}')
    case('onnxruntime')
    y, error = attempt(lambda: _run_onnx(onnxruntime, buffer.getvalue(), x))
    if error:
        return failed(f'onnxruntime raises {error}')
    value = difference(y, right)
    if value > 1e-3:
        return failed(
            f'the file computes something else (by {number(value)})', 'no decisions by values in forward', value
        )
    if fixed:
        return note(
            f'for maps of {s.size[0]} x {s.size[1]} alone: {fixed}', 'poolings to a size that is no divisor', value
        )
    other = s.features(2, (s.size[0] + 3, s.size[1] + 2), dtype=torch.float32)
    with torch.no_grad():
        right, error = attempt(lambda: module(other.clone()))
    if not error:
        y, error = attempt(lambda: _run_onnx(onnxruntime, buffer.getvalue(), other))
        if error or difference(y, right) > 1e-3:
            away = error or f'by {number(difference(y, right))}'
            return note(
                f'right at {s.size[0]} x {s.size[1]}, wrong at another size ({away})', 'export it for each size'
            )
    return passed(f'{number(value)} from PyTorch', value)


def _run_onnx(runtime: Any, data: bytes, x: Tensor) -> Tensor:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {'x': x.numpy()})[0])
