"""What mmcv's Python makes of the replaced operators: the list of cases of mmcv's own tests, worked out by hand,
by another formulation, or by numerical gradients. Here all of it runs on the CPU, too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional

from mmccd.compat import mmcv_ops

STATE = mmcv_ops.install()
mmcv = pytest.importorskip('mmcv.ops')
if STATE != 'replacement':
    pytest.skip(f"mmcv's operators in use: {STATE}", allow_module_level=True)

HALF = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def close(got, expected, **tolerance):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), **tolerance)


def tolerance(dtype):
    return {torch.float16: dict(rtol=2e-3, atol=2e-3), torch.bfloat16: dict(rtol=2e-2, atol=2e-2)}.get(dtype, {})


# ----------------------------------------------------------------------------- deformable convolutions


@pytest.mark.parametrize('dtype', HALF)
def test_deform_conv_without_offset_is_a_convolution(dtype):
    x = torch.randn(4, 4, 6, 7, dtype=dtype, requires_grad=True)
    conv = mmcv.DeformConv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, im2col_step=2).to(dtype)
    y = conv(x, torch.zeros(4, 18, 2, 3, dtype=dtype))
    grads = torch.autograd.grad(y.square().sum(), (x, conv.weight))
    exact = [t.detach().double().requires_grad_() for t in (x, conv.weight)]
    expected = functional.conv2d(*exact, stride=2, padding=1, dilation=2, groups=2)
    assert y.dtype == dtype
    close(y, expected.detach(), **tolerance(dtype))
    for grad, other in zip(grads, torch.autograd.grad(expected.square().sum(), exact)):
        close(grad, other, **{k: 10 * v for k, v in tolerance(dtype).items()})


def test_deform_conv_moves_each_tap():
    """One channel, one tap: the offset of each place says what is read there; outside is 0."""
    x = torch.arange(12.0).view(1, 1, 3, 4)
    conv = mmcv.DeformConv2d(1, 1, 1)
    conv.weight.data.fill_(2.0)
    offset = torch.zeros(1, 2, 3, 4)
    offset[0, :, 0, 0] = torch.tensor([1.0, 2.0])  # to (1, 2)
    offset[0, :, 1, 1] = torch.tensor([0.5, -0.25])  # to (1.5, 0.75)
    offset[0, :, 2, 3] = torch.tensor([0.5, 0.0])  # half of the zeros below
    offset[0, :, 2, 0] = torch.tensor([math.nan, 0.0])
    offset[0, :, 0, 3] = torch.tensor([0.0, math.inf])
    expected = 2 * x
    expected[0, 0, 0, 0] = 2 * 6
    expected[0, 0, 1, 1] = 2 * (4 * 1.5 + 0.75)  # 4 y + x
    expected[0, 0, 2, 3] = 11
    expected[0, 0, 2, 0] = expected[0, 0, 0, 3] = 0
    offset.requires_grad_()
    y = conv(x, offset)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    # The slopes of 4 y + x, and 0 where nothing is read.
    close(offset.grad[0, :, 1, 1], [8.0, 2.0])
    close(offset.grad[0, :, 2, 0], [0.0, 0.0])
    close(offset.grad[0, :, 0, 3], [0.0, 0.0])


def test_deform_conv_reads_no_further_than_mmcv():
    """A sample at -1 exactly, where a padded convolution begins: no value, and no gradient of its offset."""
    x = torch.rand(1, 1, 4, 4) + 1
    offset = torch.zeros(1, 18, 4, 4, requires_grad=True)
    mmcv.DeformConv2d(1, 1, 3, padding=1)(x, offset).sum().backward()
    grad = offset.grad.view(3, 3, 2, 4, 4)
    assert not grad[0, :, :, 0].any() and not grad[:, 0, :, :, 0].any()
    assert grad[1, 1, :, :3, :3].all()


def test_deform_conv_arguments():
    x, offset = torch.rand(10, 1, 3, 3), torch.zeros(10, 8, 2, 2)
    for refused in (dict(bias=True), dict(in_channels=3, groups=2), dict(in_channels=3, out_channels=4, groups=3)):
        with pytest.raises(AssertionError):
            mmcv.DeformConv2d(**{**dict(in_channels=1, out_channels=1, kernel_size=2), **refused})
    with pytest.raises(AssertionError, match='batch size must be divisible by im2col_step'):
        mmcv.DeformConv2d(1, 1, 2, im2col_step=3)(x, offset)
    whole = mmcv.DeformConv2d(1, 1, 2, im2col_step=32)
    parts = mmcv.DeformConv2d(1, 1, 2, im2col_step=2)
    parts.load_state_dict(whole.state_dict())
    torch.testing.assert_close(whole(x, offset), parts(x, offset))
    with pytest.raises(RuntimeError, match=r'offset.*got: 6 expected: 8'):
        whole(x, offset[:, :6])


def test_deform_conv_of_a_small_image():
    conv = mmcv.DeformConv2d(1, 1, 3, padding=1)
    x = torch.rand(1, 1, 2, 5)
    y = conv(x, torch.zeros(1, 18, 2, 5))
    torch.testing.assert_close(y, functional.conv2d(x, conv.weight, padding=1))


def test_deform_conv_gradients_twice():
    """The weight's gradient is computed with the input's: it must be that of the same gradient of the output."""
    x, offset = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 8, 3, 3)
    conv = mmcv.DeformConv2d(2, 1, 2)
    y = conv(x, offset)
    grads = [torch.autograd.grad(y, (x, conv.weight), k * torch.ones_like(y), retain_graph=True) for k in (1.0, 3.0)]
    torch.autograd.grad(y, x, 7 * torch.ones_like(y), retain_graph=True)
    [alone] = torch.autograd.grad(y, conv.weight, 5 * torch.ones_like(y), retain_graph=True)
    torch.testing.assert_close(grads[1], tuple(3 * g for g in grads[0]))
    torch.testing.assert_close(alone, 5 * grads[0][1])


@pytest.mark.parametrize('modulated', [False, True])
def test_deform_conv_gradcheck(modulated):
    x = torch.rand(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    # Two groups of offsets; none on a pixel, where the slope changes.
    offset = (
        torch.randint(-2, 3, (2, 24, 3, 3)) + 0.1 + 0.8 * torch.rand(2, 24, 3, 3, dtype=torch.float64)
    ).requires_grad_()
    options = ((2, 2), (1, 1), (1, 1), 2, 2)
    if modulated:
        mask = torch.rand(2, 12, 3, 3, dtype=torch.float64, requires_grad=True)
        bias = torch.rand(2, dtype=torch.float64, requires_grad=True)
        assert gradcheck(lambda *t: mmcv.modulated_deform_conv2d(*t, *options), (x, offset, mask, weight, bias))
    else:
        assert gradcheck(lambda *t: mmcv.deform_conv2d(*t, *options), (x, offset, weight))


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('bias', [False, True])
def test_modulated_deform_conv_pack(dtype, bias):
    """DCNv2 as it starts: no offset, and a factor of 1/2 for each tap."""
    conv = mmcv.ModulatedDeformConv2dPack(2, 3, (2, 2), stride=1, padding=1, bias=bias).to(dtype)
    if bias:
        conv.bias.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.rand(1, 2, 3, 3, dtype=dtype, requires_grad=True)
    y = conv(x)
    expected = functional.conv2d(x.double(), conv.weight.double() / 2, conv.bias.double() if bias else None, padding=1)
    close(y, expected.detach(), **tolerance(dtype))
    y.sum().backward()
    assert conv.conv_offset.weight.grad.isfinite().all() and conv.conv_offset.weight.grad.any()


def test_modulated_deform_conv_in_mixed_precision():
    conv = mmcv.ModulatedDeformConv2dPack(2, 3, 3, padding=1)
    x = torch.rand(2, 2, 5, 5, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = conv(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.any() and x.grad.isfinite().all()


@pytest.mark.parametrize('options', [{}, dict(padding=2, dilation=2), dict(use_deform=True), dict(groups=2)])
def test_switchable_atrous_convolution(options):
    conv = mmcv.SAConv2d(4, 6, kernel_size=3, **{'padding': 1, **options})
    x = torch.rand(1, 4, 12, 12, requires_grad=True)
    y = conv(x)
    assert y.shape == (1, 6, 12, 12)
    y.sum().backward()
    # As it starts, both branches and the switch are a plain convolution's sum of one and none.
    assert x.grad.any() and conv.weight.grad.any()


# ----------------------------------------------------------------------------- boxes

BOXES = np.array([[6, 3, 8, 7], [3, 6, 9, 11], [3, 7, 10, 12], [1, 4, 13, 7]], np.float32)
SCORES = np.array([0.6, 0.9, 0.7, 0.2], np.float32)
# Overlaps: 1 and 2 have 24 of 41; 1 and 0 have 2 of 36, 0 and 3 have 6 of 38, 1 and 3 have 6 of 60.
LOWER = {0: 2 / 36, 2: 24 / 41, 3: 6 / 60}


@pytest.mark.parametrize(
    ('method', 'kept', 'scores'),
    [
        ('naive', [1, 0, 3], [0.9, 0.6, 0.2]),
        ('linear', [1, 0, 2, 3], [0.9, 0.6, 0.7 * (1 - LOWER[2]), 0.2]),
        (
            'gaussian',
            [1, 0, 2, 3],
            [
                0.9,
                0.6 * math.exp(-(LOWER[0] ** 2) / 0.5),
                0.7 * math.exp(-(LOWER[2] ** 2) / 0.5),
                # 0 lowers 3 as well, and 2 does not meet it.
                0.2 * math.exp(-(LOWER[3] ** 2 + (6 / 38) ** 2) / 0.5),
            ],
        ),
    ],
)
def test_soft_nms(method, kept, scores):
    for boxes, given in ((BOXES, SCORES), (torch.from_numpy(BOXES), torch.from_numpy(SCORES))):
        dets, inds = mmcv.soft_nms(boxes, given, iou_threshold=0.3, sigma=0.5, min_score=0.01, method=method)
        assert type(dets) is type(inds) is type(boxes)
        assert inds.tolist() == kept
        np.testing.assert_allclose(dets[:, 4], scores, rtol=1e-6)
        np.testing.assert_array_equal(dets[:, :4], BOXES[kept])


def test_soft_nms_needs_no_gradient_and_takes_any_precision():
    boxes = torch.from_numpy(BOXES).requires_grad_()
    dets, inds = mmcv.soft_nms(boxes.half(), torch.from_numpy(SCORES).half(), 0.3)
    assert inds.tolist() == [1, 0, 2, 3] and dets.dtype == torch.float16
    assert mmcv.soft_nms(boxes[:0], torch.zeros(0))[0].shape == (0, 5)
    with pytest.raises(ValueError, match=r'method must be 0 .*got 3'):
        mmcv_ops.make_replacement().softnms(boxes, torch.rand(4), torch.zeros(4, 5), 0.3, 0.5, 0.01, 3, 0)


def test_soft_nms_of_scores_that_are_nan():
    """As the compiled loop: NaN wins over nothing, and is not below the minimum."""
    _, inds = mmcv.soft_nms(BOXES, np.array([0.6, math.nan, 0.7, 0.2], np.float32), 0.99, min_score=0.5)
    assert sorted(inds.tolist()) == [0, 1, 2]


def test_nms_match():
    assert mmcv.nms_match(np.zeros(0), 0.6) == []
    dets = np.array(
        [
            [49.1, 32.4, 51.0, 35.9, 0.9],
            [49.3, 32.9, 51.0, 35.3, 0.9],
            [35.3, 11.5, 39.9, 14.5, 0.4],
            [35.2, 11.7, 39.7, 15.7, 0.3],
        ],
        np.float32,
    )
    groups = mmcv.nms_match(dets, 0.6)
    assert [g.tolist() for g in groups] == [[0, 1], [2, 3]] and isinstance(groups[0], np.ndarray)
    tensors = mmcv.nms_match(torch.from_numpy(dets), 0.6)
    assert [g.tolist() for g in tensors] == [[0, 1], [2, 3]] and isinstance(tensors[0], torch.Tensor)
    assert [g.tolist() for g in mmcv.nms_match(dets, 0.62)] == [[0], [1], [2, 3]]  # overlaps 0.614 and 0.632
    kept = mmcv.nms(dets[:, :4].copy(), dets[:, 4].copy(), 0.6)[1]
    assert kept.tolist() == [g[0] for g in groups]
    with pytest.raises(AssertionError):
        mmcv.nms_match(np.zeros((2, 3)), 0.6)


@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_batched_nms(kind):
    """The same whether classes are moved apart or taken one after the other."""
    rng = np.random.RandomState(0)
    corner = rng.random_sample((200, 2)) * 50
    boxes = torch.from_numpy(np.concatenate([corner, corner + 5 + 20 * rng.random_sample((200, 2))], 1)).float()
    scores, classes = torch.from_numpy(rng.random_sample(200)).float(), torch.from_numpy(rng.randint(3, size=200))
    options = dict(type=kind, iou_threshold=0.5)
    if kind == 'nms':
        options.update(score_threshold=0.2, max_num=40)
    dets, kept = mmcv.batched_nms(boxes, scores, classes, options)
    other_dets, other = mmcv.batched_nms(boxes, scores, classes, {**options, 'split_thr': 100})
    assert kept.tolist() == other.tolist() and len(kept) == (40 if kind == 'nms' else (dets[:, 4] >= 1e-3).sum())
    torch.testing.assert_close(dets, other_dets, rtol=1e-5, atol=1e-4)
    of_all = mmcv.batched_nms(boxes, scores, classes, {**options, 'max_num': 200} if kind == 'nms' else options, True)[
        0
    ]
    assert of_all[:40, 4].sum() < dets[:40, 4].sum()  # boxes of other classes count, too
    dets, kept = mmcv.batched_nms(boxes, scores, classes, None)
    assert len(kept) == 200 and (dets[1:, 4] <= dets[:-1, 4]).all()


SQUARE = [0.0, 0.0, 2.0, 2.0, 0.0]
ROTATED = {  # (x, y, w, h, angle), and the intersection with SQUARE
    'itself': (SQUARE, 4.0),
    'turned by half a right angle': ([0, 0, 2, 2, math.pi / 4], 8 * (math.sqrt(2) - 1)),
    'turned by a right angle': ([0, 0, 2, 2, math.pi / 2], 4.0),
    'a strip across': ([0, 0, 10, 1, math.pi / 2], 2.0),
    'inside': ([0.2, 0.1, 1, 0.5, 0.3], 0.5),
    'around': ([0.2, 0.1, 10, 9, 0.3], 4.0),
    'a corner': ([1, 1, math.sqrt(2), math.sqrt(2), math.pi / 4], 0.5),
    'nearly parallel': ([1, 0, 2, 2, 1e-7], 2.0),
    'a side in common': ([2, 0, 2, 2, 0], 0.0),
    'a corner in common': ([2, 2, 2, 2, 0], 0.0),
    'apart': ([9, 9, 2, 2, 0.4], 0.0),
    'half a circle': ([1, 0, 2, 2, math.pi], 2.0),
}


@pytest.mark.parametrize('clockwise', [True, False])
def test_box_iou_rotated(clockwise):
    boxes = torch.tensor([box for box, _ in ROTATED.values()])
    inter = torch.tensor([common for _, common in ROTATED.values()])
    area = boxes[:, 2] * boxes[:, 3]
    square = torch.tensor([SQUARE])
    if not clockwise:
        boxes[:, 4] *= -1
    options = dict(clockwise=clockwise)
    close(mmcv.box_iou_rotated(square, boxes, **options), (inter / (4 + area - inter))[None], rtol=1e-5, atol=1e-6)
    close(mmcv.box_iou_rotated(boxes, square, mode='iof', **options), (inter / area)[:, None], rtol=1e-5, atol=1e-6)
    pairs = mmcv.box_iou_rotated(square.expand(len(boxes), 5), boxes, mode='iof', aligned=True, **options)
    close(pairs, inter / 4, rtol=1e-5, atol=1e-6)


def test_box_iou_rotated_of_upright_boxes_is_the_usual_one():
    import torchvision

    corner, size = 20 * torch.rand(40, 2), 1 + 9 * torch.rand(40, 2)
    upright = torch.cat([corner, corner + size], 1)
    rotated = torch.cat([corner + size / 2, size, torch.zeros(40, 1)], 1)
    close(mmcv.box_iou_rotated(rotated, rotated), torchvision.ops.box_iou(upright, upright), rtol=1e-4, atol=1e-5)


def test_box_iou_rotated_in_parts(monkeypatch):
    boxes = torch.cat([9 * torch.rand(20, 2), 1 + 5 * torch.rand(20, 2), torch.rand(20, 1)], 1)
    whole = mmcv.box_iou_rotated(boxes, boxes[:7])
    monkeypatch.setattr(mmcv_ops.rotated, 'CHUNK', 16)  # two rows at a time
    assert torch.equal(mmcv.box_iou_rotated(boxes, boxes[:7]), whole)
    assert mmcv.box_iou_rotated(boxes[:0], boxes).shape == (0, 20)
    assert mmcv.box_iou_rotated(boxes, boxes[:0]).shape == (20, 0)


@pytest.mark.parametrize('clockwise', [True, False])
def test_nms_rotated(clockwise):
    # The second is the first, turned a little; the third the first, moved far along.
    boxes = torch.tensor([[5, 5, 8, 4, 0.5], [5, 5, 8, 4, 0.6], [25, 5, 8, 4, 0.5], [5, 6, 8, 4, 0.5]])
    scores = torch.tensor([0.6, 0.9, 0.5, 0.7])
    if not clockwise:
        boxes[:, 4] *= -1
    dets, kept = mmcv.nms_rotated(boxes, scores, 0.5, clockwise=clockwise)
    assert kept.tolist() == [1, 2]
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    assert mmcv.nms_rotated(boxes, scores, 0.95, clockwise=clockwise)[1].tolist() == [1, 3, 0, 2]
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert mmcv.nms_rotated(boxes, scores, 0.5, labels, clockwise=clockwise)[1].tolist() == [
        1,
        2,
    ]  # labels change nothing
    empty = mmcv.nms_rotated(boxes[:0], scores[:0], 0.5)
    assert empty[0].shape == (0, 5) and empty[1] is None


def test_batched_nms_rotated():
    boxes = torch.tensor([[5, 5, 8, 4, 0.5], [5, 5, 8, 4, 0.6], [25, 5, 8, 4, 0.5], [5, 6, 8, 4, 0.5]])
    scores, labels = torch.tensor([0.6, 0.9, 0.5, 0.7]), torch.tensor([1, 0, 1, 0])
    options = dict(type='nms_rotated', iou_threshold=0.5)
    assert mmcv.batched_nms(boxes, scores, labels, options, class_agnostic=True)[1].tolist() == [1, 2]
    assert mmcv.batched_nms(boxes, scores, labels, options)[1].tolist() == [1, 0, 2]


def test_line_nms():
    if not hasattr(mmcv, 'line_nms'):
        pytest.skip('this mmcv has no line_nms')
    lanes = torch.zeros(4, 77)
    lanes[:, 4] = 40.0  # strips
    lanes[0, 5:], lanes[1, 5:], lanes[2, 5:] = 100.0, 104.0, 300.0
    lanes[3, 5:], lanes[3, 2] = 100.0, 60 / 71  # begins where the others have ended
    scores = torch.tensor([0.5, 0.9, 0.7, 0.8])
    keep, count, parent = mmcv.line_nms(lanes, scores, 5.0, 10)
    assert keep[:count].tolist() == [1, 3, 2] and parent.tolist() == [1, 1, 3, 2]
    assert mmcv.line_nms(lanes, scores, 3.0, 10)[0].tolist() == [1, 3, 2, 0]
    assert mmcv.line_nms(lanes, scores, 5.0, 1)[1] == 1
    with pytest.raises(ValueError, match='boxes must have 77 columns, got 20'):
        mmcv.line_nms(lanes[:, :20], scores, 5.0, 10)


# ----------------------------------------------------------------------------- pooling in boxes


def test_roi_align_of_what_is_no_box():
    """Negative, empty, NaN and infinite boxes at MMDetection's defaults: no samples, so 0; no gradient from them."""
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    inf, nan = math.inf, math.nan
    odd = [[5, 1, 2, 6], [1, 6, 5, 2], [5, 6, 1, 2], [3, 3, 3, 5], [nan, 1, 5, 5], [1, 1, 5, inf], [-inf, 1, inf, 5]]
    rois = torch.tensor([[0.0, *box] for box in [*odd, [1, 1, 5, 6]]])
    y = mmcv.roi_align(x, rois, (2, 2), 1.0, 0, 'avg', True)
    assert not y[:-1].any() and y[-1].all()
    y.sum().backward()
    alone = x.detach().clone().requires_grad_()
    mmcv.roi_align(alone, rois[-1:], (2, 2), 1.0, 0, 'avg', True).sum().backward()
    assert torch.equal(x.grad, alone.grad)


