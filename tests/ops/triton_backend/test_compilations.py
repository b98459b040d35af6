"""How many kernels are compiled for images of many sizes, counted without a compiler."""

import pytest
import torch

from mmccd.ops.options import Options
from mmccd.ops.triton_backend import launches

triton = pytest.importorskip('triton', reason='Triton is not installed')
pytestmark = pytest.mark.skipif(launches.interpreting(), reason='the interpreter compiles nothing')

# Padded sizes of 800 x 1333 training with images of both orientations in a batch, and of validation.
COCO = [(h, w) for h in range(480, 1345, 32) for w in range(480, 1345, 32) if max(h, w) >= 800]
OPTIONS = Options(64)


class Compilations:
    """Stands for :class:`launches.Launch`: notes what Triton would compile for."""

    def __init__(self):
        self.found = set()

    def __call__(self, kernel, grid, warps, values):
        constants = tuple(
            (p.name, getattr(values[p.name], 'value', values[p.name]))
            for p in kernel.params
            if p.name in values and (p.is_constexpr or isinstance(values[p.name], triton.language.constexpr))
        )
        missing = [p.name for p in kernel.params if p.is_constexpr and p.name not in values]
        assert not missing, f'{kernel.__name__} is not given {missing}'
        self.found.add((kernel.__name__, warps, constants))

    def of(self, shape, layout, dtype=torch.float16):
        x = torch.empty(shape, dtype=dtype, device='meta', memory_format=layout)
        for keep in (True, False):
            launches.Forward(x, x, OPTIONS, keep)
        launches.Backward(x, x, x, OPTIONS)


@pytest.fixture
def compilations(monkeypatch):
    found = Compilations()
    monkeypatch.setattr(launches, 'Launch', found)
    return found


def stages(height, width):
    """Maps of ResNet-50 for an image."""
    return [(2, 256 * 2**i, -(-height // (4 << i)), -(-width // (4 << i))) for i in range(4)]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'channels_last'])
def test_few_kernels_for_all_sizes_of_coco(layout, compilations):
    assert len(COCO) > 396
    for size in COCO[::7]:
        for shape in stages(*size):
            compilations.of(shape, layout)
    some = set(compilations.found)
    for size in COCO:
        for shape in stages(*size):
            compilations.of(shape, layout)
    assert 20 < len(compilations.found) <= 40
    assert some == compilations.found  # a seventh of the sizes has brought all of them


def test_classification_compiles_for_its_size(compilations):
    """Three kernels a stage: forward with and without a gradient, backward."""
    for shape in stages(224, 224):
        compilations.of(shape, torch.channels_last)
    assert len(compilations.found) == 12
    for shape in stages(256, 256):
        compilations.of(shape, torch.channels_last)
    assert len(compilations.found) == 24


def test_samples_compile_nothing(compilations):
    for samples in (1, 2, 16, 63, 64):
        for shape in [*stages(224, 224), *stages(800, 1344)]:
            compilations.of((samples, *shape[1:]), torch.channels_last)
        if samples == 1:
            first = set(compilations.found)
    assert compilations.found == first


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_compilations_on_cuda():
    from mmccd.ops import ccd
    from mmccd.ops.triton_backend import kernels_split_backward, kernels_split_forward, kernels_whole

    functions = [
        f
        for module in (kernels_split_backward, kernels_split_forward, kernels_whole)
        for name, f in vars(module).items()
        if name.endswith('_kernel')
    ]

    def run(sizes):
        for height, width in sizes:
            x = torch.randn(2, 16, height, width, device='cuda', dtype=torch.float16, requires_grad=True)
            scale, bias = torch.ones(2, 2, device='cuda')
            ccd(x, scale, bias, 2, impl='triton').sum().backward()
        return sum(len(f.device_caches[torch.cuda.current_device()][0]) for f in functions)

    # The second series has the first one's facts (what divides the width and height) in other sizes.
    first = run([(40 + 4 * i, 100 + 1 * i) for i in range(8)] + [(41 + 2 * i, 96 + 8 * i) for i in range(8)])
    assert run([(80 + 4 * i, 140 + 1 * i) for i in range(15)] + [(81 + 2 * i, 168 + 8 * i) for i in range(15)]) == first
