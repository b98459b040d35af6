"""Detect objects in images, or classify them, with a file of export_onnx.py. Needs only numpy, pillow, onnxruntime.

Images are resized as by the config's test pipeline (the steps are in the file), by bilinear interpolation that differs
from OpenCV's by one grey level at most. Boxes are in pixels of the image file.
"""

import argparse
import colorsys
import json
import os
import os.path as osp
import sys
import warnings
from collections import Counter

import numpy as np
from PIL import Image, ImageDraw, ImageFont

EXAMPLES = """examples:
  python infer_onnx.py MODEL.onnx image.jpg
  python infer_onnx.py MODEL.onnx images/ --out-dir found --json found.json --score-thr 0.5
"""
try:
    from PIL import AvifImagePlugin  # registers itself; since Pillow 11.3

    AVIF = {'AVIF': '.avif .avifs'} if AvifImagePlugin.SUPPORTED else {}
except ImportError:
    AVIF = {}
# Which images are read, which files in folders are some, and which are none: as in mmccd.data.image_files.
FORMATS = {
    'JPEG': '.jpg .jpeg .jpe .jfif',
    'PNG': '.png .apng',
    'BMP': '.bmp',
    'PPM': '.ppm .pgm .pbm .pnm',
    'TIFF': '.tif .tiff',
    'WEBP': '.webp',
    'GIF': '.gif',
    'JPEG2000': '.jp2 .j2k .j2c .jpc .jpf .jpx',
    **AVIF,
}
SUFFIXES = tuple(' '.join(FORMATS.values()).split())
NO_IMAGES = ('.txt', '.json', '.xml', '.csv', '.tsv', '.md', '.yaml', '.yml', '.html', '.py', '.log', '.zip')
LEFT_BEHIND = {
    '@eadir',
    '@tmp',
    '#recycle',
    '#snapshot',
    '@recycle',
    '@recently-snapshot',
    '$recycle.bin',
    'system volume information',
    'recycler',
    'found.000',
    'lost+found',
    '__macosx',
    'icon\r',
    'network trash folder',
    'temporary items',
    '__pycache__',
    'thumbs.db',
    'ehthumbs.db',
    'ehthumbs_vista.db',
    'desktop.ini',
    'picasa.ini',
}
ORIENTATION, BITS = 0x0112, 258  # EXIF's and TIFF's tags
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DARK_BELOW = 64  # of 256: 16-bit files that hold 14 bits or less stay below it
DARK = (
    'of its 16 bits the upper 8 are used, and are almost empty: the network sees black. Convert such images to 8 bits '
    'first (docs/reliability.md, "Images")'
)
METADATA = 'mmccd'  # key in the file
MIN_EDGE = 480  # pixels of a drawing's longer edge: smaller images are enlarged, so that labels are readable