def test_roi_align_of_what_is_no_box_with_fixed_samples():
    x = torch.arange(64.0).view(1, 1, 8, 8).requires_grad_()
    rois = torch.tensor([[0.0, 5.0, 1.0, 1.0, 5.0], [0.0, math.nan, 1.0, 5.0, 5.0], [0.0, 1.0, 1.0, 5.0, 5.0]])
    y = mmcv.roi_align(x, rois, (1, 2), 1.0, 2, 'avg', True)
    assert y[1].isnan().all()
    torch.testing.assert_close(y[0].flip(-1), y[2])  # from right to left
    y[[0, 2]].sum().backward()
    assert x.grad.isfinite().all() and x.grad.sum() == 4


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
def test_roi_pool(dtype):
    """Of 4 x 4 pixels, the maximum of each quarter; which alone gets the gradient."""
    x = torch.tensor([[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]], dtype=dtype)
    x = torch.stack([x, -x])[None].requires_grad_()
    y = mmcv.roi_pool(x, torch.tensor([[0, 0, 0, 3, 3]], dtype=dtype), (2, 2), 1.0)
    close(y[0], [[[4.0, 8.0], [12.0, 16.0]], [[-1.0, -5.0], [-9.0, -13.0]]])
    y.sum().backward()
    first = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]])
    close(x.grad[0], torch.stack([first, first.roll((1, 1), (0, 1))]))


