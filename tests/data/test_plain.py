"""The fast check of annotation files against a slow one, and that what it lets pass needs nothing."""

from __future__ import annotations

import copy
import gc
import json
import math
from collections import Counter

import pytest

from mmccd.data import plain
from mmccd.data.annotations import repair
from mmccd.data.checks.coco import read_coco
from mmccd.data.classes import read_categories
from mmccd.data.plain import is_plain

CONTENT = dict(
    images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=30.5) for i in (9, 1, 0)],
    categories=[dict(id=i, name=str(i)) for i in (3, 0, 1)],
    annotations=[
        dict(id=i, image_id=i % 2, category_id=i % 2, iscrowd=int(i == 5), area=i / 2, bbox=[0, 1, i, 2.5])
        for i in (7, 5, 6, 1)
    ],
)
ODD = [
    *(None, True, False, '', '1', 'x', [], [1], {}, {'a': 1}, 'abcd', {'a': 1, 'b': 1, 'c': 1, 'd': 1}),
    *(0, 1, 7, -1, 0.0, 1.0, 0.5, -0.5, math.nan, math.inf, -math.inf, 1e38, 9.9e37, -1e39, 1e308),
    *(2**53 - 1, 2**53, 2**63 - 1, 2**63, -(2**63), 1 - 2**63, 2**64, 10**400, 999_999_999, 1e9),
    *([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, None], [True, 2, 3, 4], [1, False, 3, 4], [1, 2, True, 4]),
    *(['1', 2, 3, 4], [1, 2, 0, 4], [1, 2, 3, -4], [1, 2, 3, math.nan], [-1e39, 2, 3, 4], [[1], 2, 3, 4]),
    *([0.0, 0, 1, 1], [1e38, 0, 1, 1]),
]  # fmt: skip


def is_number(value: object, kinds: tuple = (int, float)) -> bool:
    return type(value) in kinds and -plain.LARGEST_FLOAT < value < plain.LARGEST_FLOAT


def are_ids(entries: list, limit: int) -> bool:
    ids = [e.get('id') for e in entries]
    return all(type(i) is int and -limit < i < limit for i in ids) and len({*ids}) == len(ids)


def is_plain_annotation(a: dict) -> bool:
    box = a.get('bbox')
    return (
        a['id'] > 0
        and all(type(a.get(key)) is int and -(2**63) <= a[key] < 2**63 for key in ('image_id', 'category_id'))
        and type(a.get('iscrowd')) is int
        and a['iscrowd'] in (0, 1)
        and is_number(a.get('area'))
        and type(box) is list
        and len(box) == 4
        and all(map(is_number, box))
        and min(box[2:]) > 0
        and (a['area'] > 0 or min(box[2:]) < 1)
        and a.get('ignore') in (None, 0)
    )


def is_outside(a: dict, i: dict) -> bool:
    x, y, w, h = a['bbox']
    return min(x + w, i['width']) <= max(x, 0) or min(y + h, i['height']) <= max(y, 0)


def slowly(content: dict) -> bool:
    """Entry by entry."""
    images, categories, annotations = (content[k] for k in CONTENT)
    return (
        all(type(e) is dict for entries in (images, categories, annotations) for e in entries)
        and are_ids(images, 2**63)
        and all(type(i.get('file_name')) is str and i['file_name'] for i in images)
        and all(is_number(i.get(side)) and 0 < i[side] < 1e9 for i in images for side in ('width', 'height'))
        and are_ids(categories, 2**63)
        and all(type(c.get('name')) is str for c in categories)
        and are_ids(annotations, 2**53)
        and all(map(is_plain_annotation, annotations))
        and not any(is_outside(a, i) for a in annotations for i in images if a['image_id'] == i['id'])
    )


