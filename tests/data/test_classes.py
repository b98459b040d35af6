"""Names of classes and categories."""

import json

import pytest

from mmccd.data import classes
from mmccd.data.classes import category_problems, class_names, folder_problems, head_classes, read_categories

CATEGORIES = [dict(id=1, name='cat'), dict(id=7, name='b\u00e4r "x"')]


@pytest.mark.parametrize('window', [3, 1 << 16])
@pytest.mark.parametrize('order', [('images', 'categories'), ('categories', 'images')])
@pytest.mark.parametrize('indent', [None, 2])
@pytest.mark.parametrize('ensure_ascii', [True, False])
def test_read_categories(tmp_path, monkeypatch, window, order, indent, ensure_ascii):
    """Alone, wherever they stand: the rest is not even read, and need not be JSON."""
    monkeypatch.setattr(classes, '_WINDOW', window)
    content = dict(images=[dict(id=1, file_name='categories.jpg')], categories=CATEGORIES)
    path = tmp_path / 'x.json'
    text = json.dumps({k: content[k] for k in order}, indent=indent, ensure_ascii=ensure_ascii)
    for text_ in (text, text[:-1] + ',,,', text.replace('1,', 'NaN,', 1)):
        path.write_text(text_, encoding='utf-8')
        assert read_categories(str(path)) == ['cat', 'b\u00e4r "x"']


def test_read_categories_of_odd_files(tmp_path):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(dict(info={'categories': [1]}, categories=CATEGORIES)))
    assert read_categories(str(path))[0] == 'cat'  # two: the whole file is read
    path.write_text('{"c\\u0061tegories": [{"name": "cat"}]}')
    assert read_categories(str(path)) == ['cat']


@pytest.mark.parametrize(
    ('content', 'rule'),
    [
        ('', 'it is empty'),
        ('{}', 'it has no list of categories'),
        ('[]', 'it has no list'),
        ('x', 'Expecting value'),
        ('{"categories": [{"name": 1}]}', 'it has no list'),
        ('{"categories": [{"name": "c', 'Unterminated string'),
        ('{"categories": [3]}', 'it has no list'),
        ('[' * 100_000, 'nested too deeply'),
        ('{"categories":' + '[' * 100_000, 'nested too deeply'),
    ],
)
def test_read_no_categories(tmp_path, content, rule):
    path = tmp_path / 'x.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=rule):
        read_categories(str(path))


def test_category_problems():
    assert category_problems(['a', 'b'], ['a', 'b'], 'x.json') == []
    assert category_problems(['a', 'b'], ['z', 'a', 'y', 'b'], 'x.json') == []  # some of many
    assert category_problems(['Traffic_Light', 'a', '!'], ['a', 'traffic light'], 'x.json') == [
        "2 of 3 classes are no categories of x.json: 'Traffic_Light' (did you mean 'traffic light'?), '!'. "
        'Its categories are: a, traffic light'
    ]
    [problem] = category_problems(['a', 'b'], ['b', 'a'], 'x.json')
    assert problem.startswith('the classes are in another order')
    assert problem.endswith('Write them as: b, a')
    assert category_problems(['a'], ['a', 'a'], 'x.json') == ['x.json has several categories of the same name: a']


def test_folder_problems():
    assert folder_problems(['a', 'b'], ['a', 'b'], 'x') == folder_problems(None, ['a'], 'x') == []
    assert folder_problems(['tench', 'goldfish'], ['n01440764', 'n01443537'], 'x') == []
    assert folder_problems(['a', 'b'], ['a'], 'x') == ['there are 2 classes, and 1 folders in x: a']
    assert folder_problems(['b', 'a'], ['a', 'b'], 'x')[0].endswith('Write them as: a, b')
    assert folder_problems(['cat', 'dog'], ['cats', 'dog'], 'x') == [
        "1 of 2 folders in x have no class of their name: 'cats' (did you mean 'cat'?)"
    ]


def test_class_names(tmp_path):
    cls = type('D', (), dict(METAINFO=dict(classes=('own',))))
    (tmp_path / 'names.txt').write_text('a\nb\n')
    assert class_names({}, cls) == ['own']
    assert class_names({}, object) is None
    assert class_names(dict(metainfo=dict(classes=('a',))), cls) == ['a']
    assert class_names(dict(classes=str(tmp_path / 'names.txt')), cls) == ['a', 'b']
    with pytest.raises(ValueError, match=r"must be a list of names, got 'cat': a comma is missing, \('cat', \)"):
        class_names(dict(metainfo=dict(classes='cat')), cls)
    with pytest.raises(ValueError, match=r'classes must be a list of names, got \[1\]'):
        class_names(dict(metainfo=dict(classes=[1])), cls)


def test_head_classes():
    model = dict(
        backbone=dict(num_classes=3),
        rpn_head=dict(num_classes=1),
        roi_head=dict(bbox_head=[dict(num_classes=2), dict(num_classes=4)]),
    )
    assert list(head_classes(model)) == [
        ('model.roi_head.bbox_head.0.num_classes', 2),
        ('model.roi_head.bbox_head.1.num_classes', 4),
    ]
