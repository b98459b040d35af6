"""What is compared between mmcv's compiled operators and their replacement: inputs, and the calls as mmcv makes them.

Each case takes a module with mmcv's operators and returns named tensors. ``make_mmcv_ops_golden.py`` runs them on the
compiled operators, and the tests on the replacement.
"""

from __future__ import annotations

import numpy as np
import torch

CASES = {}  # name -> function of the operators; those by 'kernel' have no CPU kernel in mmcv
KERNELS = set()  # names of cases whose numbers come from mmcv's CUDA kernels


def case(name, source='cpu', **options):
    def register(function):
        CASES[name] = lambda ext: {k: torch.as_tensor(v) for k, v in function(ext, _Draw(name), **options).items()}
        if source == 'kernel':
            KERNELS.add(name)
        return function

    return register


class _Draw:
    """Random numbers that are the same in every version of numpy and PyTorch."""

    def __init__(self, name):
        self.state = np.random.RandomState(sum(map(ord, name)))

    def normal(self, *shape, dtype=torch.float32):
        return torch.from_numpy(self.state.standard_normal(shape)).to(dtype)

    def uniform(self, *shape, dtype=torch.float32):
        return torch.from_numpy(self.state.random_sample(shape)).to(dtype)

    def integers(self, high, *shape):
        return torch.from_numpy(self.state.randint(high, size=shape))

    def boxes(self, count, size):
        corner = size * self.uniform(count, 2)
        return torch.cat([corner, corner + size / 2 * self.uniform(count, 2)], 1)


# ------------------------------------------------------------------------------------------ deformable convolutions