def test_roi_pool_gradcheck_and_parts(monkeypatch):
    x = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [[0, 0.3, 0.7, 9.2, 7.1], [1, 2.0, 3.0, 3.0, 9.0], [0, 4.0, 4.0, 20.0, 20.0]], dtype=torch.float64
    )
    run = lambda t: mmcv.roi_pool(t, rois, (2, 3), 0.5)  # noqa: E731
    assert gradcheck(run, x)
    whole = run(x)
    monkeypatch.setattr(mmcv_ops.roi_pool, 'CHUNK', 1)  # a box at a time
    assert torch.equal(run(x), whole)
    assert mmcv.roi_pool(x, rois[:0], (2, 3), 0.5).shape == (0, 2, 2, 3)


@pytest.mark.parametrize('kind', ['DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'])
@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_as_it_starts(kind, ratio):
    """No offset: RoIAlign, times 1/2 where it is modulated."""
    x = torch.rand(2, 3, 7, 8, requires_grad=True)
    rois = torch.tensor([[0, 0.4, 0.7, 12.2, 9.1], [1, 3.3, 2.0, 9.9, 14.2], [1, 2.0, 2.0, 2.4, 3.0]])
    pool = getattr(mmcv, kind)((2, 3), 3, deform_fc_channels=8, spatial_scale=0.5, sampling_ratio=ratio)
    expected = mmcv.roi_align(x, rois, (2, 3), 0.5, ratio, 'avg', True) / (2 if kind[0] == 'M' else 1)
    y = pool(x, rois)
    torch.testing.assert_close(y, expected)
    grad = torch.rand_like(y)
    got, other = (torch.autograd.grad(t, x, grad, retain_graph=True)[0] for t in (y, expected))
    if kind[0] != 'M':  # the mask depends on x, too
        torch.testing.assert_close(got, other)
    y.sum().backward()
    assert pool.offset_fc[-1].bias.grad.any()


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_gradcheck(ratio):
    x = torch.rand(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 2.4, 2.7, 10.2, 9.1], [1, 3.3, 2.0, 9.9, 8.2]], dtype=torch.float64)
    offset = torch.rand(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *t: mmcv.deform_roi_pool(t[0], rois, t[1], (2, 3), 0.5, ratio, 0.1), (x, offset))


