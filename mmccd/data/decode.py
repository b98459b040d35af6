"""From the bytes of an image file to pixels: one way for training, evaluation, checks, maps and reports.

JPEG and PNG, nearly all there are, are decoded by OpenCV, as MMCV does. All other formats are decoded by Pillow: what
OpenCV's versions read of them, and whether they follow an EXIF orientation, differs.
``tools/deployment/infer_onnx.py``, which stands alone, does the same with Pillow.

* An EXIF orientation is followed in every container; one that stands in XMP alone in none.
* Transparency is dropped; the first frame or page is taken; CMYK is converted without a colour profile.
* Of 16 bits a channel the upper 8 are taken. Floats and 32-bit numbers have no range to scale from: they are refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from mmengine import fileio
from PIL import Image

try:
    from PIL import AvifImagePlugin  # registers itself; since Pillow 11.3

    _AVIF = ('AVIF',) if AvifImagePlugin.SUPPORTED else ()
except ImportError:
    _AVIF = ()

# What images to train on come in. Pillow knows more, and starts Ghostscript for one of them.
FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP', *_AVIF)
_OF_OPENCV = (b'\xff\xd8', b'\x89PNG\r\n\x1a\n')
# TIFF, also of more than 4 GB; PPM's kinds; JPEG 2000, alone and in its container.
_MAY_BE_DEEP = (
    *(b'II*\0', b'MM\0*', b'II+\0', b'MM\0+', b'P2', b'P3', b'P5', b'P6'),
    *(b'\xff\x4f\xff\x51', b'\0\0\0\x0cjP  \r\n\x87\n'),
)
_ORIENTATION, _WIDTH, _HEIGHT, _BITS = 0x0112, 256, 257, 258  # EXIF's and TIFF's tags
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BY_A_QUARTER = (5, 6, 7, 8)
_MAX_PIXELS = 2**30
_HEIC = 'HEIC: convert it to JPEG or PNG'
_NO_IMAGES = {  # first bytes, or those after four
    b'version https://git-lfs': 'a pointer of Git LFS: git lfs pull',
    **{b'ftyp' + kind: _HEIC for kind in (b'heic', b'heix', b'heim', b'hevc', b'mif1', b'msf1')},
    b'ftypavif': 'AVIF, which needs Pillow 11.3 or later',
    b'8BPS': 'a file of Photoshop: convert it to PNG',
    b'%PDF': 'PDF: convert its pages to PNG',
    b'<svg': 'SVG: convert it to PNG',
}
_DARK = 64  # of 256: 16-bit files that hold 14 bits or less stay below it


def decode(content: bytes, grey: bool = False) -> np.ndarray:
    """The pixels of an image file.

    Args:
        content (bytes): The file.
        grey (bool): Without colours. Default: False.

    Returns:
        np.ndarray: (H, W, 3) in BGR, or (H, W), uint8, upright.

    Raises:
        ValueError: If it cannot be decoded, or its pixels have no range.
    """
    if by_opencv(content) or (grey and content.startswith(b'BM')):  # whose rounding of grey is its own
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
        except cv2.error as e:  # of more pixels than it allows
            raise ValueError(reason(e)) from e
        if pixels is None:
            raise ValueError('OpenCV cannot decode it')
        return pixels
    try:
        rgb = to_rgb(open_image(content))
    except Exception as e:  # damaged files raise nearly anything, from OSError to struct.error and SyntaxError
        raise ValueError(reason(e)) from e
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_RGB2BGR)


def decode_file(path: str, backend_args: dict | None = None) -> np.ndarray:
    """RGB image (H, W, 3), uint8, upright, of a path or URL.

    Raises:
        OSError: If it cannot be read.
        ValueError: As :func:`decode`.
    """
    return cv2.cvtColor(decode(fileio.get(path, backend_args=backend_args)), cv2.COLOR_BGR2RGB)


def by_opencv(content: bytes) -> bool:
    """Whether OpenCV decodes a file, by its first bytes."""
    return content.startswith(_OF_OPENCV)


@contextmanager
def pillow() -> Iterator[None]:
    """Pillow without warnings, and with OpenCV's limit of pixels: aerial photographs exceed its own."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS // 2  # it raises at twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def open_image(content: bytes) -> Image.Image:
    """What Pillow reads of a file's head; its pixels are not decoded yet.

    Raises:
        ValueError: If it is none, but something that people take for one.
        PIL.UnidentifiedImageError: If it is none.
    """
    try:
        with pillow():
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.UnidentifiedImageError:
        for beginning, what in _NO_IMAGES.items():
            if content.startswith(beginning) or content[4:].startswith(beginning):
                raise ValueError(f'it is no image that can be read, but {what}') from None
        raise


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, as far as it is still to be followed: Pillow's newer versions do so for TIFF."""
    try:
        with pillow():
            if image.format == 'TIFF':
                value = image.tag_v2.get(_ORIENTATION)
            else:
                exif = Image.Exif()
                exif.load(image.info.get('exif') or b'')
                value = exif.get(_ORIENTATION)
    except Exception:  # damaged entries
        return 1
    return value if value in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[tuple[int, int], bool]:
    """(width, height) of an image whose pixels are not decoded, and whether it is turned by a quarter for that."""
    width, height = image.size
    if image.format == 'TIFF':  # some versions have exchanged them already
        width, height = image.tag_v2.get(_WIDTH, width), image.tag_v2.get(_HEIGHT, height)
    turned = orientation(image) in _BY_A_QUARTER
    return ((height, width) if turned else (width, height)), turned


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels (H, W, 3) of an image of :func:`open_image`, uint8, upright.

    Raises:
        ValueError: If its pixels have no range.
    """
    with pillow():
        image.load()
        turn = _TURNS.get(orientation(image))
        image = _of_8_bits(image).convert('RGB')
    return np.asarray(image if turn is None else image.transpose(turn))


def _of_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        kind = 'floats' if image.mode == 'F' else 'whole numbers of 32 bits or with a sign'
        raise ValueError(f'its pixels are {kind}, which have no range: convert it to 8 bits')
    return image


def bits(image: Image.Image, content: bytes) -> int:
    """Bits a channel of an image that is not decoded yet; 16 for all above 8, and 8 for all below."""
    if image.format == 'PNG':
        deep = content[24:25] == b'\x10'
    elif image.format == 'TIFF':
        deep = max(image.tag_v2.get(_BITS, (1,))) > 8
    else:
        deep = image.mode.startswith('I')
    if image.format == 'PPM':  # one of the decoder's arguments is the largest value
        deep |= any(isinstance(value, int) and value > 255 for *_, args in image.tile for value in args)
    return 16 if deep else 8


def is_dark(pixels: np.ndarray) -> bool:
    """Whether what :func:`decode` made of a 16-bit file is so dark that the file may hold fewer bits."""
    return bool(pixels.max(initial=0) < _DARK)


def looks_deep(content: bytes) -> bool:
    """Whether a file may have 16 bits a channel, by its first bytes alone: JPEG never, PNG for sure."""
    if content.startswith(_OF_OPENCV[1]):
        return content[24:25] == b'\x10'
    return content.startswith(_MAY_BE_DEEP)


def reason(error: Exception) -> str:
    """Why an image cannot be decoded, on one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return 'it is no image'
    return str(error).splitlines()[0] if str(error).strip() else type(error).__name__
