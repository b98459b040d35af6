"""An oracle, which returns what the images show with score 1, through tools/test.py on odd annotation files.

Its AP is 1, or the file is refused; the dataset check, the report and the clean copy agree.
"""

from __future__ import annotations

import codecs
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from mmccd.analysis.report import detection
from mmccd.data.checks import check_config, write_clean

BOXES = {'cat': (0, 3, 20, 10), 'dog': (4, 3, 20, 10)}  # of every image of toy_coco
CONFIG = """
default_scope = 'mmdet'
model = dict(type='Oracle', classes={classes})
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='{dataset}',
        data_root='{root}',
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes={classes}),
        test_mode=True,
        serialize_data=False,  # spares a collection of garbage
        pipeline=[
            dict(type='mmccd.LoadImageFromFile'),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
        ],
    ),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='CocoMetric', ann_file='{root}/val.json', metric='bbox', classwise=True)
"""

pytestmark = pytest.mark.slow  # each is under a second, and they are many


@pytest.fixture(autouse=True)
def oracle():
    """The model, in MMDetection's registry for the time of a test."""

    class Oracle(BaseModel):
        """What the images show; ``sees`` are the classes that it knows of."""

        sees = tuple(BOXES)
        blind = ()  # images of which it sees the cat alone
        eyes = None  # else what finds boxes in an image (C, H, W)

        def __init__(self, classes, data_preprocessor=None):
            super().__init__(data_preprocessor)
            self.classes = classes
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, inputs, data_samples=None, mode='predict'):
            if mode == 'loss':
                return dict(loss=self.weight.sum())
            for image, sample in zip(inputs, data_samples):
                blind = Path(sample.img_path).name in self.blind
                seen = [name for name in BOXES if name in self.sees and not (blind and name == 'dog')]
                known = self.eyes(image) if self.eyes else BOXES
                boxes = torch.tensor([known[n] for n in seen], dtype=torch.float32).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                sample.pred_instances = InstanceData(
                    bboxes=boxes,
                    labels=torch.tensor([self.classes.index(n) for n in seen], dtype=torch.long),
                    scores=torch.ones(len(seen)),
                )
            return data_samples

    MODELS.register_module(module=Oracle)
    yield Oracle
    MODELS.module_dict.pop('Oracle')


@pytest.fixture
def run(toy_coco, call_tool, monkeypatch):
    """Run tools/test.py on toy_coco's val split; (metrics or None, stderr and log)."""
    monkeypatch.chdir(toy_coco)

    def call(dataset: str = 'mmccd.CocoDataset', classes: tuple = ('cat', 'dog'), **options) -> tuple[dict | None, str]:
        config = toy_coco / 'oracle.py'
        config.write_text(CONFIG.format(root=toy_coco, dataset=dataset, classes=classes))
        torch.save(dict(state_dict=dict(weight=torch.zeros(1))), toy_coco / 'oracle.pth')
        out = toy_coco / 'metrics.json'
        out.unlink(missing_ok=True)
        args = [f'{key}={value}' for key, value in options.items()]
        code, err = call_tool(
            'test.py',
            config,
            toy_coco / 'oracle.pth',
            '--out',
            out,
            '--out-item',
            'metrics',
            *(['--cfg-options', *args] if args else []),
        )
        if code:
            assert code == 2 and 'Traceback' not in err, err
            return None, err
        return json.loads(out.read_text(), parse_constant=pytest.fail), err

    return call