LAYOUTS = {
    'plain': dict(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deform_groups=1),
    'strided': dict(kernel=(3, 3), stride=(2, 2), padding=(2, 2), dilation=(2, 2), groups=2, deform_groups=2),
    'uneven': dict(kernel=(1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=1, deform_groups=4),
    'unpadded': dict(kernel=(2, 2), stride=(1, 2), padding=(0, 0), dilation=(2, 1), groups=4, deform_groups=1),
    'wide': dict(kernel=(3, 3), stride=(3, 1), padding=(4, 3), dilation=(3, 2), groups=2, deform_groups=1),
}
OFFSETS = {
    'zero': lambda t: 0 * t,  # where a training begins: samples at -1 exactly
    'whole': lambda t: (2 * t).round(),  # on pixels
    'any': lambda t: 2 * t,
    'far': lambda t: 20 * t,  # most samples outside
}


def _deform_inputs(draw, kernel, stride, padding, dilation, groups, deform_groups, offsets, batch, dtype):
    size, c_in, c_out = (7, 9), 8, 4
    out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    x = draw.normal(batch, c_in, *size, dtype=dtype)
    weight = draw.normal(c_out, c_in // groups, *kernel, dtype=dtype)
    taps = deform_groups * kernel[0] * kernel[1]
    offset = OFFSETS[offsets](draw.normal(batch, 2 * taps, *out, dtype=dtype))
    mask = draw.uniform(batch, taps, *out, dtype=dtype)
    grad = draw.normal(batch, c_out, *out, dtype=dtype)
    return x, weight, offset, mask, draw.normal(c_out, dtype=dtype), grad


def deform_conv(ext, draw, offsets='any', batch=2, step=1, dtype=torch.float32, **layout):
    x, weight, offset, _, _, grad = _deform_inputs(draw, offsets=offsets, batch=batch, dtype=dtype, **layout)
    options = dict(kW=layout['kernel'][1], kH=layout['kernel'][0], dW=layout['stride'][1], dH=layout['stride'][0])
    options.update(padW=layout['padding'][1], padH=layout['padding'][0])
    options.update(dilationW=layout['dilation'][1], dilationH=layout['dilation'][0])
    options.update(group=layout['groups'], deformable_group=layout['deform_groups'])
    buffers = [x.new_empty(0), x.new_empty(0)]
    y = torch.empty_like(grad)
    ext.deform_conv_forward(x, weight, offset, y, *buffers, **options, im2col_step=step)
    gx, go, gw = torch.zeros_like(x), torch.zeros_like(offset), torch.zeros_like(weight)
    ext.deform_conv_backward_input(x, offset, grad, gx, go, weight, buffers[0], **options, im2col_step=step)
    ext.deform_conv_backward_parameters(x, offset, grad, gw, *buffers, **options, scale=1, im2col_step=step)
    return dict(y=y, grad_x=gx, grad_offset=go, grad_weight=gw)


def modulated_deform_conv(ext, draw, offsets='any', batch=2, with_bias=True, dtype=torch.float32, **layout):
    x, weight, offset, mask, bias, grad = _deform_inputs(draw, offsets=offsets, batch=batch, dtype=dtype, **layout)
    names = ('kernel', 'stride', 'pad', 'dilation')
    pairs = [layout[{'pad': 'padding'}.get(name, name)] for name in names]
    options = {f'{name}_{axis}': pair[i] for name, pair in zip(names, pairs) for i, axis in enumerate('hw')}
    options.update(group=layout['groups'], deformable_group=layout['deform_groups'], with_bias=with_bias)
    bias = bias if with_bias else x.new_empty(0)
    ones, columns = x.new_empty(0), x.new_empty(0)
    y = torch.empty_like(grad)
    ext.modulated_deform_conv_forward(x, weight, bias, ones, offset, mask, y, columns, **options)
    grads = [torch.zeros_like(t) for t in (x, weight, bias, offset, mask)]
    ext.modulated_deform_conv_backward(x, weight, bias, ones, offset, mask, columns, *grads, grad, **options)
    names = ('grad_x', 'grad_weight', 'grad_bias', 'grad_offset', 'grad_mask')
    return dict(y=y, **{k: v for k, v in zip(names, grads) if v.numel()})


for _layout in LAYOUTS:
    for _offsets in OFFSETS:
        case(f'deform_conv.{_layout}.{_offsets}', offsets=_offsets, **LAYOUTS[_layout])(deform_conv)
        case(
            f'modulated_deform_conv.{_layout}.{_offsets}',
            offsets=_offsets,
            with_bias=_layout != 'wide',
            **LAYOUTS[_layout],
        )(modulated_deform_conv)
case('deform_conv.steps', batch=4, step=2, **LAYOUTS['strided'])(deform_conv)
case('deform_conv.double', offsets='zero', dtype=torch.float64, **LAYOUTS['plain'])(deform_conv)
case('modulated_deform_conv.double', dtype=torch.float64, **LAYOUTS['plain'])(modulated_deform_conv)


# ------------------------------------------------------------------------------------------ boxes


def _scored_boxes(draw, count=120):
    """Boxes of which some are twice there and some empty, with scores of which some are equal."""
    boxes = draw.boxes(count, 40.0)
    boxes[10:20] = boxes[:10]
    boxes[20:23, 2:] = boxes[20:23, :2]
    scores = (draw.uniform(count) * 50).round() / 50
    return boxes, scores


@case('nms', thresholds=(0.1, 0.3, 0.5, 0.7))
def nms(ext, draw, thresholds):
    boxes, scores = draw.boxes(200, 100.0), draw.uniform(200)
    return {str(t): ext.nms(boxes, scores, iou_threshold=t, offset=0) for t in thresholds}


for _name, _method in (('naive', 0), ('linear', 1), ('gaussian', 2)):
    for _offset in (0, 1):

        @case(f'softnms.{_name}.{_offset}', method=_method, offset=_offset)
        def softnms(ext, draw, method, offset):
            boxes, scores = _scored_boxes(draw)
            result = {}
            for threshold, sigma, min_score in ((0.3, 0.5, 0.001), (0.5, 0.3, 0.2), (0.1, 0.5, 0.0)):
                dets = torch.zeros(len(boxes), 5)
                options = dict(iou_threshold=threshold, sigma=sigma, min_score=min_score, method=method, offset=offset)
                kept = ext.softnms(boxes, scores, dets, **options)
                result.update({f'{threshold}.kept': kept, f'{threshold}.dets': dets[: len(kept)]})
            return result


@case('nms_match')
def nms_match(ext, draw):
    boxes, scores = draw.boxes(120, 40.0), draw.uniform(120)
    result = {}
    for threshold in (0.2, 0.5, 0.8):
        groups = ext.nms_match(torch.cat([boxes, scores[:, None]], 1), iou_threshold=threshold)
        result[f'{threshold}.sizes'] = torch.tensor([len(group) for group in groups])
        result[f'{threshold}.members'] = torch.tensor([i for group in groups for i in group])
    return result


def rotated_boxes(draw, count):
    """(x, y, w, h, angle), after a dozen made by hand: equal, turned by a right angle, nested, touching, empty."""
    by_hand = [
        [5, 5, 4, 2, 0],
        [5, 5, 4, 2, 0],
        [5, 5, 2, 4, np.pi / 2],
        [5, 5, 4, 2, np.pi],
        [5, 5, 1, 1, 0.3],
        [9, 5, 4, 2, 0],
        [5, 7, 4, 2, 0],
        [5, 5, 4, 2, np.pi / 4],
        [7, 5, 4, 2, 0.01],
        [5, 5, 0, 2, 0.2],
        [5, 5, 40, 0.5, 0.7],
        [50, 50, 4, 2, 0.1],
    ]
    boxes = torch.cat(
        [20 * draw.uniform(count, 2), 1 + 9 * draw.uniform(count, 2), 7 * draw.uniform(count, 1) - 3.5], 1
    )
    return torch.cat([torch.tensor(by_hand, dtype=torch.float32), boxes])


@case('box_iou_rotated')
def box_iou_rotated(ext, draw):
    first, second = rotated_boxes(draw, 20), rotated_boxes(draw, 20)
    result = {}
    for mode, flag in (('iou', 0), ('iof', 1)):
        ious, pairs = torch.zeros(len(first) * len(second)), torch.zeros(len(first))
        ext.box_iou_rotated(first, second, ious, mode_flag=flag, aligned=False)
        ext.box_iou_rotated(first, second, pairs, mode_flag=flag, aligned=True)
        result.update({mode: ious, f'{mode}.aligned': pairs})
    return result


@case('nms_rotated')
def nms_rotated(ext, draw):
    boxes = rotated_boxes(draw, 60)[12:]
    scores = draw.uniform(len(boxes))
    order = scores.sort(descending=True).indices
    labels = torch.zeros(0, dtype=torch.int)
    return {str(t): ext.nms_rotated(boxes, scores, order, boxes[order], labels, t, False) for t in (0.1, 0.3, 0.6)}


@case('line_nms', source='kernel')
def line_nms(ext, draw):
    """Mean distances of lanes below a threshold, each with each, in the order of their scores."""
    lanes = torch.cat([draw.uniform(40, 2), draw.uniform(40, 3), 20 * draw.normal(40, 72)], 1)
    lanes[:, 4] = 80 * lanes[:, 4] - 5
    lanes[5:15, 5:] = lanes[:10, 5:] + draw.normal(10, 72)
    lanes = lanes[draw.uniform(40).sort(descending=True).indices]
    result = {}
    for overlap in (5.0, 15.0, 30.0):
        if 'line_near' in vars(ext):  # the compiled kernel's comparison, and the loop around it
            near = ext.line_near(lanes, overlap)
            kept, parent, removed = [], torch.zeros(len(lanes), dtype=torch.long), torch.zeros(len(lanes), dtype=bool)
            for i in range(len(lanes)):
                if not removed[i]:
                    kept.append(i)
                    parent[i] = len(kept)
                    parent[i + 1 :][near[i, i + 1 :]] = len(kept)
                    removed[i + 1 :] |= near[i, i + 1 :]
            result.update({f'{overlap}.kept': torch.tensor(kept), f'{overlap}.parent': parent})
        else:
            scores = torch.linspace(1, 0, len(lanes))
            kept, count, parent = ext.line_nms_forward(lanes, scores, overlap, 100)
            result.update({f'{overlap}.kept': kept[:count], f'{overlap}.parent': parent})
    return result


# ------------------------------------------------------------------------------------------ pooling in boxes


def _rois(draw, count, size, images=2):
    return torch.cat([draw.integers(images, count, 1).float(), draw.boxes(count, size)], 1)


def roi_align(ext, draw, aligned, ratio, odd=False):
    x = draw.normal(2, 4, 12, 15)
    rois = _rois(draw, 12, 90.0)
    if odd:  # negative, empty, and NaN
        rois[0, 1:] = torch.tensor([50.0, 20.0, 10.0, 60.0])
        rois[1, 1:] = torch.tensor([50.0, 60.0, 10.0, 20.0])
        rois[2, 3:] = rois[2, 1:3]
        rois[3, 1:] = torch.tensor([10.0, 60.0, 50.0, 20.0])
        if not ratio:
            rois[4, 3] = torch.nan
            rois[5, 1:] = torch.nan
    y = torch.zeros(len(rois), 4, 3, 2)
    options = dict(aligned_height=3, aligned_width=2, spatial_scale=1 / 8, sampling_ratio=ratio, pool_mode=1)
    options.update(aligned=aligned)
    empty = x.new_zeros(0)
    ext.roi_align_forward(x, rois, y, empty, empty, **options)
    grad, gx = draw.normal(*y.shape), torch.zeros_like(x)
    ext.roi_align_backward(grad, rois, empty, empty, gx, **options)
    return dict(y=y, grad_x=gx)


for _aligned in (True, False):
    for _ratio in (0, 2):
        case(f'roi_align.{_aligned}.{_ratio}', aligned=_aligned, ratio=_ratio)(roi_align)
for _ratio in (0, 2):
    case(f'roi_align.odd.{_ratio}', source='kernel', aligned=True, ratio=_ratio, odd=True)(roi_align)


@case('roi_pool.float', source='kernel', dtype=torch.float32)
@case('roi_pool.double', source='kernel', dtype=torch.float64)
def roi_pool(ext, draw, dtype):
    x, rois = draw.normal(2, 4, 12, 15, dtype=dtype), _rois(draw, 14, 90.0).to(dtype)
    rois[0, 1:] = torch.tensor([50.0, 20.0, 10.0, 60.0])  # negative
    rois[1, 3:] = rois[1, 1:3] - 1  # empty
    rois[2, 1:] = torch.tensor([-90.0, -90.0, -20.0, -20.0])  # outside
    rois[3, 1:] = torch.nan
    x[1, 2, 3:5] = torch.nan
    x[0, 1, :4] = x[0, 1, 0, 0]  # a maximum at many pixels
    y, argmax = torch.zeros(len(rois), 4, 3, 2, dtype=dtype), torch.zeros(len(rois), 4, 3, 2, dtype=torch.int)
    options = dict(pooled_height=3, pooled_width=2, spatial_scale=1 / 8)
    ext.roi_pool_forward(x, rois, y, argmax, **options)
    grad, gx = draw.normal(*y.shape, dtype=dtype), torch.zeros_like(x)
    rois[3, 0] = 0  # the backward kernel would take NaN as an index
    ext.roi_pool_backward(grad, rois, argmax, gx, **options)
    return dict(y=y, argmax=argmax, grad_x=gx)


@case('deform_roi_pool.0', source='kernel', ratio=0)
@case('deform_roi_pool.2', source='kernel', ratio=2)
@case('deform_roi_pool.none', source='kernel', ratio=0, with_offset=False)
def deform_roi_pool(ext, draw, ratio, with_offset=True):
    x, rois = draw.normal(2, 4, 12, 15), _rois(draw, 10, 90.0)
    rois[0, 1:] = torch.tensor([50.0, 20.0, 10.0, 60.0])
    rois[1, 3:] = rois[1, 1:3]
    rois[2, 1:] = torch.tensor([-30.0, -30.0, 160.0, 160.0])
    offset = 3 * draw.normal(len(rois), 2, 3, 2) if with_offset else torch.zeros(0)
    y = torch.zeros(len(rois), 4, 3, 2)
    options = dict(pooled_height=3, pooled_width=2, spatial_scale=1 / 8, sampling_ratio=ratio, gamma=0.1)
    ext.deform_roi_pool_forward(x, rois, offset, y, **options)
    grad, gx, go = draw.normal(*y.shape), torch.zeros_like(x), torch.zeros_like(offset)
    ext.deform_roi_pool_backward(grad, x, rois, offset, gx, go, **options)
    return dict(y=y, grad_x=gx, **({'grad_offset': go} if with_offset else {}))


# ------------------------------------------------------------------------------------------ others


@case('carafe.naive', source='kernel', naive=True)
@case('carafe.full', source='kernel', naive=False)
@case('carafe.double', source='kernel', naive=False, dtype=torch.float64, kernel=3, groups=1, scale=3)
def carafe(ext, draw, naive, dtype=torch.float32, kernel=5, groups=2, scale=2):
    x = draw.normal(2, 6, 4, 3, dtype=dtype)
    masks = draw.normal(2, groups * kernel**2, 4 * scale, 3 * scale, dtype=dtype)
    grad = draw.normal(2, 6, 4 * scale, 3 * scale, dtype=dtype)
    y, gx, gm = torch.zeros_like(grad), torch.zeros_like(x), torch.zeros_like(masks)
    options = dict(kernel_size=kernel, group_size=groups, scale_factor=scale)
    if naive:
        ext.carafe_naive_forward(x, masks, y, **options)
        ext.carafe_naive_backward(grad, x, masks, gx, gm, **options)
    else:
        rx, ry, rmasks = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(masks)
        ext.carafe_forward(x, masks, rx, ry, rmasks, y, **options)
        buffers = [torch.zeros_like(t) for t in (y, y, x, masks)]
        ext.carafe_backward(grad, rx, masks, *buffers, gx, gm, **options)
    return dict(y=y, grad_x=gx, grad_masks=gm)


@case('ms_deform_attn.float', source='kernel', dtype=torch.float32)
@case('ms_deform_attn.double', source='kernel', dtype=torch.float64)
def ms_deform_attn(ext, draw, dtype):
    shapes = torch.tensor([[6, 4], [3, 2], [1, 1]])
    starts = torch.tensor([0, 24, 30])
    value = draw.normal(2, 31, 3, 4, dtype=dtype)
    locations = 1.4 * draw.uniform(2, 5, 3, 3, 4, 2, dtype=dtype) - 0.2
    # Pixels' centres, the image's edges, where the zeros begin, and beyond.
    locations[0, 0, 0, 0] = torch.tensor([[0.125, 0.25], [0.0, 1.0], [-0.125, 0.5], [0.375, -0.25]])
    locations[1, 0, 0, 2] = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [1.5, 0.5], [9.0, -9.0]])
    weights = draw.uniform(2, 5, 3, 3, 4, dtype=dtype)
    y = ext.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=2)
    grad = draw.normal(2, 5, 12, dtype=dtype)
    grads = [torch.zeros_like(t) for t in (value, locations, weights)]
    ext.ms_deform_attn_backward(value, shapes, starts, locations, weights, grad, *grads, im2col_step=2)
    return dict(y=y, grad_value=grads[0], grad_locations=grads[1], grad_weights=grads[2])


