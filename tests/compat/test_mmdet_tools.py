"""What MMDetection's tools miss in its maintained line."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd.compat.mmdet_tools import register_corrupt


def test_corrupt():
    pytest.importorskip('imagecorruptions')
    registry = pytest.importorskip('mmdet.registry')
    register_corrupt()
    register_corrupt()  # once is enough
    image = np.full((40, 50, 3), 100, np.uint8)
    brighter = [
        registry.TRANSFORMS.build(dict(type='mmdet.Corrupt', corruption='brightness', severity=severity))(
            dict(img=image)
        )['img']
        for severity in (1, 5)
    ]
    # It adds 0.1 or 0.5 to HSV's value: 25.5 or 127.5.
    assert [np.unique(x).tolist() for x in brighter] == [[125], [227]]
    assert (image == 100).all()