def test_against_a_slow_check():
    """Every odd value in the place of every other one, of the first entry and of the last."""
    assert is_plain(CONTENT) and slowly(CONTENT)
    plain_ones = 0
    for what, entries in CONTENT.items():
        for n in (0, len(entries) - 1):
            for key in (*entries[n], 'ignore', None):
                for value in ODD:
                    content = copy.deepcopy(CONTENT)
                    if key is None:
                        content[what][n] = value
                    else:
                        content[what][n][key] = value
                    expected = slowly(content)
                    assert is_plain(content) == expected, (what, n, key, value)
                    plain_ones += expected
                    if expected:
                        before = json.dumps(content)
                        assert repair(content) == [] and json.dumps(content) == before
    assert plain_ones > 100
    for what, entries in CONTENT.items():
        for key in entries[0]:
            content = copy.deepcopy(CONTENT)
            del content[what][1][key]
            assert not is_plain(content), (what, key)


def annotation(i: int, **more: object) -> dict:
    return dict(dict(id=i, image_id=1, category_id=1, iscrowd=0, area=9, bbox=[i, 2, 3, 3]), **more)


def test_what_is_said_without_a_repair():
    """Counts of what is read as it stands."""
    odd: Counter = Counter()
    content = dict(CONTENT, annotations=[annotation(i) for i in range(1, 21)])
    assert is_plain(content, odd) and not +odd
    several = [
        *content['annotations'],
        *(annotation(30 + n, bbox=[i, 2, 3.0, 3]) for n, i in enumerate((4, 5, 5))),
        annotation(40, bbox=[4, 2, 3, 3], category_id=0),  # of another class, another image, and a crowd
        annotation(41, bbox=[4, 2, 3, 3], image_id=0),
        annotation(42, bbox=[4, 2, 3, 3], iscrowd=1),
        *(annotation(50 + i, image_id=-i) for i in (5, 6)),
        annotation(60, bbox=[1, 5, 3, 3], category_id=99),
    ]
    assert is_plain(dict(content, annotations=several), odd)
    assert odd == Counter(
        {'box-double': 3, 'annotation-without-image': 2, 'annotation-without-category': 1, 'box-corners': 0}
    )
    # Corners: as x, y, width, height more than half would leave the image of 40 x 30.5.
    boxes = [[i, 2, i + 9, 6 + i] for i in range(10, 25)]
    for n, expected in ((15, 8), (9, 0)):
        corners = dict(content, annotations=[annotation(i, bbox=b) for i, b in enumerate(boxes[-n:], 1)])
        assert is_plain(corners, odd)
        assert odd['box-corners'] == expected
    boxes[0][0] = boxes[0][2]
    assert is_plain(dict(content, annotations=[annotation(i, bbox=b) for i, b in enumerate(boxes, 1)]), odd)
    assert odd['box-corners'] == 0
    assert is_plain(dict(content, images=[]), odd)
    assert odd['annotation-without-image'] == 20


def test_what_is_no_file():
    assert is_plain(dict(images=[], categories=[]))
    assert is_plain(dict(CONTENT, annotations=[]))
    for content in (None, [], 'x', {}, dict(images=[]), dict(CONTENT, images={}), dict(CONTENT, annotations=None)):
        assert not is_plain(content)


@pytest.mark.parametrize('enabled', [True, False])
def test_collection_of_garbage_is_as_before(tmp_path, enabled):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(CONTENT))
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        assert read_coco(str(path)) == CONTENT
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_categories_at_the_end(tmp_path):
    """Nothing before them is looked at, unless the object does not end there."""
    path = tmp_path / 'x.json'
    names = '"categories": [{"name": "dog"}]'
    for text, expected in (
        (f'{{?? "categories": 3, {names}}}\n', 'dog'),  # ?? would be no JSON
        (f'{{"categories": [{{"name": "cat"}}], {names}\r\n }}\n\n', 'dog'),  # of two, JSON takes the last
        (f'{{"categories": [{{"name": "cat"}}], "info": {{{names}}}}}', 'cat'),
        (f'{{"categories": [{{"name": "cat"}}], "x\\"categories": [], "y": [{{{names}}}]}}', 'cat'),
    ):
        path.write_text(text)
        assert read_categories(str(path)) == [expected], text