class UserError(ValueError):
    """Something that is wrong in the command."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='ONNX file of tools/deployment/export_onnx.py')
    parser.add_argument('img', metavar='IMG|DIR', help='an image, or a folder: all images in it and below')
    parser.add_argument(
        '--out-dir', help='folder for the drawings, <name>_onnx.png; default: work_dirs/<config name>/onnx'
    )
    parser.add_argument('--json', metavar='FILE', help='also write the results there')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score of a box; default: 0.3')
    parser.add_argument('--topk', type=int, default=5, help='classes that a classifier lists; default: 5')
    return parser.parse_args()


def load_model(path: str) -> 'tuple[onnxruntime.InferenceSession, dict]':  # noqa: F821
    """Session and metadata of a file."""
    try:
        import onnxruntime
    except ImportError as e:
        raise UserError('infer_onnx.py needs onnxruntime: pip install onnxruntime') from e
    if not osp.isfile(path):
        raise UserError(f'model {path!r} does not exist')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = [
        p for p in ('CUDAExecutionProvider', 'CPUExecutionProvider') if p in onnxruntime.get_available_providers()
    ]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as e:  # onnxruntime's own classes derive from Exception
        raise UserError(f'model {path!r} cannot be read: {str(e).splitlines()[0]}') from e
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise UserError(f'model {path!r} was not made by export_onnx.py: it does not say how to resize images')
    info = json.loads(text)
    if info['kind'] != 'end2end':
        raise UserError(
            f'model {path!r} was exported with --kind {info["kind"]}, and gives no '
            f'{"boxes" if info["task"] == "detection" else "scores"}: export it with --kind end2end'
        )
    unknown = [s['transform'] for s in info['resize'] if s['step'] == 'unknown']
    if unknown:
        raise UserError(f'model {path!r} needs a transform of the test pipeline that is not supported: {unknown[0]}')
    return session, info


def list_images(path: str) -> 'list[str]':
    paths = [path]
    if osp.isdir(path):
        paths, others = [], Counter()
        for root, folders, names in os.walk(path, followlinks=True):
            folders[:] = [n for n in folders if not is_left_behind(n)]
            for name in names:
                if name.lower().endswith(SUFFIXES):
                    paths += [] if is_left_behind(name) else [osp.join(root, name)]
                elif not is_left_behind(name) and not name.lower().endswith(NO_IMAGES):
                    others[osp.splitext(name)[1].lower() or 'no suffix'] += 1
        paths.sort()
        has = ', '.join(f'{n:,} of {suffix}' for suffix, n in others.most_common())
        if not paths:
            has = f'; it has files: {has}' if has else ''
            raise UserError(f'folder {path!r} has no image in it (a file named {", ".join(SUFFIXES)}){has}')
        if has:
            print(f'note: {path}: left out, no images by their names: {has}', file=sys.stderr)
    dark = [p for p in paths if open_image(p)[1]]  # all, so that an error comes before the first drawing
    if dark:
        more = f' ({len(dark):,} such files of {len(paths):,})' if len(dark) > 1 else ''
        print(f'warning: image {dark[0]}: {DARK}{more}', file=sys.stderr)
    return paths


def is_left_behind(name: str) -> bool:
    """Whether systems and editors leave a file or folder of this name."""
    return name.startswith('.') or name.lower() in LEFT_BEHIND


def read_image(path: str) -> np.ndarray:
    """RGB image (H, W, 3), uint8, upright: what the model was trained on (mmccd.data.decode)."""
    return open_image(path)[0]


def open_image(path: str) -> 'tuple[np.ndarray, bool]':
    """The same, and whether it is almost black because a file of 16 bits holds fewer."""
    if not osp.isfile(path):
        raise UserError(f'image {path!r} cannot be used: there is no such file')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            image = Image.open(path, formats=tuple(FORMATS))
            deep = has_16_bits(image, path)  # before its pixels are decoded
            image.load()
            turn = TURNS.get(orientation(image))
            image = of_8_bits(image).convert('RGB')
        pixels = np.asarray(image if turn is None else image.transpose(turn))
        return pixels, deep and bool(pixels.max(initial=0) < DARK_BELOW)
    except Image.UnidentifiedImageError as e:
        raise UserError(f'image {path!r} cannot be used: it is no image') from e
    except Exception as e:  # damaged files raise nearly anything
        raise UserError(f'image {path!r} cannot be used: {str(e) or type(e).__name__}') from e


def orientation(image: Image.Image) -> int:
    """EXIF orientation, as far as it is still to be followed: Pillow's newer versions do so for TIFF."""
    try:
        if image.format == 'TIFF':
            return image.tag_v2.get(ORIENTATION)
        exif = Image.Exif()
        exif.load(image.info.get('exif') or b'')
        return exif.get(ORIENTATION)
    except Exception:  # damaged entries
        return 1


def has_16_bits(image: Image.Image, path: str) -> bool:
    """Whether an image that is not decoded yet has more than 8 bits a channel."""
    if image.format == 'PNG':
        with open(path, 'rb') as f:
            return f.read(25)[24:] == b'\x10'
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS, (1,))) > 8
    # Of PPM, one of the decoder's arguments is the largest value.
    values = [value for *_, args in image.tile for value in args] if image.format == 'PPM' else []
    return image.mode.startswith('I') or any(isinstance(value, int) and value > 255 for value in values)


def of_8_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits the upper 8. Floats and 32-bit numbers have no range."""
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        kind = 'floats' if image.mode == 'F' else 'whole numbers of 32 bits or with a sign'
        raise ValueError(f'its pixels are {kind}, which have no range: convert it to 8 bits')
    return image


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear between the centres of pixels, without smoothing: as OpenCV's, but for one grey level."""
    if image.shape[:2] == (height, width):
        return image

    def neighbours(size: int, out: int) -> 'tuple[np.ndarray, np.ndarray, np.ndarray]':
        place = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32)

    low, high, share = neighbours(image.shape[0], height)
    rows = image[low] * (1 - share)[:, None, None] + image[high] * share[:, None, None]
    low, high, share = neighbours(image.shape[1], width)
    out = rows[:, low] * (1 - share)[:, None] + rows[:, high] * share[:, None]
    return (out + 0.5).astype(np.uint8)


