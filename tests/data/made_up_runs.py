"""Work folders made up for the tests of reports, and what stands in a page's tables."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import mmccd

# What the images of toy_coco hold: a cat and a dog of 20 x 10 pixels each.
CAT, DOG = [0, 3, 20, 10], [4, 3, 20, 10]
# Cats: two of three found, exactly: AP 67 / 101 (recalls from 0 to 0.66), at any IoU. Dogs: all found, 4 pixels beside:
# IoU 160 / 240, which counts at 4 of 10 thresholds. In the first image there is a dog too many, the last one.
DETECTIONS = [
    *(dict(image_id=i, category_id=10, bbox=CAT, score=0.9) for i in (1, 2)),
    *(dict(image_id=i, category_id=20, bbox=[8, 3, 20, 10], score=0.8) for i in (1, 2, 3)),
    dict(image_id=1, category_id=20, bbox=[0, 18, 20, 10], score=0.35),
    dict(image_id=2, category_id=20, bbox=[0, 18, 20, 10], score=0.2),
]
AP_CAT, AP_DOG = 67 / 101, 0.4


def training(steps: range, epoch_of: int, loss: float = 1.0) -> list[dict]:
    """Lines of a training's log, ``epoch_of`` iterations an epoch."""
    return [
        dict(lr=0.01, loss=loss / s, time=0.5, data_time=0.1, epoch=(s - 1) // epoch_of + 1, iter=s, step=s)
        for s in steps
    ]


def write_lines(folder: Path, lines: list) -> None:
    (folder / 'vis_data').mkdir(parents=True)
    text = ''.join(f'{line if isinstance(line, str) else json.dumps(line)}\n' for line in lines)
    (folder / 'vis_data' / 'scalars.json').write_text(text)


def write_config(path: Path, cfg) -> None:
    path.write_text(''.join(f'{k} = {v!r}\n' for k, v in cfg.to_dict().items()))


def detection_config(toy_coco: Path, name: str = 'retinanet_ccd_r18_fpn_digits'):
    """A config of the digits for :func:`toy_coco`."""
    cfg = mmccd.get_config(name)
    cfg.model.bbox_head.num_classes = 2
    for split in ('train', 'val', 'test'):
        file = 'train' if split == 'train' else 'val'
        cfg[f'{split}_dataloader'].dataset.update(
            data_root=str(toy_coco),
            ann_file=f'{file}.json',
            data_prefix=dict(img=f'{file}/'),
            metainfo=dict(classes=('cat', 'dog')),
        )
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(toy_coco / 'val.json')
    return cfg


def detection_run(folder: Path, cfg, detections: list[dict] | None = DETECTIONS, mAP: float = 0.5) -> Path:
    """A work folder of two epochs with its result file; no weights."""
    write_lines(
        folder / '20260102_030405',
        [
            *training(range(10, 21, 10), 20),
            {'coco/bbox_mAP': mAP, 'coco/bbox_mAP_l': -1.0, 'time': 0.1, 'step': 1},
            *training(range(30, 41, 10), 20),
            {'coco/bbox_mAP': mAP - 0.1, 'coco/bbox_mAP_l': -1.0, 'step': 2},
        ],
    )
    write_config(folder / '20260102_030405' / 'vis_data' / 'config.py', cfg)
    if detections is not None:
        (folder / 'val.bbox.json').write_text(json.dumps(detections))
    return folder


def tables(page: str) -> dict[str, list[list[str]]]:
    """Texts of the cells of a page's tables, the header first, by caption."""
    found = {}
    for caption, body in re.findall(r'<table aria-label="([^"]*)">(.*?)</table>', page, re.DOTALL):
        rows = re.findall(r'<tr>(.*?)</tr>', body, re.DOTALL)
        found[html.unescape(caption)] = [
            [
                ' '.join(html.unescape(re.sub(r'<[^>]*>', '', c.replace('<wbr>', ''))).split())
                for c in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row, re.DOTALL)
            ]
            for row in rows
        ]
    return found
