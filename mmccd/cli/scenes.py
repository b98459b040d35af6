"""Scenes to detect objects in: cut-outs of small photographs, pasted over tinted crops of textures.

The backgrounds are the brick, grass and gravel photographs (CC0) in scikit-image's wheel; nothing is downloaded. The
left part of each belongs to the split ``train``, the right part to ``val``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmccd.cli.made_data import CocoFile

SPLITS = ('train', 'val')
TEXTURES = ('brick', 'grass', 'gravel')
TEXTURE_SIZE, TEXTURE_SPLIT = 512, 320  # columns: train crops lie left of the split, val crops right of it
INK = 0.3  # alpha above which a pixel counts as one that can be seen
MAX_HIDDEN = 0.25  # share of a box that other boxes may cover; keeps IoU <= .25 / 1.75 = 0.14
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@functools.cache
def load_textures(split: str) -> list[np.ndarray]:
    """The columns of each texture that belong to ``split``; ImportError without scikit-image."""
    folder = resources.files('skimage') / 'data'  # read as files: skimage.data may download
    columns = slice(TEXTURE_SPLIT) if split == 'train' else slice(TEXTURE_SPLIT, None)
    return [np.array(Image.open(folder / f'{name}.png'))[:, columns] for name in TEXTURES]


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (the last two exclusive) of the true pixels of a mask, (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def resized(image: np.ndarray, longer_side: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """An image, (H, W) uint8, scaled so that its longer side has ``longer_side`` pixels."""
    height, width = image.shape
    scale = longer_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, resample))


def place(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    boxes: np.ndarray,
    hidden: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find a spot for a new box of ``shape`` (height, width) on top of ``boxes``.

    ``boxes``, (N, 4): left, top, right, bottom; ``hidden``, (N,), the pixels already covered.
    Returns the new box and the pixels it covers of every other, (N,); None if 50 tries find none.
    """
    height, width = shape
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for _ in range(50):
        left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        box = np.array([left, top, left + width, top + height])
        sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
        shared = sides.clip(0).prod(axis=1)
        fits = (hidden + shared <= MAX_HIDDEN * areas).all()
        if fits and shared.sum() <= MAX_HIDDEN * height * width:
            return box, shared
    return None


def pick_colour(rng: np.random.Generator, ground: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A colour far from the ground's brightness and from ``others``, (N, 3), that it overlaps."""
    colours = rng.uniform(0, 256, (64, 3))
    contrast = np.abs((colours - ground) @ LUMA) / 80  # 1 is enough to see the object
    for other in others:
        contrast = np.minimum(contrast, np.linalg.norm(colours - other, axis=1) / 120)
    return colours[np.argmax(contrast.clip(max=1))]  # the first that is good enough, else the best


@dataclass(frozen=True)
class Composer:
    """Makes scenes of objects of one kind.

    Attributes:
        cut_out (Callable): Of an object's index and its longer side in pixels: alpha, (H, W) in [0, 1], cut to what is
            above :data:`INK`, and shading, (H, W), factors of the object's colour.
        sizes (tuple[int, int]): Smallest and largest longer side.
        most (int): Objects in a scene, at most.
    """

    cut_out: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    sizes: tuple[int, int]
    most: int

    def scene(
        self, rng: np.random.Generator, split: str, indices: np.ndarray, size: int
    ) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
        """Paste objects out of ``indices`` over a tinted crop of one of the split's textures.

        Returns the scene, (size, size, 3) uint8, and of each object its index and its box in COCO's
        xywh, tight around what later objects leave visible.
        """
        texture = load_textures(split)[rng.integers(len(TEXTURES))]
        top, left = (rng.integers(side - size + 1) for side in texture.shape)
        grain = np.rot90(texture[top : top + size, left : left + size], rng.integers(4)).astype(float)
        grain = np.clip((grain - grain.mean()) / max(grain.std(), 1.0), -2.5, 2.5) * rng.uniform(12, 24)
        tint = rng.uniform(30, 225, 3)
        scene = tint + grain[:, :, None] * (0.5 + tint / 255)  # (size, size, 3)

        owner = np.full((size, size), -1)  # which object is on top
        boxes, hidden, colours = np.zeros((0, 4), int), np.zeros(0), np.zeros((0, 3))
        pasted: list[int] = []
        # Fuller in training, the larger of two draws: more boxes to learn from in the same time.
        number = rng.integers(1, self.most + 1, 2 if split == 'train' else 1).max()
        for index in rng.choice(indices, number, replace=False):
            alpha, shading = self.cut_out(index, rng.integers(self.sizes[0], self.sizes[1] + 1))
            spot = place(rng, alpha.shape, boxes, hidden, size)
            if spot is None:
                continue
            box, shared = spot
            colour = pick_colour(rng, tint, colours[shared > 0])
            window = np.s_[box[1] : box[3], box[0] : box[2]]
            scene[window] += alpha[:, :, None] * (shading[:, :, None] * colour - scene[window])
            owner[window][alpha > INK] = len(pasted)
            boxes, colours = np.vstack([boxes, box]), np.vstack([colours, colour])
            hidden = np.append(hidden + shared, 0)
            pasted.append(int(index))

        found = []
        for number, index in enumerate(pasted):
            left, top, right, bottom = bounds(owner == number)
            found.append((index, [left, top, right - left, bottom - top]))
        return np.clip(scene.round(), 0, 255).astype(np.uint8), found


def write_scenes(
    root: Path,
    split: str,
    composer: Composer,
    indices: np.ndarray,
    labels: np.ndarray,
    coco: CocoFile,
    parameters: dict[str, Any],
    key: str,
) -> dict[str, int]:
    """Write one split's scenes and COCO file.

    Args:
        root (Path): The images go to ``root/split``, the file to ``root/annotations``.
        split (str): ``'train'`` or ``'val'``.
        composer (Composer): Makes the scenes.
        indices (np.ndarray): The split's objects.
        labels (np.ndarray): Class of each object of both splits.
        coco (CocoFile): With the categories, and without images.
        parameters (dict): ``size``, ``seed`` and ``<split>_scenes``.
        key (str): Name of the annotations' entry that holds the object's index.

    Returns:
        dict[str, int]: The numbers of images and annotations.
    """
    size = parameters['size']
    (root / split).mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    for number in tqdm(range(1, parameters[f'{split}_scenes'] + 1), desc=f'det/{split}', disable=None):
        # One generator a scene: more scenes leave the earlier ones as they are.
        rng = np.random.default_rng([parameters['seed'], 1 + SPLITS.index(split), number])
        scene, found = composer.scene(rng, split, indices, size)
        name = f'{number:06d}.png'
        Image.fromarray(scene).save(root / split / name)
        image_id = coco.add_image(name, size, size)
        for index, box in found:
            coco.add_box(image_id, int(labels[index]) + 1, box, **{key: index})
    coco.write(root / 'annotations' / f'instances_{split}.json')
    return {key: len(coco.content[key]) for key in ('images', 'annotations')}


def write_folders(
    folder: Path, images: np.ndarray, names: Sequence[str], labels: np.ndarray, indices: np.ndarray
) -> int:
    """Write one split as class folders, ``names`` by label; returns the number of images."""
    for label in np.unique(labels):
        (folder / names[label]).mkdir(parents=True)
    digits = max(4, len(str(len(images) - 1)))
    for index in tqdm(indices, desc=f'cls/{folder.name}', disable=None):  # None: not in log files
        Image.fromarray(images[index]).save(folder / names[labels[index]] / f'{index:0{digits}d}.png')
    return len(indices)
