"""pycocotools' COCO, in MMDetection's form, over annotations that :func:`.read_coco` reads."""

from __future__ import annotations

import copy
from typing import Any

from mmdet.datasets import api_wrappers

from .checks.coco import read_coco


class COCO(api_wrappers.COCO):
    """``mmdet.datasets.api_wrappers.COCO`` of a file that is repaired or refused on reading; with texts as ids, too.

    Args:
        annotation_file (str, optional): The file. Default: none.

    Raises:
        UserError: If the file cannot be used.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            self.dataset = read_coco(annotation_file)
            self.createIndex()

    def createIndex(self) -> None:
        """The index, under MMDetection's names as well."""
        super().createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def loadCats(self, ids: Any = ()) -> list[dict]:
        """Categories; pycocotools takes a text for a list of ids."""
        return super().loadCats([ids] if isinstance(ids, str) else ids)

    def getAnnIds(self, imgIds: Any = (), catIds: Any = (), areaRng: Any = (), iscrowd: Any = None) -> list:
        """Ids of annotations; pycocotools takes a text for a list of ids."""
        imgIds, catIds = ([ids] if isinstance(ids, str) else ids for ids in (imgIds, catIds))
        return super().getAnnIds(imgIds, catIds, areaRng, iscrowd)

    def loadRes(self, resFile: Any) -> Any:
        """Detections; pycocotools fails where there are none."""
        if not isinstance(resFile, list) or resFile:
            return super().loadRes(resFile)
        found = COCO()
        found.dataset = {key: copy.copy(self.dataset[key]) for key in ('images', 'categories')}
        found.dataset['annotations'] = []
        found.createIndex()
        return found
