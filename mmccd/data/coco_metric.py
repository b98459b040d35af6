"""COCO's metric of MMDetection, over annotations that are read as everywhere here.

In a file of its own, since mmdet's metrics are slow to import.
"""

from __future__ import annotations

import logging
import os.path as osp
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet import evaluation
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from mmccd.errors import UserError
from mmccd.registry import METRICS

from .coco_api import COCO


@METRICS.register_module()
class CocoMetric(evaluation.CocoMetric):
    """``mmdet.CocoMetric`` whose annotation file is repaired or refused on reading. Arguments are the same.

    The APs of ``classwise=True`` stand under their own names in whatever order the file lists its categories. Without
    a detection the metrics are 0, with a warning. A file without a box to find is refused, except for
    ``format_only=True``.

    Raises:
        UserError: If the file cannot be used, or has no box of the classes.
    """

    def __init__(self, ann_file: str | None = None, *args: Any, sort_categories: bool = False, **kwargs: Any) -> None:
        super().__init__(None, *args, **kwargs)
        self._source = ann_file
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=self.backend_args) as path:
            self._coco_api = COCO(path)
        if sort_categories:
            self._coco_api.dataset['categories'].sort(key=lambda c: c['id'])
            self._coco_api.createIndex()

    @property
    def dataset_meta(self) -> dict | None:
        """Of the loader's dataset; it comes before the first iteration, and what cannot be evaluated is said then."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict | None) -> None:
        self._dataset_meta = meta
        if meta is None or self._source is None or self.format_only:
            return
        ids = set(self._coco_api.get_cat_ids(cat_names=meta['classes']))
        images = self._coco_api.imgs
        if not any(
            a['category_id'] in ids and not a['iscrowd'] and a['image_id'] in images
            for a in self._coco_api.anns.values()
        ):
            raise UserError(
                f'{self._source} has no box of the classes {", ".join(meta["classes"][:10])} to evaluate with: every '
                'metric would be -1. Give another annotation file, or none to evaluate: val_dataloader, val_cfg and '
                'val_evaluator are None in the config then'
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The metrics, each with a value."""
        if self._coco_api is None:  # mmdet would build its own, which fails without a detection
            with tempfile.TemporaryDirectory() as folder:
                path = self.gt_to_coco_json([gt for gt, _ in results], osp.join(folder, 'truth'))
                self._coco_api = COCO(path)
        if not any(len(found['bboxes']) for _, found in results):
            print_log(
                f'there is no detection in {len(results):,} images (above score_thr): the metrics are 0',
                'current',
                logging.WARNING,
            )
        return super().compute_metrics(results)

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """COCO result files. Labels count categories in the file's order, and evaluation in that of their ids."""
        self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        files = super().results2json(results, outfile_prefix)
        self.cat_ids = sorted(self.cat_ids)
        return files


@METRICS.register_module()
class InclusiveCocoMetric(CocoMetric):
    """``CocoMetric`` for boxes that include their last pixel (:mod:`mmccd.compat.mmdet_v06`). Same arguments."""

    def xyxy2xywh(self, bbox: np.ndarray) -> list[float]:
        """(x1, y1, x2, y2) to COCO's (x, y, width, height)."""
        x, y, width, height = super().xyxy2xywh(bbox)
        return [x, y, width + 1, height + 1]