@case('sync_bn', source='kernel')
def sync_bn(ext, draw):
    x, grad = 3 * draw.normal(4, 5, 6) + 1, draw.normal(4, 5, 6)
    mean, var, norm, std, y = torch.zeros(5), torch.zeros(5), torch.zeros_like(x), torch.zeros(5), torch.zeros_like(x)
    weight, bias, running_mean, running_var = draw.normal(5), draw.normal(5), draw.normal(5), draw.uniform(5)
    ext.sync_bn_forward_mean(x, mean)
    ext.sync_bn_forward_var(x, mean + 0.1, var)  # the mean of more processes
    states = (running_mean, running_var, norm, std, y)
    ext.sync_bn_forward_output(x, mean, var, weight, bias, *states, eps=1e-5, momentum=0.1, group_size=2)
    grad_weight, grad_bias, grad_x = torch.zeros(5), torch.zeros(5), torch.zeros_like(x)
    ext.sync_bn_backward_param(grad, norm, grad_weight, grad_bias)
    ext.sync_bn_backward_data(grad, weight, grad_weight, grad_bias, norm, std, grad_x)
    states = dict(zip(('running_mean', 'running_var', 'norm', 'std', 'y'), states))
    return dict(mean=mean, var=var, **states, grad_weight=grad_weight, grad_bias=grad_bias, grad_x=grad_x)