def test_deform_roi_pool_without_boxes():
    y = mmcv.deform_roi_pool(torch.rand(1, 2, 5, 5, requires_grad=True), torch.zeros(0, 5), None, (2, 2))
    assert y.shape == (0, 2, 2, 2)
    y.sum().backward()


# ----------------------------------------------------------------------------- CARAFE


@pytest.mark.parametrize('function', ['carafe', 'carafe_naive'])
def test_carafe_by_hand(function):
    """All weight on the middle of each window is nearest upsampling; on the tap left of it, the same moved right."""
    x = torch.rand(1, 4, 3, 3)
    masks = torch.zeros(1, 2 * 9, 6, 6)
    masks[:, 4], masks[:, 9 + 3] = 1.0, 2.0
    y = getattr(mmcv, function)(x, masks, 3, 2, 2)
    up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(y[:, :2], up[:, :2])
    torch.testing.assert_close(y[:, 2:], 2 * functional.pad(up[:, 2:], (2, 0))[..., :6])


def test_carafe_gradcheck():
    x = torch.rand(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 2 * 9, 6, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(mmcv.CARAFE(3, 2, 2), (x, masks))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_carafe_in_half_precision(dtype):
    x, masks = torch.rand(1, 4, 3, 3).to(dtype), torch.rand(1, 25, 6, 6).to(dtype)
    y = mmcv.carafe(x, masks, 5, 1, 2)
    assert torch.equal(y, mmcv.carafe(x.float(), masks.float(), 5, 1, 2).to(dtype))


def test_carafe_pack_trains():
    pack = mmcv.CARAFEPack(4, 2, compressed_channels=3)
    x = torch.rand(1, 4, 5, 5, requires_grad=True)
    y = pack(x)
    assert y.shape == (1, 4, 10, 10)
    y.square().sum().backward()
    assert x.grad.any() and pack.content_encoder.weight.grad.any()


# ----------------------------------------------------------------------------- deformable attention


def attention_inputs(channels=2, dtype=torch.float64):
    shapes = torch.tensor([[6, 4], [3, 2]])
    value = 0.01 * torch.rand(1, 30, 2, channels, dtype=dtype)
    locations = torch.rand(1, 2, 2, 2, 2, 2, dtype=dtype)
    weights = torch.rand(1, 2, 2, 2, 2, dtype=dtype) + 1e-5
    return value, shapes, torch.tensor([0, 24]), locations, weights / weights.sum((-1, -2), keepdim=True)


@pytest.mark.parametrize('dtype', HALF)
def test_attention_equals_mmcvs_pytorch(dtype):
    attend = mmcv.multi_scale_deform_attn
    value, shapes, starts, locations, weights = attention_inputs(dtype=dtype)
    y = attend.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 2)
    expected = attend.multi_scale_deformable_attn_pytorch(value.double(), shapes, locations.double(), weights.double())
    assert y.dtype == dtype
    close(y, expected, **tolerance(dtype))