def prepare(image: np.ndarray, info: dict) -> 'tuple[np.ndarray, np.ndarray, np.ndarray]':
    """Resize an RGB image (H, W, 3) for the model.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: The image; factor and start, both (x, y): a point of the file is at
        (point - start) * factor in it.
    """
    factor, start = np.ones(2), np.zeros(2)

    def to_size(width: int, height: int) -> None:
        nonlocal image, factor
        width, height = max(width, 1), max(height, 1)
        factor = factor * [width / image.shape[1], height / image.shape[0]]
        image = resize(image, width, height)

    for step in info['resize']:
        height, width = image.shape[:2]
        if step['step'] == 'edge':
            size, edge = step['size'], step['edge']
            if edge == 'width' or (edge == 'short' and width < height) or (edge == 'long' and width > height):
                to_size(size, int(size * height / width))
            else:
                to_size(int(size * width / height), size)
        elif step['step'] == 'crop':
            crop = np.minimum(step['size'], (width, height))
            x, y = (round((all_ - kept) / 2) for all_, kept in zip((width, height), crop))
            image = image[y : y + crop[1], x : x + crop[0]]
            start = start + np.array((x, y)) / factor
        else:
            size = (
                step['size']
                if step['step'] == 'resize'
                else [int(side * f + 0.5) for side, f in zip((width, height), step['factor'])]
            )
            if step['keep_ratio']:
                ratio = min(max(size) / max(height, width), min(size) / min(height, width))
                size = int(width * ratio + 0.5), int(height * ratio + 0.5)
            to_size(*size)

    if info['shape'] is not None:
        height, width = info['shape']
        if info['task'] == 'classification':
            to_size(width, height)
        else:  # as large as fits, and filled at the right and at the bottom
            ratio = min(1, height / image.shape[0], width / image.shape[1])
            if ratio < 1:
                to_size(*(int(v * ratio + 0.5) for v in image.shape[1::-1]))
            whole = np.empty((height, width, 3), np.float32)
            whole[:] = info['fill']
            whole[: image.shape[0], : image.shape[1]] = image
            image = whole
    return image, factor, start


def infer(
    session: 'onnxruntime.InferenceSession',  # noqa: F821
    info: dict,
    image: np.ndarray,
    topk: int,
    score_thr: float,
) -> 'list[dict]':
    """Results for an RGB image (H, W, 3), uint8, best first: label, name, score and, of detectors, box."""
    ready, factor, start = prepare(image, info)
    # By its place: in files of mmccd 0.1 its name is 'picture'.
    given = {session.get_inputs()[0].name: ready.transpose(2, 0, 1)[None].astype(np.float32)}

    def entry(label: int, score: float, **more: 'list[float]') -> dict:
        name = info['classes'][label] if label < len(info['classes']) else str(label)
        return dict(label=int(label), name=name, score=float(score), **more)

    if info['task'] == 'classification':
        scores = session.run(['scores'], given)[0][0]
        return [entry(i, scores[i]) for i in np.argsort(-scores, kind='stable')[:topk]]
    boxes, scores, labels = session.run(['boxes', 'scores', 'labels'], given)
    boxes = boxes.reshape(-1, 2, 2) / factor + start
    boxes = boxes.clip(0, image.shape[1::-1]).reshape(-1, 4)
    return [
        entry(label, score, box=box.tolist()) for box, score, label in zip(boxes, scores, labels) if score >= score_thr
    ]


def colour(label: int) -> 'tuple[int, int, int]':
    """One for each class, neighbours far apart."""
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.95))


# Fonts by the names of their files, as systems and distributions call them: of many scripts, the widest first.
FONTS = (
    'NotoSansCJK-Regular.ttc',
    'DejaVuSans.ttf',
    'msyh.ttc',
    'malgun.ttf',
    'PingFang.ttc',
    'Arial Unicode.ttf',
    'arialuni.ttf',
    'NotoSans-Regular.ttf',
    'NotoSansArabic-Regular.ttf',
    'NotoSansDevanagari-Regular.ttf',
    'NotoSansThai-Regular.ttf',
)


def lacks(font: ImageFont.ImageFont, letters: 'set[str]') -> 'set[str]':
    """Letters for which a font draws the box that stands for what it does not have."""
    nothing = bytes(font.getmask(chr(0x10FFFE)))
    return {c for c in letters if c.isprintable() and not c.isspace() and bytes(font.getmask(c)) == nothing}


def font_for(names: 'list[str]', size: int) -> 'tuple[ImageFont.ImageFont, list[str]]':
    """A font for all names, and the names as it can draw them: with code points for letters that no font here has."""
    letters = {c for name in names for c in name if not c.isascii()}
    best = ImageFont.load_default(size)
    missing = lacks(best, letters)
    for name in FONTS if missing else ():
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        left = lacks(font, letters)
        if len(left) < len(missing):
            best, missing = font, left
    if missing:
        warnings.warn(f'no font here can draw {", ".join(sorted(missing)[:8])}: code points are drawn', stacklevel=2)
    return best, [''.join(f'U+{ord(c):04X} ' if c in missing else c for c in name).rstrip() for name in names]


