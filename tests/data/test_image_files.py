"""Whole images and broken ones, as files hold them."""

import io

import numpy as np
import pytest
from PIL import Image

from mmccd.data.image_files import ImageFile, is_inside, looks_cut, read_file, read_image, why_broken

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)


def encode(kind: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'PPM', 'TIFF', 'WEBP'])
def test_whole_and_cut(tmp_path, kind):
    content = encode(kind)
    assert read_image(content) == ImageFile((40, 30))
    path = tmp_path / 'x'
    path.write_bytes(content)
    assert not looks_cut(str(path))
    assert why_broken(str(path)) == ''
    for share in (0.9, 0.5, 0.05):
        cut = content[: int(share * len(content))]
        assert read_image(cut).problem
        path.write_bytes(cut)
        assert looks_cut(str(path)) is (kind in ('JPEG', 'PNG'))


def test_something_behind_the_end(tmp_path):
    """A little does not even look cut; more does, and is none the less whole."""
    path = tmp_path / 'x.jpg'
    for extra, looks in ((10, False), (1000, True)):
        path.write_bytes(encode('JPEG') + bytes(extra))
        assert looks_cut(str(path)) is looks
        assert why_broken(str(path)) == ''


def test_size_as_the_pipelines_see_it():
    exif = Image.Exif()
    exif[0x0112] = 6  # by a quarter
    assert read_image(encode('JPEG', exif=exif)) == ImageFile((30, 40), turned=True)
    exif[0x0112] = 3  # by a half
    assert read_image(encode('JPEG', exif=exif)) == ImageFile((40, 30))


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        (b'', 'the file is empty'),
        (b'no image', 'it is no image'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'it is no image'),  # no Ghostscript
        (b'<html>404 Not Found</html>', 'it is no image'),
    ],
)
def test_no_images(content, problem):
    assert read_image(content).problem == problem


def test_flipped_bytes_of_a_png():
    content = bytearray(encode('PNG'))
    content[len(content) // 2] ^= 0x55
    assert read_image(bytes(content)).problem


def test_huge_ones_are_not_decoded():
    content = encode('JPEG')
    assert read_image(content[:-50], max_pixels=1199) == ImageFile((40, 30))
    assert read_image(content[:-50], max_pixels=1200).problem


@pytest.mark.parametrize('path', ['gone.jpg', 'folder/gone.jpg'])
def test_no_file(tmp_path, path):
    assert read_file(str(tmp_path / path)) == (ImageFile(problem='there is no such file'), b'')


@pytest.mark.parametrize('path', ['.', 'nul\0', '\ud800'])
def test_paths_that_are_none(path):
    assert why_broken(path).startswith('it cannot be read: ')


def test_is_inside():
    assert is_inside('data/coco/x.jpg', 'data/coco/')
    assert is_inside('data/coco/..x.jpg', 'data/coco')
    assert is_inside('../data/x.jpg', '../data')
    assert is_inside('/data/x', '/data')
    assert is_inside('x.jpg', '.')
    assert not is_inside('data/coco2/x.jpg', 'data/coco')
    assert not is_inside('data/coco/../x.jpg', 'data/coco')
    assert not is_inside('/data/x', 'data')
    assert not is_inside('../x.jpg', '.')
