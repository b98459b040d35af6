"""Images of every kind, which loader, dataset check, maps, report and tools/deployment/infer_onnx.py read alike."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmccd.analysis.cam.view import View
from mmccd.analysis.report.images import data_uri
from mmccd.data import decode as decoding
from mmccd.data import image_files, transforms
from mmccd.data.decode import FORMATS, decode
from mmccd.data.image_files import DARK, SUFFIXES, ImageFile, read_image


def module(path: str):
    """A file of the checkout that is no part of the package."""
    path = Path(__file__).parents[2] / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


made_up = module('tests/data/made_up_images.py')
DEEP, GREY, UPRIGHT = made_up.DEEP, made_up.GREY, made_up.UPRIGHT
by_opencv, encode = made_up.by_opencv, made_up.encode


@pytest.fixture(scope='module')
def infer():
    """The ONNX runner, which is copied alone to other machines."""
    return module('tools/deployment/infer_onnx.py')


@pytest.fixture
def everywhere(tmp_path, infer):
    """What all that reads an image sees of it, in RGB; they have to agree."""

    def read(content: bytes) -> np.ndarray:
        path = tmp_path / 'image'  # the suffix does not matter
        path.write_bytes(content)
        loaded = transforms.LoadImageFromFile()(dict(img_path=str(path)))
        seen = np.ascontiguousarray(loaded['img'][..., ::-1])
        assert seen.dtype == np.uint8
        assert loaded['ori_shape'] == seen.shape[:2]
        found = read_image(content)
        assert (found.problem, found.size) == ('', seen.shape[1::-1])
        assert read_image(content, max_pixels=0).size == found.size  # by its head
        assert View(dict(img_path=str(path), ori_shape=seen.shape[:2]), seen).pixels.tolist() == seen.tolist()
        assert data_uri(str(path), 99)[1] == found.size
        other = infer.read_image(str(path))
        assert np.abs(other.astype(int) - seen).max() <= (2 if content.startswith(b'\xff\xd8') else 0)
        grey = transforms.LoadImageFromFile(color_type='grayscale')(dict(img_path=str(path)))['img']
        assert np.abs(grey.astype(int) - cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)).max() <= 2
        return seen

    return read


@pytest.mark.parametrize('kind', made_up.KINDS)
def test_kinds(everywhere, kind):
    content, expected, tolerance = made_up.KINDS[kind]
    seen = everywhere(content).astype(int)
    if expected is None:
        return
    expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
    assert np.abs(seen - expected).max() <= tolerance
    assert read_image(content).bits == (16 if '16' in kind or '12' in kind else 8)


@pytest.mark.parametrize('n', made_up.STORED)
@pytest.mark.parametrize('kind', made_up.CONTAINERS)
def test_orientations(everywhere, kind, n):
    """Upright in every container, and the size that annotations of the upright image have."""
    content = made_up.turned(kind, n)
    assert np.abs(everywhere(content).astype(int) - UPRIGHT).max() <= dict(JPEG=20, AVIF=20).get(kind, 0)
    assert read_image(content) == ImageFile((48, 32), turned=n > 4)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_orientations_that_nobody_follows(everywhere, kind):
    """In XMP alone, none of 1 to 8, or in EXIF data that are damaged."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options = dict(JPEG=made_up.FINE, WEBP=dict(lossless=True)).get(kind, {})
    if kind == 'PNG':
        from PIL import PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_itxt('XML:com.adobe.xmp', xmp.decode())
        contents = [encode(UPRIGHT, kind, pnginfo=info)]
    else:
        contents = [encode(UPRIGHT, kind, xmp=xmp, **options)]
    exif = Image.Exif()
    exif[made_up.ORIENTATION] = 9
    contents += [encode(UPRIGHT, kind, exif=exif, **options)]
    contents += [encode(UPRIGHT, kind, exif=b'Exif\0\0II*\0\xff\xff\xff\xff', **options)]
    for content in contents:
        assert np.abs(everywhere(content).astype(int) - UPRIGHT).max() <= (20 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('kind', made_up.REFUSED)
def test_refused(tmp_path, infer, kind):
    content, message = made_up.REFUSED[kind]
    path = tmp_path / 'image'
    path.write_bytes(content)
    assert re.search(message, read_image(content).problem)
    with pytest.raises(ValueError, match=message):
        decode(content)
    with pytest.raises(ValueError, match=rf"image '{path}' cannot be used: .*{message}"):
        transforms.LoadImageFromFile()(dict(img_path=str(path)))
    with pytest.raises(infer.UserError, match=message.split('.*')[0]):
        infer.read_image(str(path))


@pytest.mark.parametrize(
    ('content', 'dark'),
    [
        (encode(DEEP, 'PNG'), False),
        (encode(DEEP >> 4, 'PNG'), True),  # 12 bits
        (encode(DEEP >> 2, 'TIFF'), True),  # 14 bits
        (encode(DEEP >> 6, 'JPEG2000'), True),  # 10 bits
        (by_opencv((UPRIGHT.astype(np.uint16) * 16), '.png'), True),
        (by_opencv((UPRIGHT.astype(np.uint16) * 16), '.tiff'), True),
        (b'P5 48 32 65535\n' + (DEEP >> 4).astype('>u2').tobytes(), True),
        (b'P5 48 32 4095\n' + (DEEP >> 4).astype('>u2').tobytes(), False),  # it says where white is
        (encode(GREY >> 4, 'PNG'), False),  # 8 bits may be dark
        (encode(GREY >> 4, 'TIFF'), False),
    ],
)
def test_few_bits_in_many(tmp_path, monkeypatch, capsys, infer, content, dark):
    """Almost black: a finding, and a warning of the loader and of the ONNX runner, once."""
    assert read_image(content).dark is dark
    path = tmp_path / 'image'
    path.write_bytes(content)
    monkeypatch.setattr(transforms.LoadImageFromFile, 'said_dark', False)
    said: list[str] = []
    monkeypatch.setattr(transforms, 'print_log', lambda text, logger, level: said.append((text, level)))
    for _ in range(2):
        transforms.LoadImageFromFile()(dict(img_path=str(path)))
    assert said == [(f'image {path}: {DARK}', logging.WARNING)] * dark
    assert infer.list_images(str(path)) == [str(path)]
    assert capsys.readouterr().err == f'warning: image {path}: {DARK}\n' * dark
    path.unlink()
    for name in ('1.png', '2.png'):
        (tmp_path / name).write_bytes(content)
    infer.list_images(str(tmp_path))
    [*lines] = capsys.readouterr().err.splitlines()
    assert lines == [f'warning: image {tmp_path / "1.png"}: {DARK} (2 such files of 2)'] * dark


def test_the_runner_has_the_same_tables(infer):
    """It stands alone, and repeats them."""
    assert {
        kind: ' '.join(suffixes) for kind, suffixes in image_files._SUFFIXES.items() if kind in FORMATS
    } == infer.FORMATS
    assert infer.LEFT_BEHIND == image_files._LEFT_BEHIND
    assert infer.NO_IMAGES == image_files._NO_IMAGES
    assert (infer.ORIENTATION, infer.BITS, infer.TURNS) == (decoding._ORIENTATION, decoding._BITS, decoding._TURNS)
    assert (infer.DARK, infer.DARK_BELOW) == (DARK, decoding._DARK)
    # And of 16 bits the same 8, of every value there is.
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        image.format = 'PNG'
        eight = infer.of_8_bits(image)
        assert np.array_equal(eight, decoding._of_8_bits(image))
        assert np.array_equal(eight, ramp >> 8)
    for mode in ('I', 'F'):
        for read in (infer.of_8_bits, decoding._of_8_bits):
            with pytest.raises(ValueError, match='which have no range'):
                read(Image.new(mode, (2, 2)))


def test_suffixes(infer):
    """Those of the formats that are decoded, as Pillow knows them."""
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert set(SUFFIXES) == known - {'.pfm'}  # floats
    assert {'.jpg', '.jfif', '.webp', '.tiff', '.gif', '.tif', '.bmp', '.ppm'} <= set(SUFFIXES)
    assert set(infer.SUFFIXES) == set(SUFFIXES)


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'a pointer of Git LFS: git lfs pull'),
        (b'%PDF-1.7 ', 'PDF: convert'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'SVG: convert'),
        (b'\0\0\0 ftypmif1', 'HEIC: convert'),
        (b'<html>', None),
    ],
)
def test_what_people_take_for_images(content, what):
    expected = f'it is no image that can be read, but {what}' if what else 'it is no image'
    assert read_image(content).problem.startswith(expected)


def test_large_ones(monkeypatch):
    """OpenCV's limit of pixels, for all formats: Pillow's own is a sixth of that. It is back afterwards."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    for kind in ('TIFF', 'PNG', 'WEBP'):
        content = encode(UPRIGHT, kind)
        assert read_image(content) == ImageFile((48, 32))
        assert decode(content).shape == (32, 48, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr('mmccd.data.decode._MAX_PIXELS', 1000)
    assert 'exceeds limit' in read_image(encode(UPRIGHT, 'TIFF')).problem
    with pytest.raises(ValueError, match='exceeds limit'):
        decode(encode(UPRIGHT, 'TIFF'))
