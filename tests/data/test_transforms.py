"""The transforms of an ImageNet training against those of MMCV and MMPretrain: pixels, random draws, files."""

from __future__ import annotations

import builtins
import io

import cv2
import numpy as np
import pytest
import torch
from mmcv import transforms as of_mmcv
from mmcv.transforms.utils import cache_random_params
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image

from mmccd.data import BrokenImageError, transforms

PIXELS = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (45, 61, 3), np.uint8), (5, 5), 0)
EXIF = 0x0112


def encoded(kind: str, mode: str = 'RGB', orientation: int = 0, **options) -> bytes:
    if orientation:
        options['exif'] = Image.Exif()
        options['exif'][EXIF] = orientation
    out = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(out, kind, **options)
    return out.getvalue()


FILES = {
    '444': encoded('JPEG', subsampling='4:4:4', quality=95),
    '422': encoded('JPEG', subsampling='4:2:2'),
    '420': encoded('JPEG', subsampling='4:2:0', quality=50),
    'progressive': encoded('JPEG', progressive=True),
    'restarts': encoded('JPEG', restart_marker_rows=1),
    'grey': encoded('JPEG', 'L'),
    'cmyk': encoded('JPEG', 'CMYK'),
    **{f'orientation{i}': encoded('JPEG', orientation=i) for i in range(1, 9)},
    'behind_the_end': encoded('JPEG') + bytes(1000),
    'png': encoded('PNG'),
    'png_alpha': encoded('PNG', 'RGBA'),
    'png_palette': encoded('PNG', 'P'),
    'bmp': encoded('BMP'),
    'webp': encoded('WEBP'),
}


def build(scope: str, steps: list[dict]) -> list:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return [TRANSFORMS.build(dict(step, type=f'{scope}{step["type"]}')) for step in steps]