@pytest.fixture(scope='module')
def made_up_images(root):
    """tests/data/made_up_images.py."""
    spec = importlib.util.spec_from_file_location('made_up_images', root / 'tests' / 'data' / 'made_up_images.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edit(change: Callable[[dict], object], path: Path) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def each(what: str, key: str, value: Callable, every: int = 1) -> Callable[[dict], None]:
    """Set a key of every n-th entry to ``value`` of what stands there; None, the function, removes it."""

    def change(content: dict) -> None:
        for entry in content[what][::every]:
            if value is None:
                entry.pop(key)
            else:
                entry[key] = value(entry.get(key))

    return change


def several(*changes: Callable[[dict], None]) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for one in changes:
            one(content)

    return change


def ids(what: str, key: str, value: Callable, references: Callable | None = None) -> Callable[[dict], None]:
    return several(each(what, 'id', value), each('annotations', key, references or value))


A, IMAGES, CATEGORIES = 'annotations', ('images', 'image_id'), ('categories', 'category_id')
REPAIRED = {
    'ids from 0': each(A, 'id', lambda i: i - 2),
    'negative ids': each(A, 'id', lambda i: i - 5),
    'large ids': each(A, 'id', lambda i: 2**53 + i),
    'ids beyond 64 bits': each(A, 'id', lambda i: 2**64 + i),
    'ids as texts': each(A, 'id', str),
    'some ids as texts': each(A, 'id', str, 2),
    'ids as words': each(A, 'id', lambda i: f'box {i}'),
    'ids as floats': each(A, 'id', float),
    'no ids': each(A, 'id', None),
    'null ids': each(A, 'id', lambda i: None, 2),
    'image ids from 0': ids(*IMAGES, lambda i: i - 1),
    'image ids as texts': ids(*IMAGES, str),
    'image ids as words': ids(*IMAGES, lambda i: f'image {i}'),
    'image ids as floats': ids(*IMAGES, float),
    'image ids as texts, references as numbers': ids(*IMAGES, str, int),
    'image ids as numbers, references as texts': ids(*IMAGES, int, str),
    'image ids padded, references as numbers': ids(*IMAGES, '{:06}'.format, int),
    'some image ids as texts': ids(*IMAGES, lambda i: str(i) if i == 2 else i),
    'some references as texts': each(A, 'image_id', str, 2),
    'large image ids': ids(*IMAGES, lambda i: 2**62 + i),
    'category ids from 0': ids(*CATEGORIES, lambda i: i // 10 - 1),
    'category ids as texts': ids(*CATEGORIES, str),
    'category ids as words': ids(*CATEGORIES, lambda i: f'class {i}'),
    'category ids as floats': ids(*CATEGORIES, float),
    'category ids as texts, references as numbers': ids(*CATEGORIES, str, int),
    'category ids as numbers, references as texts': ids(*CATEGORIES, int, str),
    'category ids as numbers, references as floats': ids(*CATEGORIES, int, float),
    'some category ids as texts': ids(*CATEGORIES, lambda i: str(i) if i == 10 else i),
    'large category ids': ids(*CATEGORIES, lambda i: 2**62 + i),
    'category ids in falling order': ids(*CATEGORIES, lambda i: 30 - i),
    'category ids in falling order, as texts': ids(*CATEGORIES, lambda i: f'{30 - i} x'),
    'iscrowd null': each(A, 'iscrowd', lambda _: None),
    'iscrowd missing': each(A, 'iscrowd', None),
    'iscrowd missing in some': each(A, 'iscrowd', None, 3),
    'iscrowd false': each(A, 'iscrowd', lambda _: False),
    'iscrowd "0"': each(A, 'iscrowd', lambda _: '0'),
    'iscrowd "false"': each(A, 'iscrowd', lambda _: 'False'),
    'iscrowd 0.0': each(A, 'iscrowd', lambda _: 0.0),
    'iscrowd NaN': each(A, 'iscrowd', lambda _: math.nan),
    'iscrowd 1 of some': each(A, 'iscrowd', lambda _: 1, 3),
    'iscrowd "1" of some': each(A, 'iscrowd', lambda _: '1', 3),
    'iscrowd true of some': each(A, 'iscrowd', lambda _: True, 3),
    'area null': each(A, 'area', lambda _: None),
    'area missing': each(A, 'area', None),
    'area missing in some': each(A, 'area', None, 3),
    'area NaN': each(A, 'area', lambda _: math.nan),
    'area 0': each(A, 'area', lambda _: 0),
    'area below 0': each(A, 'area', lambda a: -a),
    'area as a text': each(A, 'area', str),
    'box as texts': each(A, 'bbox', lambda b: list(map(str, b))),
    'box with some texts': each(A, 'bbox', lambda b: [b[0], str(float(b[1])), *b[2:]], 2),
    'ignore 1': each(A, 'ignore', lambda _: 1, 3),
    'ignore true': each(A, 'ignore', lambda _: True, 3),
    'ignore "1"': each(A, 'ignore', lambda _: '1', 3),
    'ignore 0': each(A, 'ignore', lambda _: 0),
    'ignore "0"': each(A, 'ignore', lambda _: '0'),
    'ignore null': each(A, 'ignore', lambda _: None),
    'ignore NaN': each(A, 'ignore', lambda _: math.nan),
    'sizes as texts': several(each('images', 'width', str), each('images', 'height', str)),
    'sizes as floats': several(each('images', 'width', float), each('images', 'height', float)),
    'annotation of no image': lambda c: c[A].append(dict(c[A][0], id=99, image_id=99)),
    'annotation of no category': lambda c: c[A].append(dict(c[A][0], id=99, category_id=99)),
    'box without width': lambda c: c[A].append(dict(c[A][0], id=99, bbox=[9, 9, 0, 9], area=0)),
    'box without height, with an area': lambda c: c[A].append(dict(c[A][0], id=99, bbox=[9, 9, 9, 0], area=81)),
    'box of a negative size': lambda c: c[A].append(dict(c[A][0], id=99, bbox=[9, 9, -3, 5], area=15)),
    'box outside of its image': lambda c: c[A].append(dict(c[A][0], id=99, bbox=[100, 3, 20, 10])),
    'box above its image': lambda c: c[A].append(dict(c[A][0], id=99, bbox=[3, -20, 20, 10])),
    'some references as texts with spaces': each(A, 'image_id', ' {}\n'.format, 2),
    'some references as texts with a point': each(A, 'image_id', '{}.0'.format, 2),
    'negative image ids, references as texts': ids(*IMAGES, lambda i: -i, lambda i: f'-{i}'),
    'negative category ids': ids(*CATEGORIES, lambda i: -i),
    'images in another order': lambda c: c['images'].reverse(),
    'annotations in another order': lambda c: c[A].reverse(),
    'category that nobody uses': lambda c: c['categories'].append(dict(id=7, name='bird', supercategory=None)),
    'boxes as floats': each(A, 'bbox', lambda b: [*map(float, b)]),
    'segmentation empty or null': several(
        each(A, 'segmentation', lambda _: []), each(A, 'segmentation', lambda _: None, 2)
    ),
    'segmentation of polygons': each(A, 'segmentation', lambda _: [[0, 0, 9, 0, 9, 9]]),
    'file names from here': each('images', 'file_name', './{}'.format),
    'values that are null': several(each('images', 'license', lambda _: None), lambda c: c.update(info=None)),
    'keys that nobody knows': each(A, 'caption', lambda _: ['?']),
}
REFUSED = {
    'two annotations of one id': (each(A, 'id', lambda _: 3), 'an earlier one has the same id'),
    'two images of one id': (each('images', 'id', lambda _: 1), '2.jpg has the id of 1.jpg'),
    'two categories of one id': (each('categories', 'id', lambda _: 10), "the id 10 of 'cat'"),
    'image ids 1 and "1"': (lambda c: c['images'][1].update(id='1'), 'texts beside numbers'),
    'words beside numbers': (ids(*IMAGES, lambda i: 'x' if i == 2 else i), "texts beside numbers.*'x'"),
    'words beside numbers in categories': (ids(*CATEGORIES, lambda i: 'x' if i == 10 else i), 'texts beside numbers'),
    'image ids beyond 64 bits': (ids(*IMAGES, lambda i: 2**64 + i), 'beyond 64 bits'),
    'category ids beyond 64 bits': (ids(*CATEGORIES, lambda i: 2**64 + i), 'beyond 64 bits'),
    'halves as ids': (ids(*IMAGES, lambda i: i + 0.5), r'images\[0\] has no id'),
    'halves as annotation ids': (each(A, 'id', lambda i: i + 0.5), r'annotations\[0\].*has no id'),
    'null image ids': (ids(*IMAGES, lambda i: None if i == 2 else i), r'images\[1\] has no id'),
    'null references': (each(A, 'image_id', lambda i: None, 2), 'image_id must be an id, is None'),
    'iscrowd 2': (each(A, 'iscrowd', lambda _: 2, 2), 'iscrowd must be 0 or 1, is 2'),
    'iscrowd "x"': (each(A, 'iscrowd', lambda _: 'x', 2), "iscrowd must be 0 or 1, is 'x'"),
    'ignore 7': (each(A, 'ignore', lambda _: 7, 2), 'ignore must be 0 or 1, is 7'),
    'ignore ""': (each(A, 'ignore', lambda _: '', 2), "ignore must be 0 or 1, is ''"),
    'area "x"': (each(A, 'area', lambda _: 'x', 2), "area must be a number, is 'x'"),
    'area infinite': (each(A, 'area', lambda _: math.inf, 2), 'area inf'),
    'box NaN': (each(A, 'bbox', lambda b: [math.nan, *b[1:]], 2), r'bbox \[nan, 3'),
    'box null': (each(A, 'bbox', lambda b: None, 2), 'bbox must be four numbers, is None'),
    'box of three': (each(A, 'bbox', lambda b: b[:3], 2), 'bbox must be four numbers'),
    'width missing': (each('images', 'width', None), 'must have a width and height'),
    'height "x"': (each('images', 'height', lambda _: 'x'), 'must have a width and height'),
    'no categories': (lambda c: c.pop('categories'), 'categories'),
    'entry null': (lambda c: c[A].append(None), r'annotations\[6\].*has no id'),
    'no box': (lambda c: c[A].clear(), 'has no box of the classes cat, dog'),
    'no annotations': (lambda c: c.pop(A), 'has no box of the classes cat, dog'),
    'crowds alone': (each(A, 'iscrowd', lambda _: 1), 'has no box of the classes cat, dog'),
    'ignored boxes alone': (each(A, 'ignore', lambda _: 1), 'has no box of the classes cat, dog'),
}


def test_number_of_kinds():
    """Beside the images of test_images."""
    assert len(REPAIRED) + len(REFUSED) >= 100


def report_of(root: Path) -> tuple[dict, dict]:
    """Metrics and APs by class of the report, of what the oracle finds."""
    truth = detection.Truth(str(root / 'val.json'), str(root / 'val'), ('cat', 'dog'))
    by_name = {name: i for i, name in truth.categories.items()}
    found = [
        dict(image_id=i, category_id=by_name[name], bbox=list(map(float, box)), score=1.0)
        for i in truth.coco.imgs
        for name, box in BOXES.items()
    ]
    got = detection.evaluate(truth, found)
    assert all(image.f1 == 1 for image in got.images.values())
    return got.metrics, got.classes


def check(root: Path):
    return check_config(Config.fromfile(str(root / 'oracle.py')), ('test',))


# Every sixth kind in make test, the others in make test-long.
EACH_TIME = [
    pytest.param(change, id=name, marks=() if i % 6 == 0 else pytest.mark.long)
    for i, (name, change) in enumerate(REPAIRED.items())
]


@pytest.mark.parametrize('change', EACH_TIME)
def test_right(toy_coco, run, change):
    """AP 1 in test.py and in the report, and nothing to repair in a clean copy."""
    edit(change, toy_coco / 'val.json')
    metrics, _ = run()
    assert (metrics['coco/bbox_mAP'], metrics['coco/cat_precision'], metrics['coco/dog_precision']) == (1, 1, 1)
    assert report_of(toy_coco)[0]['AP'] == pytest.approx(1)
    found = check(toy_coco)
    assert not found.count('error') or set(found.findings) <= {
        'annotation-without-image',
        'annotation-without-category',
    }
    write_clean(found, str(toy_coco / 'clean.json'))
    (toy_coco / 'clean.json').replace(toy_coco / 'val.json')
    assert set(check(toy_coco).findings) <= {'image-without-boxes', 'category-unused'}


@pytest.mark.parametrize(('change', 'message'), [pytest.param(*case, id=name) for name, case in REFUSED.items()])
def test_refused(toy_coco, run, change, message):
    """One message, before anything is evaluated; the dataset check calls it an error, too."""
    edit(change, toy_coco / 'val.json')
    metrics, err = run()
    assert metrics is None
    assert err.startswith('error: ')
    assert re.search(message, err), err
    assert check(toy_coco).count('error')


def test_refused_files_can_be_cleaned(toy_coco, run):
    """Ids that evaluation cannot tell apart: a clean copy numbers them, and keeps the old ones beside."""
    for what, key in (IMAGES, CATEGORIES):
        edit(ids(what, key, lambda i: f'x{i}' if i in (2, 10) else 2**70 + i), toy_coco / 'val.json')
    edit(each(A, 'id', lambda i: i - 2), toy_coco / 'val.json')
    assert 'texts beside numbers' in run()[1]
    write_clean(check(toy_coco), str(toy_coco / 'clean.json'))
    (toy_coco / 'clean.json').replace(toy_coco / 'val.json')
    content = json.loads((toy_coco / 'val.json').read_text())
    assert [(i['id'], i['original_id']) for i in content['images']] == [(1, 2**70 + 1), (2, 'x2'), (3, 2**70 + 3)]
    assert [(c['id'], c['original_id']) for c in content['categories']] == [(1, 'x10'), (2, 2**70 + 20)]
    assert [(a['id'], a['original_id'], a['image_id'], a['category_id']) for a in content[A][:3]] == [
        (1, 0, 1, 1),
        (2, 1, 1, 2),
        (3, 2, 2, 1),
    ]
    assert run()[0]['coco/bbox_mAP'] == 1
    assert not check(toy_coco).findings


@pytest.mark.parametrize('dataset', ['mmccd.CocoDataset', 'CocoDataset', 'mmdet.CocoDataset'])
def test_said_once(toy_coco, run, dataset, capsys):
    """With MMDetection's own dataset and metric too; loader and metric read the file, and one of them says it."""
    edit(ids(*IMAGES, str, int), toy_coco / 'val.json')
    assert run(dataset)[0]['coco/bbox_mAP'] == 1
    out = capsys.readouterr().out
    assert out.count('repaired on reading: 3 image ids written as texts or with a decimal point') == 1


@pytest.mark.parametrize(
    ('change', 'count', 'text'),
    [
        (each(A, 'image_id', lambda i: 77, 2), 3, 'of images that are not in the file: left out'),
        (each(A, 'category_id', lambda i: 77, 2), 3, 'of categories that are not in the file: left out'),
        (lambda c: c[A].extend([dict(a, id=a['id'] + 50) for a in c[A]]), 6, 'that repeat another one of their image'),
    ],
)
@pytest.mark.parametrize('repaired', [False, True])
def test_what_is_read_as_it_stands_is_said(toy_coco, run, change, count, text, repaired, capsys):
    """Half of the boxes without an image, or all of them twice: no error, but nobody means that. Once for a file."""
    edit(several(change, each(A, 'iscrowd', lambda _: None) if repaired else lambda c: None), toy_coco / 'val.json')
    assert run()[0]
    assert capsys.readouterr().out.count(f'annotations {toy_coco}/val.json: {count} annotations {text}') == 1


@pytest.mark.parametrize('repaired', [False, True])
def test_corners_in_the_place_of_sizes(toy_coco, run, repaired, capsys):
    """A guess: it is said."""
    several_boxes = [
        dict(id=i, image_id=1, category_id=10, iscrowd=0, area=9, bbox=[20 + i % 3, 9, 38, 29]) for i in range(1, 13)
    ]
    edit(lambda c: c.update(annotations=several_boxes), toy_coco / 'val.json')
    if repaired:
        edit(each(A, 'iscrowd', None), toy_coco / 'val.json')
    assert run()[0]
    said = '12 annotations that leave their image; as x1, y1, x2, y2 all would lie inside'
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_byte_order_mark(toy_coco, run, encoding, capsys):
    path = toy_coco / 'val.json'
    path.write_text(path.read_text(), encoding=encoding)
    assert path.read_bytes().startswith((codecs.BOM_UTF8, codecs.BOM_UTF16))
    assert run()[0]['coco/bbox_mAP'] == 1
    assert capsys.readouterr().out.count('the byte-order mark at its beginning is skipped') == 1
    assert not check(toy_coco).findings
    assert report_of(toy_coco)[0]['AP'] == pytest.approx(1)


@pytest.mark.parametrize('seen', ['cat', 'dog'])
@pytest.mark.parametrize('change', [lambda c: None, REPAIRED['category ids in falling order']])
def test_classes_under_their_names(toy_coco, run, oracle, change, seen):
    """Where the file lists categories in another order than that of their ids."""
    edit(change, toy_coco / 'val.json')
    oracle.sees = (seen,)
    metrics, _ = run()
    assert {n: metrics[f'coco/{n}_precision'] for n in BOXES} == {n: float(n == seen) for n in BOXES}
    assert metrics['coco/bbox_mAP'] == 0.5
    truth = detection.Truth(str(toy_coco / 'val.json'), '')
    category = next(i for i, name in truth.categories.items() if name == seen)
    found = [dict(image_id=i, category_id=category, bbox=list(BOXES[seen]), score=1.0) for i in truth.coco.imgs]
    assert detection.evaluate(truth, found).classes == {n: pytest.approx(float(n == seen)) for n in BOXES}


def test_nothing_found(toy_coco, run, oracle, capsys):
    """It is AP 0, and said."""
    oracle.sees = ()
    metrics, _ = run()
    assert (metrics['coco/bbox_mAP'], metrics['coco/bbox_mAP_s'], metrics['coco/bbox_mAP_l']) == (0, 0, -1)
    assert metrics['coco/cat_precision'] == 0
    assert 'there is no detection in 3 images (above score_thr): the metrics are 0' in capsys.readouterr().out


@pytest.mark.parametrize('mark', [1, True, '1', 1.0])
def test_ignored_boxes_need_not_be_found(toy_coco, run, oracle, mark):
    """Training leaves them out; without the mark the dog that is not found counts."""
    oracle.blind = ('2.jpg',)
    metrics, _ = run()
    assert metrics['coco/dog_precision'] == pytest.approx(2 / 3, abs=0.01)
    edit(lambda c: c[A][3].update(ignore=mark), toy_coco / 'val.json')
    metrics, _ = run()
    assert (metrics['coco/bbox_mAP'], metrics['coco/dog_precision']) == (1, 1)
    truth = detection.Truth(str(toy_coco / 'val.json'), '')
    assert truth.objects() == {'cat': 3, 'dog': 2}


def test_class_without_examples(toy_coco, run):
    """Its AP is null in the file of the metrics: NaN is not JSON."""
    edit(lambda c: c[A].__delitem__(slice(1, None, 2)), toy_coco / 'val.json')  # the dogs
    metrics, _ = run()
    assert (metrics['coco/cat_precision'], metrics['coco/dog_precision']) == (1, None)


class _Seeing:
    """Boxes of what is brighter and darker than the background in the images of tests/data/made_up_images.py."""

    def __call__(self, pixels: torch.Tensor) -> dict[str, tuple]:
        red = pixels.cpu().numpy()[-1].astype(int)  # of BGR
        found = {}
        for name, mask in (('cat', red > 176), ('dog', red < 80)):
            y, x = mask.nonzero()
            found[name] = (x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min())
        return found


def test_images(toy_coco, run, oracle, made_up_images):
    """Files of every kind and orientation in one split: what is seen is where the annotations have it."""
    contents = {kind: content for kind, (content, _, _) in made_up_images.KINDS.items() if '1 bit' not in kind}
    for kind in made_up_images.CONTAINERS:
        for n in made_up_images.STORED:
            contents[f'{kind} {n}'] = made_up_images.turned(kind, n)
    assert len(contents) >= 80
    images = [dict(id=i, file_name=f'{i} {name}', width=48, height=32) for i, name in enumerate(contents, 1)]
    boxes = dict(cat=(0, 0, 16, 16), dog=(32, 0, 16, 32))
    for image, content in zip(images, contents.values()):
        (toy_coco / 'val' / image['file_name']).write_bytes(content)
    annotations = [
        dict(id=2 * image['id'] + k, image_id=image['id'], category_id=10 * (k + 1), bbox=box, area=box[2] * box[3])
        for image in images
        for k, box in enumerate(boxes.values())
    ]
    edit(
        lambda c: c.update(images=images, annotations=[dict(a, iscrowd=0) for a in annotations]), toy_coco / 'val.json'
    )
    oracle.eyes = _Seeing()
    metrics, _ = run()
    assert (metrics['coco/bbox_mAP'], metrics['coco/cat_precision'], metrics['coco/dog_precision']) == (1, 1, 1)
    metrics, _ = run(**{'test_dataloader.dataset.pipeline.0.type': 'LoadImageFromFile'})  # MMCV's: it is replaced
    assert metrics['coco/bbox_mAP'] == 1
    report = check(toy_coco)
    assert set(report.findings) == {'image-deep'}
    assert len(report.findings['image-deep']) == sum('16 bits' in name or '12 bits' in name for name in contents)


@pytest.mark.parametrize(
    'kind', ['tiff of floats', *(pytest.param(k, marks=pytest.mark.long) for k in ('tiff of 32 bits', 'heic', 'eps'))]
)
def test_images_that_are_refused(toy_coco, run, made_up_images, kind):
    """An error that names the file, in test.py and in the dataset check."""
    content, message = made_up_images.REFUSED[kind]
    (toy_coco / 'val' / '2.jpg').write_bytes(content)
    metrics, err = run()
    assert metrics is None
    assert re.match(rf'error: image {toy_coco}/val/2\.jpg cannot be used: .*{message}', err), err
    assert [re.sub(': .*', '', what) for _, what in check(toy_coco).findings['image-broken']] == [
        f'{toy_coco}/val/2.jpg'
    ]


TRAINING = """
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(test_dataloader['dataset'], ann_file='train.json', data_prefix=dict(img='train/'), test_mode=False),
)
val_dataloader, val_evaluator, val_cfg = test_dataloader, test_evaluator, dict(type='ValLoop')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
default_hooks = dict(checkpoint=dict(type='mmccd.CheckpointHook', interval=1, save_best='coco/bbox_mAP'))
work_dir = '{root}/work'
experiment_name = '{root.name}'  # by default two trainings of one second are one, with one best score
"""


@pytest.mark.parametrize('dataset', ['mmccd.CocoDataset', 'CocoDataset'])
@pytest.mark.parametrize(
    ('split', 'change', 'message'),
    [
        ('val', several(REPAIRED['ids from 0'], REPAIRED['iscrowd null']), None),
        ('train', several(REPAIRED['area missing'], REPAIRED['iscrowd "0"'], REPAIRED['box as texts']), None),
        ('val', *REFUSED['no box']),
        ('val', *REFUSED['image ids 1 and "1"']),
        ('train', *REFUSED['two images of one id']),
        ('train', *REFUSED['iscrowd 2']),
        ('train', lambda c: c['images'].clear(), 'train.json has no images'),
    ],
)
def test_training(toy_coco, call_tool, monkeypatch, dataset, split, change, message):
    """AP 1 after the epoch, or refused before the first iteration."""
    monkeypatch.chdir(toy_coco)
    edit(change, toy_coco / f'{split}.json')
    text = CONFIG.format(root=toy_coco, dataset=dataset, classes=('cat', 'dog')) + TRAINING.format(root=toy_coco)
    (toy_coco / 'training.py').write_text(text)
    code, err = call_tool('train.py', toy_coco / 'training.py')
    logs = list((toy_coco / 'work').glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    if message is None:
        assert code == 0, err
        assert [line['coco/bbox_mAP'] for line in lines if 'coco/bbox_mAP' in line] == [1]
        assert list((toy_coco / 'work').glob('best_*.pth'))
    else:
        assert code == 2
        assert err.startswith('error: ')
        assert re.search(message, err), err
        assert not lines


@pytest.mark.long
@pytest.mark.parametrize(
    ('change', 'is_refused'),
    [pytest.param(change, False, id=name) for name, change in REPAIRED.items()]
    + [pytest.param(change, True, id=name) for name, (change, _) in REFUSED.items()],
)
def test_training_and_make_config_agree(toy_coco, call_tool, monkeypatch, change, is_refused):
    """With test.py, about every kind; training, before its first iteration.

    make_config.py refuses annotations without an image or a category, too, which are left out, and names the ways on.
    """
    monkeypatch.chdir(toy_coco)
    for split in ('train', 'val'):
        edit(change, toy_coco / f'{split}.json')
    text = CONFIG.format(root=toy_coco, dataset='mmccd.CocoDataset', classes=('cat', 'dog'))
    (toy_coco / 'training.py').write_text(text + TRAINING.format(root=toy_coco))
    code, err = call_tool('train.py', toy_coco / 'training.py')
    assert code == (2 if is_refused else 0), err
    assert bool(list((toy_coco / 'work').glob('epoch_*.pth'))) != is_refused
    data = ['--train', 'train', 'train.json', '--val', 'val', 'val.json']
    code, err = call_tool('make_config.py', *data, '--out', 'made.py')
    assert 'Traceback' not in err
    left_out = change in (REPAIRED['annotation of no image'], REPAIRED['annotation of no category'])
    assert (code != 0) == (is_refused or left_out), err
    assert not left_out or '--force' in err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'train_dataloader.batch_size': 7, 'train_dataloader.drop_last': True},
            'the 6 images of a process are less than a batch, .*: set train_dataloader.batch_size, 7, to fewer',
        ),
        (
            {'train_dataloader.dataset.filter_cfg.min_size': 31},
            "none of the 6 images .*filter_cfg={'min_size': 31} leaves out 6 with a side below 31",
        ),
    ],
)
def test_nothing_to_train_on(toy_coco, call_tool, monkeypatch, options, message):
    """One line before the first iteration, with numbers; an error of the dataset check."""
    monkeypatch.chdir(toy_coco)
    classes = ('cat', 'dog')
    text = CONFIG.format(root=toy_coco, dataset='CocoDataset', classes=classes) + TRAINING.format(root=toy_coco)
    (toy_coco / 'training.py').write_text(text)
    code, err = call_tool(
        'train.py', toy_coco / 'training.py', '--cfg-options', *(f'{key}={value}' for key, value in options.items())
    )
    assert code == 2
    assert re.match(f'error: .*{message}', err), err
    assert err.count('\n') == 1
    cfg = Config.fromfile(str(toy_coco / 'training.py'))
    cfg.merge_from_dict(options)
    assert 'empty-split' in check_config(cfg, ('train',)).findings