def focal_loss(ext, draw, kind, weighted, gamma, alpha, dtype=torch.float32):
    logits = 4 * draw.normal(30, 7, dtype=dtype)
    target = draw.integers(7 if weighted or kind == 'softmax' else 8, 30)
    weight = draw.uniform(7, dtype=dtype) if weighted else logits.new_empty(0)
    if kind == 'sigmoid':
        loss, grad = torch.zeros_like(logits), torch.zeros_like(logits)
        ext.sigmoid_focal_loss_forward(logits, target, weight, loss, gamma=gamma, alpha=alpha)
        ext.sigmoid_focal_loss_backward(logits, target, weight, grad, gamma=gamma, alpha=alpha)
        return dict(loss=loss, grad=grad)
    if not weighted:
        target[5:8] = -1  # without a class
    p = logits.softmax(1)
    p[3] = torch.eye(7, dtype=dtype)[target[3]]
    p[4] = torch.eye(7, dtype=dtype)[(target[4] + 1) % 7]
    loss, buff, grad = p.new_zeros(30), p.new_zeros(30), torch.zeros_like(p)
    ext.softmax_focal_loss_forward(p, target, weight, loss, gamma=gamma, alpha=alpha)
    ext.softmax_focal_loss_backward(p, target, weight, buff, grad, gamma=gamma, alpha=alpha)
    return dict(loss=loss, grad=grad)


for _kind in ('sigmoid', 'softmax'):
    for _weighted in (False, True):
        for _gamma, _alpha in ((2.0, 0.25), (1.5, 0.6)):
            _options = dict(kind=_kind, weighted=_weighted, gamma=_gamma, alpha=_alpha)
            case(f'{_kind}_focal_loss.{_weighted}.{_gamma}', source='kernel', **_options)(focal_loss)
    case(f'{_kind}_focal_loss.double', source='kernel', **{**_options, 'kind': _kind}, dtype=torch.float64)(focal_loss)


@case('masked_conv', source='kernel')
def masked_conv(ext, draw):
    x = draw.normal(1, 3, 6, 7)
    rows, columns = (draw.uniform(6, 7) > 0.6).nonzero().T.contiguous()
    patches = torch.zeros(3 * 3 * 5, len(rows))
    ext.masked_im2col_forward(x, rows, columns, patches, kernel_h=3, kernel_w=5, pad_h=1, pad_w=2)
    image = torch.zeros(1, 4, 6, 7)
    ext.masked_col2im_forward(draw.normal(4, len(rows)), rows, columns, image, height=6, width=7, channels=4)
    return dict(patches=patches, image=image)
