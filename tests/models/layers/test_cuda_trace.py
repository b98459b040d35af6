"""The layers on tensors that are CUDA's in name, under autocast: nothing waits for the GPU or mixes devices.

Fake tensors have CUDA's device and no data, so no GPU is needed. Autograd's engine wants a device that is there, so
forward alone.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmccd.models.layers import attention_types
from mmccd.registry import MODELS

WAITS = ('_local_scalar_dense', 'is_nonzero', 'nonzero', 'equal', 'item')


class OnTheHost(TorchDispatchMode):
    """Names of operators that wait for the GPU, or whose result lies on the CPU."""

    def __init__(self):
        super().__init__()
        self.names, self.calls = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix('aten::')
        self.calls += 1
        results = result if isinstance(result, (tuple, list)) else (result,)
        if name in WAITS or any(isinstance(t, torch.Tensor) and t.device.type == 'cpu' for t in results):
            self.names.append(name)
        return result


@pytest.fixture
def autocast_on_cuda():
    """What torch.autocast('cuda') sets; it refuses where there is no GPU."""
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')

    def set_to(dtype):
        torch.set_autocast_enabled('cuda', True)
        torch.set_autocast_dtype('cuda', dtype)

    yield set_to
    torch.set_autocast_enabled('cuda', before[0])
    torch.set_autocast_dtype('cuda', before[1])
    torch.clear_autocast_cache()


@pytest.mark.parametrize('train', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', sorted(attention_types()))
def test_under_autocast(name, dtype, train, autocast_on_cuda):
    channels = 64
    with FakeTensorMode():
        with torch.device('cuda'):
            layer = MODELS.build(dict(type=f'mmccd.{name}', in_channels=channels)).train(train)
        for features in (dtype, torch.float32):
            x = torch.empty(2, channels, 14, 14, device='cuda', dtype=features)
            autocast_on_cuda(dtype)
            with OnTheHost() as seen, torch.no_grad():
                y = layer(x)
            assert seen.calls > 0  # one: CCD's own, whose kernels tests/ops counts
            assert not seen.names, seen.names
            assert y.device == x.device
            # SK's are convolutions, which autocast runs in half precision; a gate leaves features as they are.
            assert y.dtype == (dtype if layer.replaces_conv else features)


def test_the_mode_finds_what_it_looks_for():
    with FakeTensorMode(), OnTheHost() as seen:
        x = torch.empty(3, device='cuda')
        x + x
        x.cpu()
    assert seen.names == ['_to_copy']
