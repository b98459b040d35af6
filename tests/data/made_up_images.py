"""Image files of every kind that people bring, and what is to be seen of them."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
from PIL import Image

from mmccd.data.decode import FORMATS

# No symmetry: red in the upper left corner, blue at the right.
UPRIGHT = np.full((32, 48, 3), 128, np.uint8)
UPRIGHT[:16, :16] = (224, 32, 32)
UPRIGHT[:, 32:] = (32, 32, 192)
GREY = UPRIGHT[..., 0]
DEEP = GREY.astype(np.uint16) * 256 + 77
ORIENTATION = 0x0112
STORED = {  # what is stored for each orientation, as NumPy sees it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def encode(array: np.ndarray | Image.Image, kind: str, mode: str | None = None, **options) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.ascontiguousarray(array))
    out = io.BytesIO()
    image.convert(mode or image.mode).save(out, kind, **options)
    return out.getvalue()


def by_opencv(array: np.ndarray, suffix: str) -> bytes:
    ok, content = cv2.imencode(suffix, array[..., ::-1] if array.ndim == 3 else array)
    assert ok
    return content.tobytes()


def alpha() -> np.ndarray:
    """RGBA whose blue part is transparent, and whose colours stay below that."""
    return np.dstack([UPRIGHT, np.where(UPRIGHT[..., 2] == 192, 0, 255).astype(np.uint8)])


def colours(n: int = 3) -> Image.Image:
    """With a palette; the last colour is transparent where a format can say so."""
    return Image.fromarray(UPRIGHT).quantize(n)


FINE = dict(quality=95, subsampling='4:4:4')
OTHER = np.zeros_like(UPRIGHT)
FRAMES = dict(save_all=True, append_images=[Image.fromarray(OTHER)])
BIT = np.where(GREY > 64, 255, 0).astype(np.uint8)
# name: content, what is to be seen of it (grey ones without their third axis), how far a lossy one may be from it
KINDS = {
    'jpeg': (encode(UPRIGHT, 'JPEG', **FINE), UPRIGHT, 20),
    'jpeg progressive': (encode(UPRIGHT, 'JPEG', **FINE, progressive=True), UPRIGHT, 20),
    'jpeg grey': (encode(GREY, 'JPEG', quality=95), GREY, 9),
    'jpeg cmyk': (encode(UPRIGHT, 'JPEG', 'CMYK', quality=95), UPRIGHT, 20),
    'png': (encode(UPRIGHT, 'PNG'), UPRIGHT, 0),
    'png grey': (encode(GREY, 'PNG'), GREY, 0),
    'png grey and alpha': (encode(np.dstack([GREY, alpha()[..., 3]]), 'PNG'), GREY, 0),
    'png alpha': (encode(alpha(), 'PNG'), UPRIGHT, 0),
    'png palette': (encode(colours(), 'PNG'), UPRIGHT, 0),
    'png palette with a transparent colour': (encode(colours(), 'PNG', transparency=1), UPRIGHT, 0),
    'png palette with alphas': (encode(colours(), 'PNG', transparency=bytes([0, 128, 255])), UPRIGHT, 0),
    'png with a transparent colour': (encode(UPRIGHT, 'PNG', transparency=(32, 32, 192)), UPRIGHT, 0),
    'png 1 bit': (encode(BIT, 'PNG', '1'), BIT, 0),
    'png 2 bits': (encode(colours(), 'PNG', bits=2), UPRIGHT, 0),
    'png 16 bits': (encode(DEEP, 'PNG'), GREY, 0),
    'png 16 bits, colours': (by_opencv(UPRIGHT.astype(np.uint16) * 256 + 200, '.png'), UPRIGHT, 0),
    'png 16 bits, alpha': (by_opencv(alpha()[..., [2, 1, 0, 3]][..., ::-1].astype(np.uint16) * 256, '.png'), None, 0),
    'png of frames': (encode(UPRIGHT, 'PNG', **FRAMES), UPRIGHT, 0),
    'bmp': (encode(UPRIGHT, 'BMP'), UPRIGHT, 0),
    'bmp grey': (encode(GREY, 'BMP'), GREY, 0),
    'bmp palette': (encode(colours(), 'BMP'), UPRIGHT, 0),
    'bmp 1 bit': (encode(BIT, 'BMP', '1'), BIT, 0),
    'bmp alpha': (encode(alpha(), 'BMP'), UPRIGHT, 0),
    'ppm': (encode(UPRIGHT, 'PPM'), UPRIGHT, 0),
    'pgm': (encode(GREY, 'PPM'), GREY, 0),
    'pbm 1 bit': (encode(BIT, 'PPM', '1'), BIT, 0),
    'pgm 16 bits': (b'P5 48 32 65535\n' + DEEP.astype('>u2').tobytes(), GREY, 0),
    'pgm 12 bits': (b'P5 48 32 4095\n' + (DEEP >> 4).astype('>u2').tobytes(), GREY, 0),
    'ppm 16 bits': (b'P6 48 32 65535\n' + (UPRIGHT.astype('>u2') * 257).tobytes(), UPRIGHT, 0),
    'tiff': (encode(UPRIGHT, 'TIFF'), UPRIGHT, 0),
    'tiff lzw': (encode(UPRIGHT, 'TIFF', compression='tiff_lzw'), UPRIGHT, 0),
    'tiff jpeg': (encode(UPRIGHT, 'TIFF', compression='jpeg', quality=95), UPRIGHT, 20),
    'tiff grey': (encode(GREY, 'TIFF'), GREY, 0),
    'tiff alpha': (encode(alpha(), 'TIFF'), UPRIGHT, 0),
    'tiff palette': (encode(colours(), 'TIFF'), UPRIGHT, 0),
    'tiff 1 bit': (encode(BIT, 'TIFF', '1'), BIT, 0),
    'tiff cmyk': (encode(UPRIGHT, 'TIFF', 'CMYK'), UPRIGHT, 1),
    'tiff 16 bits': (encode(DEEP, 'TIFF'), GREY, 0),
    'tiff 16 bits, big-endian': (
        encode(Image.frombytes('I;16B', (48, 32), DEEP.astype('>u2').tobytes()), 'TIFF'),
        GREY,
        0,
    ),
    'tiff 16 bits, colours': (by_opencv(UPRIGHT.astype(np.uint16) * 256 + 200, '.tiff'), UPRIGHT, 0),
    'tiff of pages': (encode(UPRIGHT, 'TIFF', **FRAMES), UPRIGHT, 0),
    'webp': (encode(UPRIGHT, 'WEBP', quality=95), UPRIGHT, 70),
    'webp lossless': (encode(UPRIGHT, 'WEBP', lossless=True), UPRIGHT, 0),
    'webp alpha': (encode(alpha(), 'WEBP', lossless=True, exact=True), UPRIGHT, 0),
    'webp of frames': (encode(UPRIGHT, 'WEBP', lossless=True, **FRAMES), UPRIGHT, 0),
    'gif': (encode(colours(), 'GIF'), UPRIGHT, 0),
    'gif with a transparent colour': (encode(colours(), 'GIF', transparency=1), UPRIGHT, 0),
    'gif of frames': (encode(colours(), 'GIF', **FRAMES), UPRIGHT, 0),
    'jpeg 2000': (encode(UPRIGHT, 'JPEG2000'), UPRIGHT, 0),
    'jpeg 2000 grey': (encode(GREY, 'JPEG2000'), GREY, 0),
    'jpeg 2000, 16 bits': (encode(DEEP, 'JPEG2000'), GREY, 0),
}
if 'AVIF' in FORMATS:
    KINDS['avif'] = (encode(UPRIGHT, 'AVIF', quality=95, subsampling='4:4:4'), UPRIGHT, 20)
    KINDS['avif alpha'] = (encode(alpha(), 'AVIF', quality=95, subsampling='4:4:4'), UPRIGHT, 60)


CONTAINERS = [k for k in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF') if k in FORMATS]  # of an EXIF orientation


def turned(kind: str, n: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = n
    options = dict(JPEG=FINE, WEBP=dict(lossless=True), AVIF=dict(quality=95, subsampling='4:4:4'))
    where = dict(tiffinfo={ORIENTATION: n}) if kind == 'TIFF' else dict(exif=exif)
    return encode(STORED[n](UPRIGHT), kind, **options.get(kind, {}), **where)


REFUSED = {
    'tiff of floats': (encode(Image.fromarray(GREY.astype(np.float32) / 255), 'TIFF'), 'floats, which have no range'),
    'tiff of 32 bits': (encode(Image.fromarray(GREY.astype(np.int32)), 'TIFF'), '32 bits or with a sign'),
    'eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'it is no image'),
    'heic': (struct.pack('>I', 24) + b'ftypheic' + bytes(100), 'it is no image.* HEIC: convert'),
    'psd': (b'8BPS' + bytes(100), 'it is no image'),
}
