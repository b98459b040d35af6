"""Class activation maps against formulas written out here, and detections followed back to where they came from."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mmccd
from mmccd.analysis.cam import check_layers, class_index, default_layers, explain
from mmccd.analysis.cam.methods import first_component
from mmccd.analysis.cam.targets import Region

pytest.importorskip('pytorch_grad_cam')


class Tiny(nn.Module):
    """A classifier that can be worked out by hand: squares of red and green, averaged, times weights."""

    weights = torch.tensor([[3.0, -1.0], [-2.0, 5.0]])

    def __init__(self, padding=0):
        super().__init__()
        self.padding = padding
        self.backbone = nn.Conv2d(3, 2, 1, bias=False)
        self.backbone.weight.data = torch.tensor([[0.0, 0, 1], [0, 1, 0]])[..., None, None]  # of BGR
        self.neck = nn.Flatten(2)
        self.head = nn.Linear(2, 2)
        self.head.num_classes = 2

    def data_preprocessor(self, batch, training):
        x = batch['inputs'][0][None].float() / 255
        return dict(inputs=nn.functional.pad(x, (0, self.padding), value=50.0), data_samples=batch['data_samples'])

    def extract_feat(self, x):
        return self.neck(self.backbone(x))

    def forward(self, x, samples=None, mode='tensor'):
        logits = self.extract_feat(x).square().mean(2) @ self.weights.T
        return logits if mode == 'tensor' else [SimpleNamespace(pred_score=logits[0].softmax(0))]


def batch(pixels, **meta):
    """Of an RGB image (h, w, 3) as the network sees it."""
    inputs = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1)))
    return dict(inputs=[inputs], data_samples=[SimpleNamespace(metainfo=meta)])


def scaled(x):
    x = np.maximum(x, 0)
    return (x - x.min()) / (x.max() - x.min())


def noise(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('method', ['gradcam', 'gradcam++', 'hirescam'])
def test_formulas_and_padding(method, padding):
    """Of a score S = sum over k of w_k mean(A_k²), gradients G_k = 2 w_k A_k / places."""
    pixels = noise(6, 7)
    model = Tiny(padding)
    found = explain(model, batch(pixels), method, categories=[1, 0])
    assert found.layers == ['backbone']
    assert np.array_equal(found.pixels, pixels)
    a = model.backbone(model.data_preprocessor(batch(pixels), False)['inputs'])[0].detach().double().numpy()
    assert {c.findings[0].label for c in found.cams} == {0, 1}
    for cam in found.cams:
        g = 2 * model.weights[cam.findings[0].label].numpy()[:, None, None] * a / a[0].size
        if method == 'gradcam':
            expected = (g.mean((1, 2), keepdims=True) * a).sum(0)
        elif method == 'hirescam':
            expected = (g * a).sum(0)
        else:
            alpha = g**2 / (2 * g**2 + a.sum((1, 2), keepdims=True) * g**3 + 1e-6)
            expected = ((np.maximum(g, 0) * np.where(g == 0, 0, alpha)).sum((1, 2), keepdims=True) * a).sum(0)
        # The padding, 50 times as bright, contributes to the score, but is not in the map.
        assert cam.values == pytest.approx(scaled(expected[:, :7]), abs=1e-3)
        assert cam.values.max() == pytest.approx(1)


def test_classes_and_their_scores():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1, 2] = 0, 255, 0  # green speaks for class 1
    (best,) = explain(Tiny(), batch(pixels)).cams
    assert best.findings[0].label == 1
    assert best.findings[0].score == pytest.approx(1 / (1 + np.exp(-6 / 16)))
    assert np.array_equal(best.values > 0.5, pixels[..., 1] > 0)
    (other,) = explain(Tiny(), batch(pixels), categories=[0]).cams
    assert not other.values.any()  # it speaks against the other


@pytest.mark.parametrize(
    ('flip', 'x', 'y'), [(None, 20, 6), (None, 4, 9), ('horizontal', 20, 6), ('vertical', 4, 9), ('diagonal', 4, 9)]
)
def test_back_to_the_image(tmp_path, flip, x, y):
    """Enlarged, flipped and padded by the pipeline; the map follows the bright square in the image itself."""
    image = np.zeros((12, 24, 3), np.uint8)
    image[y - 2 : y + 2, x - 2 : x + 2] = 255
    Image.fromarray(image).save(tmp_path / 'a.png')
    axes = dict(horizontal=[1], vertical=[0], diagonal=[0, 1]).get(flip, [])
    seen = np.flip(cv2.resize(image, (72, 24)), axes)
    seen = np.pad(seen, ((0, 8), (0, 3), (0, 0)), constant_values=255)
    data = batch(
        seen,
        img_path=str(tmp_path / 'a.png'),
        ori_shape=(12, 24),
        img_shape=(32, 75),
        scale_factor=(3, 2),
        flip=flip is not None,
        flip_direction=flip,
    )
    found = explain(Tiny(), data, categories=[0])
    values = found.cams[0].values
    assert np.array_equal(found.pixels, image)
    assert values.shape == (12, 24)
    centre = [(values.sum(axis) * (np.arange(n) + 0.5)).sum() / values.sum() for axis, n in ((0, 24), (1, 12))]
    assert centre == pytest.approx([x, y], abs=0.1)


def test_what_a_crop_leaves_is_shown(tmp_path):
    image = noise(12, 24)
    Image.fromarray(image).save(tmp_path / 'a.png')
    data = batch(
        image[:, 6:18], img_path=str(tmp_path / 'a.png'), ori_shape=(12, 24), img_shape=(12, 12), scale_factor=(1, 1)
    )
    found = explain(Tiny(), data)
    assert np.array_equal(found.pixels, image[:, 6:18])
    assert found.cams[0].values.shape == (12, 12)


def test_first_component_is_pytorch_grad_cams():
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    a = np.random.default_rng(0).normal(size=(8, 5, 6)).astype(np.float32)
    expected, found = get_2d_projection(a[None])[0], first_component(a)
    expected *= np.sign(expected.flat[0] * found.flat[0])
    assert found == pytest.approx(expected, abs=1e-5)
    assert found.max() >= -found.min()


# ---------------------------------------------------------------------------- detectors


def detector(root, name):
    """Random weights, and scores that differ from place to place."""
    torch.manual_seed(0)
    model = mmccd.init_model(root / 'configs' / f'{name}.py', device='cpu')
    for key, p in model.named_parameters():
        if key.endswith(('retina_cls.weight', 'retina_reg.weight', 'fc_cls.weight', 'fc_reg.weight')):
            nn.init.normal_(p, std=0.1)
        elif 'retina_cls.bias' in key:
            nn.init.zeros_(p)
    return model


def scale_levels(model, *factors):
    for conv, factor in zip(model.neck.fpn_convs, factors):
        conv.bn.weight.data *= factor
    return model


@pytest.fixture(scope='module')
def retinanet(root):
    return scale_levels(detector(root, 'retinanet_ccd_r18_fpn_digits'), 0.4, 0.8, 3.5)  # for detections on several


@pytest.fixture(scope='module')
def cascade(root):
    return detector(root, 'cascade_rcnn_ccd_r18_fpn_digits')


def image(h=100, w=120):
    """Of which the network sees the double; padded to a multiple of 32 then."""
    seen = noise(h, w)
    from mmdet.structures import DetDataSample

    data = batch(seen)
    data['data_samples'] = [
        DetDataSample(metainfo=dict(ori_shape=(h // 2, w // 2), img_shape=(h, w), scale_factor=(2.0, 2.0)))
    ]
    return data


def network_input(model, data):
    return model.data_preprocessor(data, False)['inputs']


def decoded(coder, anchor, deltas, data):
    """A box in pixels of the image that is shown, here what the network sees."""
    h, w = data['data_samples'][0].img_shape
    return coder.decode(anchor, deltas, max_shape=(h, w))[0].numpy()


@pytest.mark.parametrize('saturated', [False, True])
def test_a_dense_heads_detections_are_followed_to_their_anchors(retinanet, saturated):
    head, data = retinanet.bbox_head, image()
    bias = next(p for k, p in head.named_parameters() if k.endswith('retina_cls.bias'))
    bias.data += 100 * saturated  # all scores exactly 1: their gradient is 0
    try:
        found = explain(retinanet, data, topk=20, score_thr=0, layers=['backbone.conv1'], method='eigencam')
        with torch.no_grad():
            scores, boxes = head(retinanet.extract_feat(network_input(retinanet, data)))
    finally:
        bias.data -= 100 * saturated
    findings = found.cams[0].findings
    assert len(findings) == 20
    anchors = head.prior_generator.grid_priors([s.shape[2:] for s in scores], device='cpu')
    for f in findings:
        level, channel, y, x = f.target.index
        assert torch.sigmoid(f.target(scores)).item() == pytest.approx(f.score, abs=1e-5)
        assert (f.score == 1) == saturated
        anchor, label = divmod(channel, 10)
        assert label == f.label
        per_place = head.prior_generator.num_base_priors[level]
        deltas = boxes[level][0, 4 * anchor : 4 * anchor + 4, y, x][None]
        index = (y * scores[level].shape[3] + x) * per_place + anchor
        box = decoded(head.bbox_coder, anchors[level][index][None], deltas, data)
        assert f.box == pytest.approx(box, abs=1e-3)
    assert len({f.target.index for f in findings}) == 20
    assert saturated or len({f.target.index[0] for f in findings}) > 1  # of several levels


def test_a_two_stage_detectors_detections_are_followed_to_their_regions(cascade):
    data = image()
    found = explain(cascade, data, topk=12, score_thr=0, layers=['backbone.conv1'], method='eigencam')
    findings = found.cams[0].findings
    assert len(findings) == 12
    roi_head = cascade.roi_head
    with torch.no_grad():
        maps = cascade.extract_feat(network_input(cascade, data))
        for f in findings:
            raw = torch.stack([Region(roi_head, f.target.rois, label)(maps) for label in range(11)])
            assert raw.softmax(0)[f.label].item() == pytest.approx(f.score, abs=1e-5)
            assert f.target(maps) == raw[f.label]
            roi = f.target.rois[2]
            deltas = roi_head.bbox_head[2](roi_head.bbox_roi_extractor[2](maps[:4], roi))[1]
            assert f.box == pytest.approx(decoded(roi_head.bbox_head[2].bbox_coder, roi[:, 1:], deltas, data), abs=1e-3)


def by_hand(model, data, layer, finding):
    """HiResCAM of one layer, by a gradient that passes a copy of its output."""
    made = []

    def copy(m, args, out):
        made.append(out.detach().clone().requires_grad_() if not out.requires_grad else out.clone())
        return made[-1]

    hook = model.get_submodule(layer).register_forward_hook(copy)
    x = network_input(model, data)
    maps = model.extract_feat(x)
    raw = finding.target(maps if hasattr(model, 'roi_head') else model.bbox_head(maps)[0])
    hook.remove()
    (g,) = torch.autograd.grad(raw, made[0])
    cam = np.maximum((g * made[0]).sum(1)[0].detach().numpy(), 0)
    h, w = data['inputs'][0].shape[1:]
    return scaled(cv2.resize(cam, tuple(x.shape[:1:-1]))[:h, :w])


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('retinanet', 'backbone.layer1'),
        ('retinanet', 'backbone.layer2.1.ccd'),
        ('retinanet', 'backbone.layer2.0.bn2'),  # overwritten by what comes behind it
        ('cascade', 'backbone.layer3'),
    ],
)
def test_maps_of_a_detection(request, name, layer):
    model, data = request.getfixturevalue(name), image()
    trained = [p.requires_grad for p in model.parameters()]
    found = explain(model, data, layers=[layer], topk=3, score_thr=0)
    assert found.method == 'hirescam'
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(p.grad is None and not m._forward_hooks for m in model.modules() for p in m.parameters())
    assert found.cams[0].values.shape == data['inputs'][0].shape[1:] == (100, 120)
    for cam in found.cams:
        expected = by_hand(model, data, layer, cam.findings[0])
        assert cam.values == pytest.approx(expected, abs=1e-3)
        assert cam.values.std() > 0.01


@pytest.mark.parametrize('name', ['retinanet', 'cascade'])
def test_levels_that_do_not_contribute_to_a_detection_add_nothing(request, name):
    model, data = request.getfixturevalue(name), image()
    found = explain(model, data, topk=6, score_thr=0)
    checked = set()
    assert found.layers == [f'neck.fpn_convs.{i}' for i in range(3 if name == 'retinanet' else 4)]
    for i, cam in enumerate(found.cams):
        f = cam.findings[0]
        if name == 'retinanet':
            levels = {f.target.index[0]}
        else:  # a stage's box may be larger than the last one's
            levels = {int(model.roi_head.bbox_roi_extractor[0].map_roi_levels(r, 4)) for r in f.target.rois}
        if len(levels) == 1 and not levels & checked:
            checked |= levels
            alone = explain(model, data, topk=i + 1, score_thr=0, layers=[f'neck.fpn_convs.{levels.pop()}']).cams[i]
            assert cam.values == pytest.approx(alone.values, abs=1e-5)
    assert checked


def test_the_map_lies_where_the_detection_is(retinanet):
    """Only cells that the head's convolutions reach, five to each side, can contribute."""
    strides = [s[0] for s in retinanet.bbox_head.prior_generator.strides]
    centres = []
    for cam in explain(retinanet, image(), topk=6, score_thr=0).cams:
        level, _, y, x = cam.findings[0].target.index
        rows, columns = np.nonzero(cam.values > 1e-3)
        reach = 6.5 * strides[level]  # half a cell for the interpolation
        assert abs(rows - (y + 0.5) * strides[level]).max() <= reach
        assert abs(columns - (x + 0.5) * strides[level]).max() <= reach
        centres.append((y, x, level))
    assert len(set(centres)) > 2


