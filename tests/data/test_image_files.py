"""Whole images and broken ones, as files hold them."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from mmccd.cli.images import output_names
from mmccd.data.image_files import (
    ImageFile,
    LeftOut,
    is_inside,
    is_left_behind,
    left_out,
    list_images,
    looks_cut,
    names_apart,
    read_file,
    read_image,
    walk_files,
    why_broken,
)

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


LEFT_BEHIND = (
    '.ipynb_checkpoints/1-checkpoint.png',
    '@eaDir/1.png/thumb.jpg',
    '__MACOSX/._1.png',
    '._1.png',
    '.DS_Store',
    'Thumbs.db',
    'ehthumbs.db',
    'desktop.ini',
    '$RECYCLE.BIN/1.png',
    'System Volume Information/1.png',
    '.git/1.png',
    '.Trash-1000/files/1.png',
    'lost+found/1.png',
    '#recycle/1.png',
    '@tmp/1.png',
    '__pycache__/1.png',
    'Icon\r',
)


@pytest.mark.parametrize('path', LEFT_BEHIND)
def test_what_systems_leave_behind(path):
    assert is_left_behind(path)
    assert is_left_behind(f'cat/{path}')


@pytest.mark.parametrize('path', ['1.png', 'cat/1.png', './cat/1.png', '../cat/1.png', 'thumbs/1.png', 'icon/1.png'])
def test_what_they_do_not(path):
    assert not is_left_behind(path)


@pytest.fixture(scope='module')
def infer(root):
    """tools/deployment/infer_onnx.py, which stands alone."""
    spec = importlib.util.spec_from_file_location('infer_onnx', root / 'tools' / 'deployment' / 'infer_onnx.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path, monkeypatch):
    """``images`` with three of them, what systems leave, and what is none by its name."""
    monkeypatch.chdir(tmp_path)
    for path in ('a.png', 'deep/b.JFIF', 'deep/c.webp', 'deep/d.heic', 'deep/e.HEIC', 'notes.txt', 'f', *LEFT_BEHIND):
        (tmp_path / 'images' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'images' / path).write_bytes(b'x')
    kinds = {'a.png': 'PNG', 'deep/b.JFIF': 'JPEG', 'deep/c.webp': 'WEBP'}
    for path, kind in kinds.items():
        (tmp_path / 'images' / path).write_bytes(encode(kind))
    return 'images'


def test_folders(images, capsys):
    """Every image that can be read, by its suffix; what else may be an image, is said."""
    files = ['a.png', 'f', 'notes.txt', 'deep/b.JFIF', 'deep/c.webp', 'deep/d.heic', 'deep/e.HEIC']
    assert list(walk_files(images)) == files
    assert list_images(images) == ['images/a.png', 'images/deep/b.JFIF', 'images/deep/c.webp']
    assert capsys.readouterr().err == (
        'note: images: left out, no images by their names: 2 .heic files (e.g. deep/d.heic), '
        '1 file without a suffix (e.g. f)\n'
    )
    found = left_out(files[1:3] + files[5:])
    assert found == [LeftOut('.heic', 2, 'deep/d.heic'), LeftOut('', 1, 'f'), LeftOut('.txt', 1, 'notes.txt')]
    assert [f.may_be_images for f in found] == [True, True, False]


def test_a_folder_without_images(tmp_path):
    (tmp_path / 'a.heic').write_bytes(b'x')
    (tmp_path / '._a.png').write_bytes(b'x')
    with pytest.raises(
        ValueError, match=r'has no image in it \(a file named .*\.jfif.*\); it has 1 \.heic file \(e\.g\. a'
    ):
        list_images(str(tmp_path))


def test_hidden_folders_that_are_named(tmp_path):
    """What the user names is meant, whatever it is called."""
    (tmp_path / '.cache').mkdir()
    (tmp_path / '.cache' / 'a.png').write_bytes(encode('PNG'))
    assert list_images(str(tmp_path / '.cache')) == [str(tmp_path / '.cache' / 'a.png')]


@pytest.mark.parametrize(
    ('paths', 'names'),
    [
        (['val/1.jpg', 'val/2.jpg'], ['1.jpg', '2.jpg']),
        (['val/cat/1.jpg', 'val/dog/2.jpg'], ['1.jpg', '2.jpg']),
        (['val/cat/1.jpg', 'val/dog/1.jpg', 'val/dog/2.jpg'], ['cat/1.jpg', 'dog/1.jpg', 'dog/2.jpg']),
        (['a/val/1.jpg', '/b/val/1.jpg'], None),
        (['val/1.jpg', 'val/deep/1.jpg'], ['1.jpg', 'deep/1.jpg']),
        (['val/1.jpg', 'val/1.jpg'], ['1.jpg', '1.jpg']),
        ([], []),
    ],
)
def test_names_apart(paths, names):
    """Files made of images: as they are called, and with folders where that is the same."""
    found = names_apart(paths)
    assert set(found) == set(paths)
    if names is None:
        assert len(set(found.values())) == len(paths)
    else:
        assert [found[p] for p in paths] == names


@pytest.mark.parametrize(
    ('images', 'names'),
    [
        (['x/a.png', 'x/b.png'], ['a', 'b']),
        (['x/a.png', 'x/a.jpg'], ['a.png', 'a.jpg']),
        (['x/a.png', 'x/y/a.png'], ['a', 'y/a']),
        (['x/a.jpg', 'x/a.jpg.png', 'x/a.png'], ['a.jpg', 'a.jpg.png', 'a.png']),
        (['x/a', 'x/a.png'], ['a', 'a.png']),
    ],
)
def test_output_names(tmp_path, monkeypatch, infer, images, names):
    """None is written over another one; infer_onnx.py has its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x').mkdir()
    assert output_names(images, 'x') == names
    assert infer.output_names(images, 'x') == names


def test_infer_onnx_lists_the_same(images, infer, capsys):
    assert infer.list_images(images) == list_images(images)
    assert 'note: images: left out, no images by their names: 2 of .heic' in capsys.readouterr().err