def same(one: dict, other: dict) -> None:
    """Keys, shapes, types and values."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert type(value) is type(other[key]), key
        if isinstance(value, np.ndarray):
            assert value.dtype == other[key].dtype, key
            np.testing.assert_array_equal(value, other[key], key)
        else:
            assert value == other[key], key


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(to_float32=True),
        dict(color_type='grayscale'),
        dict(color_type='unchanged'),
        dict(color_type='color_ignore_orientation'),
        dict(imdecode_backend='pillow'),
        dict(backend_args=dict(backend='local')),
    ],
    ids=str,
)
@pytest.mark.parametrize('name', FILES)
def test_loading(tmp_path, name, options):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    results = dict(img_path=str(path), gt_label=3)
    ours = transforms.LoadImageFromFile(**options)(dict(results))
    same(of_mmcv.LoadImageFromFile(**options)(dict(results)), ours)
    assert ours['img'].shape[:2] in ((45, 61), (61, 45))


@pytest.mark.parametrize('content', [FILES['420'][:-200], FILES['png'][:-20], b'', b'no image'])
def test_loading_of_what_is_broken(tmp_path, content):
    path = tmp_path / 'x.jpg'
    path.write_bytes(content)
    with pytest.raises((ValueError, cv2.error), match=r'x\.jpg|empty'):
        transforms.LoadImageFromFile()(dict(img_path=str(path)))
    assert transforms.LoadImageFromFile(ignore_empty=True)(dict(img_path=str(path))) is None
    with pytest.raises(FileNotFoundError, match=r'gone\.jpg'):
        transforms.LoadImageFromFile()(dict(img_path=str(tmp_path / 'gone.jpg')))


@pytest.mark.parametrize(
    'options',
    [
        dict(scale=24),
        dict(scale=(20, 30), interpolation='bicubic'),
        dict(scale=70, crop_ratio_range=(0.9, 1.0), aspect_ratio_range=(0.1, 0.2)),  # no crop fits: the central one
        dict(scale=24, backend='pillow', max_attempts=0),
    ],
    ids=str,
)
def test_cropping(options):
    pytest.importorskip('mmpretrain')
    [stock], [ours] = (build(scope, [dict(type='RandomResizedCrop', **options)]) for scope in ('', 'mmccd.'))
    for image in (PIXELS, PIXELS[..., 0], PIXELS.astype(np.float32) if options.get('backend') is None else PIXELS):
        for seed in range(20):
            np.random.seed(seed)
            expected, after = stock(dict(img=image)), np.random.random()
            np.random.seed(seed)
            same(expected, ours(dict(img=image)))
            assert np.random.random() == after


@pytest.mark.parametrize(
    'options',
    [
        dict(prob=0.5),
        dict(prob=0.3, direction='vertical'),
        dict(prob=0.9, direction='diagonal'),
        dict(prob=0.0),
        dict(prob=1.0),
        dict(prob=0.7, direction=['horizontal', 'vertical', 'diagonal']),
        dict(prob=[0.3, 0.5], direction=['horizontal', 'vertical']),
    ],
    ids=str,
)
@pytest.mark.parametrize('image', [PIXELS, PIXELS[..., 0], PIXELS[..., :1], PIXELS.astype(np.float32)], ids=range(4))
def test_flipping(image, options):
    stock, ours = of_mmcv.RandomFlip(**options), transforms.RandomFlip(**options)
    flipped = set()
    for seed in range(30):
        np.random.seed(seed)
        expected, after = stock(dict(img=image)), np.random.random()
        np.random.seed(seed)
        results = ours(dict(img=image))
        same(expected, results)
        assert np.random.random() == after
        flipped.add(results['flip'])
    assert flipped == ({options['prob'] == 1} if options['prob'] in (0, 1) else {True, False})


def test_flipping_with_annotations():
    results = dict(img=PIXELS, gt_bboxes=np.array([[1.0, 2.0, 11.0, 22.0]]), gt_seg_map=PIXELS[..., 0])
    same(of_mmcv.RandomFlip(1.0)(dict(results)), transforms.RandomFlip(1.0)(dict(results)))


def test_flipping_with_shared_draws():
    flip = transforms.RandomFlip(0.5)
    with cache_random_params(flip):
        assert len({flip(dict(img=PIXELS))['flip'] for _ in range(50)}) == 1
    assert of_mmcv.RandomFlip._methods_with_randomness == ['_choose_direction']  # MMCV's own is as it was
    assert len({flip(dict(img=PIXELS))['flip'] for _ in range(50)}) == 2


@pytest.mark.parametrize(
    'image',
    [
        PIXELS,
        PIXELS[:, ::-1],
        PIXELS[3:20, 5:30],
        PIXELS[..., 0],
        PIXELS[..., :2],
        PIXELS.astype(np.float32),
        np.zeros((2, 3, 4, 5), np.uint8),
        [PIXELS, PIXELS[..., 0]],
        Image.fromarray(PIXELS),
        torch.arange(5),
    ],
    ids=range(10),
)
def test_packing_of_images(image):
    pytest.importorskip('mmpretrain')
    [stock], [ours] = (build(scope, [dict(type='PackInputs')]) for scope in ('', 'mmccd.'))
    expected, inputs = stock(dict(img=image))['inputs'], ours(dict(img=image))['inputs']
    for one, other in zip(expected, inputs) if isinstance(image, list) else [(expected, inputs)]:
        assert one.dtype == other.dtype
        assert one.is_contiguous() == other.is_contiguous()
        assert torch.equal(one, other)


@pytest.mark.parametrize('label', [7, True, np.int64(7), np.array([1, 2]), [1, 2], torch.tensor([3])], ids=str)
def test_packing_of_labels(label):
    pytest.importorskip('mmpretrain')
    [stock], [ours] = (build(scope, [dict(type='PackInputs')]) for scope in ('', 'mmccd.'))
    results = dict(img=PIXELS, gt_label=label, img_path='x.jpg', ori_shape=(45, 61), flip=False, flip_direction=None)
    if isinstance(label, np.int64):  # MMPretrain's own limit
        with pytest.raises(TypeError, match='int64'):
            stock(dict(results))
        with pytest.raises(TypeError, match='int64'):
            ours(dict(results))
        return
    expected, sample = stock(dict(results))['data_samples'], ours(dict(results))['data_samples']
    assert torch.equal(expected.gt_label, sample.gt_label)
    assert expected.gt_label.dtype == sample.gt_label.dtype
    assert expected.metainfo == sample.metainfo
    assert results['gt_label'] is label


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=24, crop_ratio_range=(0.1, 1.0), aspect_ratio_range=(0.8, 1.25)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]


def dataset(root, name: str, scope: str, **options):
    pytest.importorskip('mmpretrain')
    steps = [dict(step, type=f'{scope}{step["type"]}') for step in PIPELINE]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(dict(type=name, data_root=str(root), pipeline=steps, **options))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'a').mkdir()
    for name, content in FILES.items():
        (tmp_path / 'a' / f'{name}.jpg').write_bytes(content)
    return tmp_path


def test_a_training_gets_the_same(folder):
    """Pixels, labels, metainfo and the random numbers after them."""
    stock = dataset(folder, 'mmpretrain.CustomDataset', '')
    ours = dataset(folder, 'mmccd.CustomDataset', 'mmccd.', max_broken=0.1)
    assert len(ours) == len(FILES)
    np.random.seed(0)
    expected = [stock[i] for i in range(len(stock))]
    after = np.random.random()
    np.random.seed(0)
    for i, plain in enumerate(expected):
        sample = ours[i]
        assert torch.equal(plain['inputs'], sample['inputs'])
        assert torch.equal(plain['data_samples'].gt_label, sample['data_samples'].gt_label)
        assert plain['data_samples'].metainfo == sample['data_samples'].metainfo
    assert np.random.random() == after
    assert ours.broken() == {}


@pytest.mark.parametrize(('scope', 'times'), [('mmccd.', 1), ('', 2)])
def test_files_are_opened(folder, monkeypatch, scope, times):
    """Once by a loader that checks; the guard looks for itself where another one loads."""
    opened = []
    original = builtins.open

    def counted(file, *args, **kwargs):
        opened.append(str(file))
        return original(file, *args, **kwargs)

    guarded = dataset(folder, 'mmccd.CustomDataset', scope, max_broken=0.1)
    monkeypatch.setattr(builtins, 'open', counted)
    sample = guarded[0]
    assert opened == [sample['data_samples'].img_path] * times


@pytest.mark.parametrize('damage', [lambda p: p.write_bytes(p.read_bytes()[:-300]), lambda p: p.unlink()])
def test_the_guard_knows_what_the_loader_refused(folder, damage):
    guarded = dataset(folder, 'mmccd.CustomDataset', 'mmccd.', max_broken=0.1)
    path = folder / 'a' / '420.jpg'
    index = next(i for i in range(len(guarded)) if guarded.get_data_info(i)['img_path'] == str(path))
    damage(path)
    assert guarded[index]['data_samples'].img_path != str(path)
    assert guarded.broken() == {str(path): 1}
    guarded.max_broken = 0
    with pytest.raises(BrokenImageError, match=r'420\.jpg cannot be used: (image file is truncated|there is no such)'):
        guarded[index]
