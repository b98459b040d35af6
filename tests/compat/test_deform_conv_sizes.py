"""Offsets of larger maps than the output, which mmcv's kernels read from the beginning of each image's memory."""

import torch
from torchvision.ops import deform_conv2d

from mmccd.compat.mmcv_ops import deform_conv

OPTIONS = dict(kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, pad_h=1, pad_w=1, dilation_h=1, dilation_w=1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_modulated_deform_conv():
    """Forward, and the gradients of what was read; of the rest they are 0. Slices of one tensor, as DyHead has them."""
    x, weight, both = random(2, 4, 5, 6), random(3, 4, 3, 3, seed=1), random(2, 27, 8, 9, seed=2)
    offset, mask = both[:, :18], both[:, 18:]
    output, empty = torch.empty(2, 3, 5, 6), torch.empty(0)
    deform_conv.modulated_deform_conv_forward(
        x, weight, empty, empty, offset, mask, output, empty, **OPTIONS, group=1, deformable_group=1, with_bias=False
    )
    read = [
        torch.stack([image.reshape(-1)[: image.size(0) * 30].view(-1, 5, 6) for image in t]).requires_grad_()
        for t in (offset, mask)
    ]
    leaf = x.clone().requires_grad_()
    expected = deform_conv2d(leaf, read[0], weight, padding=1, mask=read[1])
    assert torch.equal(output, expected)

    grad = random(2, 3, 5, 6, seed=3)
    expected.backward(grad)
    grads = [torch.zeros_like(t) for t in (x, weight, empty)] + [
        torch.full_like(t.contiguous(), 7) for t in (offset, mask)
    ]
    deform_conv.modulated_deform_conv_backward(
        x,
        weight,
        empty,
        empty,
        offset,
        mask,
        empty,
        *grads,
        grad,
        **OPTIONS,
        group=1,
        deformable_group=1,
        with_bias=False,
    )
    torch.testing.assert_close(grads[0], leaf.grad)
    for found, part in zip(grads[3:], read):
        taken = part[0].numel()
        torch.testing.assert_close(found.flatten(1)[:, :taken], part.grad.flatten(1))
        assert not found.flatten(1)[:, taken:].any()