def test_choice_of_detections(retinanet):
    data = image()
    options = dict(method='eigencam', layers=['backbone.conv1'])
    all_of_them = explain(retinanet, data, score_thr=0, **options).cams[0].findings
    label, middle = all_of_them[0].label, all_of_them[len(all_of_them) // 2].score
    scores = [f.score for f in all_of_them]
    assert scores == sorted(scores, reverse=True)
    (above,) = explain(retinanet, data, score_thr=middle, **options).cams
    assert [f.score for f in above.findings] == [s for s in scores if s >= middle]
    (of_class,) = explain(retinanet, data, score_thr=0, categories=[label], **options).cams
    assert [f.score for f in of_class.findings] == [f.score for f in all_of_them if f.label == label]
    nothing = explain(retinanet, data, score_thr=1.0, **options)
    assert nothing.cams == []
    assert nothing.best == scores[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', ['retinanet', 'cascade'])
def test_on_a_gpu_as_on_the_cpu(request, name):
    model, data = request.getfixturevalue(name), image()
    expected = explain(model, data, topk=3, score_thr=0).cams
    try:
        found = explain(model.cuda(), data, topk=3, score_thr=0).cams
    finally:
        model.cpu()
    for e, f in zip(expected, found):
        assert f.findings[0].label == e.findings[0].label
        assert f.findings[0].score == pytest.approx(e.findings[0].score, abs=1e-4)
        assert f.values == pytest.approx(e.values, abs=0.02)


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        ('layer4', r"layer 'layer4' does not exist in the model; .*'backbone\.layer4'\?$"),
        ('neck.fpn_conv.1', r"'neck\.fpn_conv\.1' does not exist.*'neck\.fpn_convs\.1"),
        ('backbone', r"layer 'backbone' \(AttentionResNet\) gives a tuple, no map \(N, C, H, W\)"),
        ('roi_head.bbox_roi_extractor.0', r"'roi_head\.bbox_roi_extractor\.0' works on regions"),
        ('rpn_head.rpn_conv', r"layer 'rpn_head\.rpn_conv' \(Conv2d\) does not contribute to the scores"),
    ],
)
def test_layers_that_cannot_be_shown(cascade, layer, message):
    with pytest.raises(ValueError, match=message):
        explain(cascade, image(64, 64), layers=[layer], score_thr=0, topk=1)