@pytest.mark.parametrize('channels', [1, 4, 15])
def test_attention_gradcheck(channels):
    value, shapes, starts, locations, weights = attention_inputs(channels)
    tensors = [t.requires_grad_() for t in (value, locations, weights)]
    function = mmcv.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    assert gradcheck(lambda v, p, w: function.apply(v, shapes, starts, p, w, 2), tensors)


def test_attention_outside():
    """At the place where the zeros begin, beyond it, and at NaN: no value and no gradient, as in mmcv's kernel."""
    value = torch.rand(1, 4, 1, 3, requires_grad=True)
    at = torch.tensor([[-0.25, 0.5], [0.5, -0.25], [1.25, 0.5], [math.nan, 0.5], [9.0, -math.inf]])
    at = at.view(1, 5, 1, 1, 1, 2).requires_grad_()
    weights = torch.ones(1, 5, 1, 1, 1, requires_grad=True)
    function = mmcv.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    y = function.apply(value, torch.tensor([[2, 2]]), torch.tensor([0]), at, weights, 64)
    assert not y.any()
    y.sum().backward()
    assert not value.grad.any() and not at.grad.any() and not weights.grad.any()


@pytest.mark.parametrize('ratio', [1.0, 0.5])
def test_attention_module(ratio):
    with pytest.raises(ValueError, match='embed_dims must be divisible by num_heads'):
        mmcv.MultiScaleDeformableAttention(embed_dims=256, num_heads=7)
    attention = mmcv.MultiScaleDeformableAttention(embed_dims=6, num_levels=2, num_heads=3, value_proj_ratio=ratio)
    query = torch.rand(5, 1, 6, requires_grad=True)
    options = dict(spatial_shapes=torch.tensor([[2, 2], [1, 1]]), level_start_index=torch.tensor([0, 4]))
    y = attention(query, query, query, reference_points=torch.rand(1, 5, 2, 2), **options)
    assert y.shape == (5, 1, 6)
    y.sum().backward()
    assert attention.sampling_offsets.bias.grad.any()


