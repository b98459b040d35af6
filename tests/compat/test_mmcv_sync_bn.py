"""mmcv's SyncBatchNorm on the replaced operators, in four processes: groups of one, two and four, and empty batches."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, multiprocessing, nn

from mmccd.compat import mmcv_ops

STATE = mmcv_ops.install()
mmcv = pytest.importorskip('mmcv.ops')
RANKS = 4


def data(dtype, empty):
    generator = torch.Generator().manual_seed(9)
    x, grad = (torch.rand(0 if empty else 4 * RANKS, 3, 2, 3, generator=generator) for _ in range(2))
    return x.to(dtype), grad.to(dtype)


def batch_norm(x, grad):
    """Outputs, gradients and running statistics of a norm that sees all of a group's images."""
    norm = nn.BatchNorm2d(3)
    norm.weight.data.copy_(torch.tensor([0.2, 0.5, 0.7]))
    x = x.float().requires_grad_()
    y = norm(x)
    y.backward(grad.float())
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def in_process(rank, file, size, dtype, mode, empty):
    """One of four processes; an assertion that fails ends it with an error."""
    distributed.init_process_group('gloo', f'file://{file}', rank=rank, world_size=RANKS)
    groups = [distributed.new_group(list(range(i, i + size))) for i in range(0, RANKS, size)]
    norm = mmcv.SyncBatchNorm(3, group=groups[rank // size], stats_mode=mode)
    norm.weight.data.copy_(torch.tensor([0.2, 0.5, 0.7]))
    x, grad = data(dtype, empty)
    mine, ours = slice(4 * rank, 4 * rank + 4), slice(rank // size * size * 4, (rank // size + 1) * size * 4)
    part = x[mine].clone().requires_grad_()
    y = norm(part)
    y.backward(grad[mine])
    if empty:
        assert y.shape == (0, 3, 2, 3)
        assert not norm.running_mean.any() and (norm.running_var == 1).all()
    else:
        expected = batch_norm(x[ours], grad[ours])
        here = slice(rank % size * 4, rank % size * 4 + 4)
        tolerance = dict(rtol=1e-2, atol=1e-2) if dtype == torch.float16 else dict(rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y.detach().float(), expected[0][here], **tolerance)
        torch.testing.assert_close(part.grad.float(), expected[1][here], **tolerance)
        for got, other in zip((norm.weight.grad, norm.bias.grad), expected[2:4]):
            torch.testing.assert_close(got, other / size, **tolerance)
        torch.testing.assert_close(norm.running_mean, expected[4])
        torch.testing.assert_close(norm.running_var, expected[5], **tolerance)
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize(
    ('size', 'dtype', 'mode', 'empty'),
    [
        *[(size, dtype, 'default', False) for size in (1, 2, 4) for dtype in (torch.float32, torch.float16)],
        (2, torch.float32, 'N', False),
        *[(size, torch.float32, 'N', True) for size in (1, 2, 4)],
    ],
)
def test_sync_bn(tmp_path, size, dtype, mode, empty):
    if STATE != 'replacement':
        pytest.skip(f"mmcv's operators in use: {STATE}")
    context = multiprocessing.get_context('fork')  # with what is imported here
    arguments = (str(tmp_path / 'group'), size, dtype, mode, empty)
    processes = [context.Process(target=in_process, args=(rank, *arguments)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * RANKS