def test_no_map_of_a_tensor_of_other_dimensions():
    with pytest.raises(ValueError, match=r"layer 'neck' \(Flatten\) gives a tensor \(1, 2, 16\), no map"):
        explain(Tiny(), batch(noise(4, 4)), layers=['neck'])
    check_layers(Tiny(), ['neck', 'head'])


def test_default_layer_of_a_classifier(root):
    model = mmccd.init_model(root / 'configs' / 'ccd_r18_digits.py', device='cpu')
    assert default_layers(model, torch.rand(1, 3, 64, 64)) == ['backbone.layer4']


def test_names_of_classes():
    names = ('cat', 'dog', '0')
    assert [class_index(t, names) for t in ('dog', '0', '1')] == [1, 2, 1]
    imagenet = ('tench, Tinca tinca', 'crane', 'crane, lift')
    assert [class_index(t, imagenet) for t in ('tench', 'Tinca tinca', 'crane', 'lift')] == [0, 0, 1, 2]
    with pytest.raises(ValueError, match=r"class 'crane' is the name of several: take one of the indices 0, 1$"):
        class_index('crane', ('crane, bird', 'crane, lift'))
    for text in ('3', '-1', 'dogs'):
        with pytest.raises(ValueError, match=f"class '{text}' does not exist.*an index from 0 to 2"):
            class_index(text, names)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(ValueError, match=r'need pytorch-grad-cam, which cannot be imported .*: pip install grad-cam$'):
        explain(Tiny(), batch(noise(4, 4)))