# ----------------------------------------------------------------------------- others


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('mode', ['default', 'N'])
def test_sync_bn_of_one_process_is_batch_norm(dtype, mode, tmp_path):
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/group', rank=0, world_size=1)
    try:
        sync, plain = mmcv.SyncBatchNorm(3, stats_mode=mode).to(dtype), nn.BatchNorm2d(3)
        sync.float()
        plain.weight.data.copy_(torch.tensor([0.2, 0.5, 0.7]))
        sync.load_state_dict(plain.state_dict())
        x = (3 * torch.randn(4, 3, 2, 3) + 1).to(dtype).requires_grad_()
        other = x.detach().float().requires_grad_()
        y, expected = sync(x), plain(other)
        grad = torch.randn_like(expected)
        y.backward(grad.to(dtype))
        expected.backward(grad)
        close(y, expected.detach(), **tolerance(dtype))
        close(x.grad, other.grad, **tolerance(dtype))
        for name in ('running_mean', 'running_var'):
            torch.testing.assert_close(getattr(sync, name), getattr(plain, name))
        for name in ('weight', 'bias'):
            close(getattr(sync, name).grad, getattr(plain, name).grad, **tolerance(dtype))
        empty = torch.zeros(0, 3, 2, 3).to(dtype).requires_grad_()
        before = sync.running_mean.clone()
        if mode == 'N':
            sync(empty).sum().backward()
            assert torch.equal(sync.running_mean, before) and not sync.weight.grad.isnan().any()
        with pytest.raises(AssertionError):
            mmcv.SyncBatchNorm(3, stats_mode='X')
    finally:
        torch.distributed.destroy_process_group()


