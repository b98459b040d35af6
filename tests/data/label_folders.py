"""Small datasets as labelling tools write them: the same images and boxes in each format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
BOXES = {'cat': (4, 3, 20, 10), 'dog': (10, 6, 5, 8)}  # x, y, width, height in each image
IMAGES = {'train': ('a.jpg', 'b.png', 'turned.jpg'), 'val': ('c.jpg', 'd.png')}
ALL = [(split, name) for split, names in IMAGES.items() for name in names]


def save_image(path: Path, seed: int = 0) -> None:
    """Noise of 40 x 30; ``turned.jpg`` is stored with 30 x 40, and its EXIF orientation turns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    if path.name.startswith('turned'):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif)
    else:
        Image.fromarray(pixels).save(path)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding='utf-8')


def yolo_line(name: str) -> str:
    x, y, w, h = BOXES[name]
    shares = (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT
    return ' '.join([str(list(BOXES).index(name)), *(f'{s:.6f}' for s in shares)])


def yolo(root: Path) -> Path:
    """Ultralytics: images/train, labels/train, data.yaml."""
    for split, name in ALL:
        save_image(root / 'images' / split / name)
        write(root / 'labels' / split / f'{Path(name).stem}.txt', '\n'.join(map(yolo_line, BOXES)) + '\n')
    write(root / 'data.yaml', 'train: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n')
    return root


def voc_object(name: str, box: tuple, more: str = '') -> str:
    x, y, w, h = box
    corners = f'<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>'
    return f'<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>'


def voc_xml(name: str, objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
    return f'<annotation><folder>x</folder><filename>{name}</filename>{size}{objects}</annotation>'


def voc(root: Path) -> Path:
    """VOC's development kit: pixels from 1, the last one included."""
    for _, name in ALL:
        save_image(root / 'JPEGImages' / name)
        objects = ''.join(voc_object(*item) for item in BOXES.items())
        write(root / 'Annotations' / f'{Path(name).stem}.xml', voc_xml(name, objects))
    for split, names in IMAGES.items():
        write(root / 'ImageSets' / 'Main' / f'{split}.txt', ''.join(f'{Path(n).stem}\n' for n in names))
        write(root / 'ImageSets' / 'Main' / f'cat_{split}.txt', ''.join(f'{Path(n).stem}  1\n' for n in names))
    write(root / 'ImageSets' / 'Main' / 'trainval.txt', ''.join(f'{Path(n).stem}\n' for _, n in ALL))
    return root


def labelme_json(name: str, shapes: list[dict], width: int | None = WIDTH, height: int | None = HEIGHT) -> str:
    content = dict(version='5.4.1', flags={}, shapes=shapes, imagePath=name, imageData=None)
    return json.dumps(dict(content, imageHeight=height, imageWidth=width))


def rectangle(name: str, box: tuple) -> dict:
    x, y, w, h = box
    return dict(
        label=name, points=[[x + w, y], [x, y + h]], group_id=None, description='', shape_type='rectangle', flags={}
    )


def labelme(root: Path) -> Path:
    """A folder for each split."""
    for split, name in ALL:
        save_image(root / split / name)
        shapes = [rectangle(*item) for item in BOXES.items()]
        write(root / split / f'{Path(name).stem}.json', labelme_json(name, shapes))
    return root


def cvat_box(name: str, box: tuple, more: str = '') -> str:
    x, y, w, h = box
    corners = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"'
    return f'<box label="{name}" source="manual" occluded="0" {corners} z_order="0"{more}></box>'


def cvat_xml(images: str, labels: tuple = tuple(BOXES)) -> str:
    names = ''.join(f'<label><name>{n}</name><color>#fff</color><attributes/></label>' for n in labels)
    meta = f'<meta><project><id>1</id><labels>{names}</labels></project></meta>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'


def cvat_image(i: int, name: str, entries: str, more: str = '') -> str:
    return f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}"{more}>{entries}</image>'


def cvat(root: Path) -> Path:
    """A project with subsets, images saved with it."""
    images = []
    for i, (split, name) in enumerate(ALL):
        subset = dict(train='Train', val='Validation')[split]
        save_image(root / 'images' / subset / name)
        images.append(cvat_image(i, name, ''.join(cvat_box(*b) for b in BOXES.items()), f' subset="{subset}"'))
    write(root / 'annotations.xml', cvat_xml(''.join(images)))
    return root


def studio_region(name: str, box: tuple, **more: object) -> dict:
    x, y, w, h = box
    value = dict(x=100 * x / WIDTH, y=100 * y / HEIGHT, width=100 * w / WIDTH, height=100 * h / HEIGHT, rotation=0)
    return dict(
        id=f'r{name}',
        type='rectanglelabels',
        from_name='label',
        to_name='image',
        original_width=WIDTH,
        original_height=HEIGHT,
        image_rotation=0,
        value=dict(value, rectanglelabels=[name], **more),
    )


def studio_task(i: int, name: str, regions: list[dict], **more: object) -> dict:
    annotation = {**dict(id=10 + i, was_cancelled=False, ground_truth=False, result=regions), **more}
    return dict(id=i, data=dict(image=f'/data/upload/1/{name}'), annotations=[annotation], predictions=[])


def studio_min(task: dict) -> dict:
    """A task as JSON-MIN has it."""
    [annotation] = task['annotations']
    sizes = ('original_width', 'original_height')
    labels = [{**r['value'], **{k: r[k] for k in sizes}} for r in annotation['result']]
    return dict(image=task['data']['image'], id=task['id'], label=labels, annotator=1, annotation_id=annotation['id'])


def label_studio(root: Path) -> Path:
    """All tasks in one file; uploaded images have a hash before their names, which only one file has kept."""
    tasks = []
    for i, (_, name) in enumerate(ALL):
        save_image(root / 'images' / (f'0a1b2c3d-{name}' if i == 0 else name))
        tasks.append(studio_task(i, f'0a1b2c3d-{name}', [studio_region(*b) for b in BOXES.items()]))
    write(root / 'project-1.json', json.dumps(tasks))
    return root


def label_studio_min(root: Path) -> Path:
    """The same as JSON-MIN."""
    label_studio(root)
    tasks = json.loads((root / 'project-1.json').read_text())
    write(root / 'project-1.json', json.dumps([studio_min(t) for t in tasks]))
    return root


BUILDERS = dict(
    yolo=yolo, voc=voc, labelme=labelme, cvat=cvat, label_studio=label_studio, label_studio_min=label_studio_min
)