def draw(pixels: np.ndarray, found: 'list[dict]') -> Image.Image:
    """Boxes over an RGB image, or classes below it; small images are enlarged."""
    factor = max(1, -(-MIN_EDGE // max(pixels.shape[:2])))
    canvas = Image.fromarray(pixels)
    canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
    size = max(16, max(canvas.size) // 45)
    font, names = font_for([f['name'] for f in found], size)
    found = [dict(f, name=name) for f, name in zip(found, names)]
    if found and 'box' not in found[0]:
        return draw_classes(canvas, found, font, size)
    draw_boxes(canvas, found, factor, font, size)
    return canvas


def draw_boxes(canvas: Image.Image, found: 'list[dict]', factor: int, font: ImageFont.ImageFont, size: int) -> None:
    """Draw boxes, times ``factor``, with names and scores that do not hide each other."""
    pen = ImageDraw.Draw(canvas)
    for f in reversed(found):  # the best on top
        pen.rectangle([factor * v for v in f['box']], outline=colour(f['label']), width=size // 6 + 1)
    labels = []  # (x1, y1, x2, y2)
    for f in found:
        text = f'{f["name"]}: {f["score"]:.2f}'
        _, _, width, height = pen.textbbox((0, 0), text, font=font)
        width, height = width + 4, height + 4
        x, y = factor * f['box'][0], factor * f['box'][1]
        x = max(0, min(x, canvas.width - width))
        y = y - height if y >= height else y
        # Two classes at one place have two labels, one below the other.
        while any(
            x < right and left < x + width and y < bottom and top < y + height for left, top, right, bottom in labels
        ):
            y += height
        labels.append((x, y, x + width, y + height))
        background = colour(f['label'])
        bright = np.dot(background, (0.299, 0.587, 0.114)) > 128
        pen.rectangle(labels[-1], fill=background)
        pen.text((x + 2, y + 1), text, fill='black' if bright else 'white', font=font)


def draw_classes(image: Image.Image, found: 'list[dict]', font: ImageFont.ImageFont, size: int) -> Image.Image:
    """The image with names, scores and a bar for each score below it."""
    line = size + size // 2
    whole = Image.new('RGB', (max(image.width, MIN_EDGE), image.height + line * len(found) + size // 2), 'white')
    whole.paste(image, ((whole.width - image.width) // 2, 0))
    pen = ImageDraw.Draw(whole)
    for i, f in enumerate(found):
        y = image.height + size // 4 + i * line
        pen.rectangle((0, y + 2, f['score'] * (whole.width - 1), y + line - 2), fill='#c6dbef')
        pen.text((6, y + size // 6), f'{f["score"]:.3f}  {f["name"]}', fill='black', font=font)
    return whole


def finite(value: object) -> object:
    """The same with null in the place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def output_names(images: 'list[str]', path: str) -> 'list[str]':
    """Paths of ``list_images(path)`` below that folder; without suffix, unless two would then be the same."""
    folder = path if osp.isdir(path) else osp.dirname(path) or '.'
    names = [osp.relpath(p, folder) for p in images]
    stems = [osp.splitext(n)[0] for n in names]
    taken = Counter([*stems, *set(names)])  # a.jpg.png without its suffix is another one's whole name
    return [s if taken[s] == 1 else n for n, s in zip(names, stems)]


def main() -> None:
    args = parse_args()
    if not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr must be from 0 to 1, got {args.score_thr:g}')
    if args.topk < 1:
        raise UserError(f'--topk must be at least 1, got {args.topk}')
    Image.MAX_IMAGE_PIXELS = 2**29  # Pillow raises at twice as many, as OpenCV does: aerial photographs are large
    session, info = load_model(args.model)
    images = list_images(args.img)
    out_dir = args.out_dir or osp.join('work_dirs', info['config'] or osp.splitext(osp.basename(args.model))[0], 'onnx')
    try:
        os.makedirs(out_dir, exist_ok=True)
        results = []
        for path, name in zip(images, output_names(images, args.img)):
            image = read_image(path)
            found = infer(session, info, image, args.topk, args.score_thr)
            results.append(dict(image=path, found=found))
            out = osp.join(out_dir, f'{name}_onnx.png')
            os.makedirs(osp.dirname(out), exist_ok=True)
            draw(image, found).save(out)
            summary = ', '.join(f'{f["name"]} {f["score"]:.2f}' for f in found)
            print(f'{out}: {summary or "nothing"}')
        if args.json:
            os.makedirs(osp.dirname(args.json) or '.', exist_ok=True)
            with open(args.json, 'w', encoding='utf-8') as f:
                json.dump(finite(results), f, indent=1, ensure_ascii=False, allow_nan=False)
            print(args.json)
    except OSError as e:
        raise UserError(f'{e.filename} cannot be written: {e.strerror}') from e


if __name__ == '__main__':
    try:
        main()
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT
