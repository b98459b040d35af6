"""What Triton's interpreter is given for these tests; a plugin of pytest, in processes with ``TRITON_INTERPRET=1``.

Its ``fma`` rounds the product, and its bfloat16 is not rounded to the nearest: no card does this, and PyTorch's
operators on the CPU do not either. And it computes all integers twice, to see whether they overflow, which takes most
of its time.
"""

import dataclasses

import numpy as np
import torch
from triton import language as tl
from triton.runtime import interpreter

_convert_float = interpreter._convert_float


def _fma(self, x, y, z):
    a, b, c = (torch.from_numpy(np.ascontiguousarray(t.data)) for t in (x, y, z))
    return interpreter.TensorHandle(torch.addcmul(c, a, b).numpy(), z.dtype.scalar)


def _convert(data, before, after, rounding_mode):
    if before == tl.float32 and after == tl.bfloat16:
        data = np.ascontiguousarray(data).view(np.float32)
        return torch.from_numpy(data).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return _convert_float(data, before, after, rounding_mode)


interpreter.InterpreterBuilder.create_fma = _fma
interpreter._convert_float = _convert
_builder = interpreter.interpreter_builder
_builder.options = dataclasses.replace(_builder.options, sanitize_overflow=False)