def test_softmax_focal_loss_by_hand():
    # p = 1/2, gamma = 2: loss = alpha / 4 ln 2; with a weight for the second class.
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    loss = mmcv.softmax_focal_loss(x, torch.tensor([0, 1]), 2.0, 0.25, torch.tensor([1.0, 3.0]).double(), 'none')
    close(loss, [math.log(2) / 16, 3 * math.log(2) / 16])
    loss.sum().backward()
    # The derivative of -(1 - p)^2 log p for p is 2 (1 - p) log p - (1 - p)^2 / p, that of p for the logit p (1 - p).
    slope = 0.25 * 0.25 * (math.log(0.5) - 0.5)
    close(x.grad, [[slope, -slope], [-3 * slope, 3 * slope]])


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_focal_losses_of_mmcvs_cases(kind, dtype):
    """Against the definition, by autograd in float64."""
    cases = [
        ([[1.0, 0], [0, 1.0]], [0, 1]),
        ([[1.0, 0, -1.0], [0, 1.0, 2.0]], [2, 1]),
        ([[1e-6, 2e-6, 3e-6], [4e-6, 5e-5, 6e-4], [7e-3, 8e-2, 9e-1]], [1, 2, 0]),
    ]
    for logits, target in cases:
        x = torch.tensor(logits, dtype=dtype, requires_grad=True)
        exact = x.detach().double().requires_grad_()
        hit = functional.one_hot(torch.tensor(target), len(logits[0])).bool()
        p = exact.softmax(1) if kind == 'softmax' else exact.sigmoid()
        terms = -0.25 * (1 - p) ** 2 * p.log() * hit
        if kind == 'sigmoid':
            terms = terms - 0.75 * p**2 * (1 - p).log() * ~hit
        expected = terms.sum() / len(target)
        expected.backward()
        loss = getattr(mmcv, f'{kind}_focal_loss')(x, torch.tensor(target), 2.0, 0.25, None, 'mean')
        loss.backward()
        close(loss, expected.detach(), **tolerance(dtype))
        close(x.grad, exact.grad, **tolerance(dtype))


@pytest.mark.parametrize('kind', ['SoftmaxFocalLoss', 'SigmoidFocalLoss'])
def test_focal_loss_gradcheck(kind):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = getattr(mmcv, kind)(2.0, 0.25, weight=torch.rand(3, dtype=torch.float64))
    assert gradcheck(lambda t: loss(t, torch.tensor([0, 2, 1, 1])), x)


def test_softmax_focal_loss_bad_targets():
    with pytest.raises(ValueError, match='target must be less than the number of classes, 2, got 2'):
        mmcv.softmax_focal_loss(torch.zeros(1, 2), torch.tensor([2]))


def test_masked_conv_is_a_convolution_where_the_mask_is():
    conv = mmcv.MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    x, mask = torch.rand(1, 3, 6, 7), (torch.rand(1, 6, 7) > 0.5).float()
    expected = functional.conv2d(x, conv.weight, conv.bias, padding=(1, 2))
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv(x, mask), expected * mask)
    assert not conv(x, torch.zeros(1, 6, 7)).any()
