"""Drawings of a test's predictions: their names, and what is drawn on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image

import mmccd
from mmccd.cli.testing import show_predictions
from mmccd.engine import ShowBoxesHook, ShowClassesHook
from mmccd.registry import HOOKS


class Dataset(list):
    get_data_info = list.__getitem__


@pytest.fixture
def drawn(monkeypatch):
    """What the visualizers of both tasks are given."""
    calls: list[SimpleNamespace] = []

    class Recorder:
        def add_datasample(self, name, image, **options):
            calls.append(SimpleNamespace(name=name, image=image, **options))

        def visualize_cls(self, image, data_sample, **options):
            calls.append(SimpleNamespace(image=image, **options))

    monkeypatch.setattr(Visualizer, 'get_current_instance', Recorder)
    return calls


@pytest.fixture
def run(tmp_path):
    """Let a hook draw images, two a batch."""

    def call(hook, names: list[str], seen: list | None = None) -> None:
        for i, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (4, 6), (200, i, 0)).save(tmp_path / name, 'PNG')
        dataset = Dataset(dict(img_path=str(tmp_path / name)) for name in names)
        runner = SimpleNamespace(work_dir='work', timestamp='now', test_dataloader=SimpleNamespace(dataset=dataset))
        hook.before_test(runner)
        inputs = seen or [torch.tensor([9, 8, 7], dtype=torch.uint8)[:, None, None].expand(3, 2, 3)] * len(names)
        for i in range(0, len(names), 2):
            samples = [BaseDataElement(metainfo=info) for info in dataset[i : i + 2]]
            hook.after_test_iter(runner, i // 2, dict(inputs=inputs[i : i + 2]), samples)

    return call


@pytest.mark.parametrize(
    ('images', 'files'),
    [
        (['val/1.png', 'val/2.jpg'], ['1.png', '2.jpg']),
        (['val/a/1.png', 'val/b/2.png'], ['1.png', '2.png']),
        (['val/a/1.png', 'val/b/1.png', 'val/b/2.png'], ['a/1.png', 'b/1.png', 'b/2.png']),
        (['a/val/1.png', 'b/val/1.png', 'c/1.png'], ['a/val/1.png', 'b/val/1.png', 'c/1.png']),
        (['val/1.gif', 'val/2.jfif', 'val/3.WEBP'], ['1.gif.png', '2.jfif.png', '3.WEBP']),
    ],
)
def test_one_file_for_each_image(run, drawn, images, files):
    """Equal names keep their folders; what OpenCV does not write becomes PNG."""
    run(ShowBoxesHook(draw=True, test_out_dir='shown', score_thr=0.6, wait_time=1), images)
    assert [call.out_file for call in drawn] == [f'work/now/shown/{file}' for file in files]
    assert [call.image[0, 0].tolist() for call in drawn] == [[200, i, 0] for i in range(len(images))]  # RGB
    assert {(call.pred_score_thr, call.wait_time, call.show) for call in drawn} == {(0.6, 1, False)}
    assert [call.step for call in drawn] == [*range(1, len(images) + 1)]


@pytest.mark.parametrize('kind', [ShowBoxesHook, ShowClassesHook])
def test_texts_of_classes(run, drawn, kind):
    """Of names that no font has; the dataset's own list stays as it is."""
    hook, classes = kind(texts=[['猫', 'U+732B']]), ('cat', '猫')
    hook._visualizer.dataset_meta = meta = dict(classes=classes, palette='random')
    run(hook, [])
    assert hook._visualizer.dataset_meta == dict(classes=('cat', 'U+732B'), palette='random')
    assert meta['classes'] is classes


def test_classes(run, drawn):
    """What the network sees, in the image's colours; of augmented images the file."""
    images = ['val/a/1.png', 'val/b/1.png', 'val/c/2.png']
    run(ShowClassesHook(enable=True, out_dir='shown', interval=1, draw_gt=False), images)
    assert [call.out_file for call in drawn] == [f'shown/{name[4:]}_0.png' for name in images]
    assert drawn[0].image.shape == (2, 3, 3)
    assert drawn[0].image[0, 0].tolist() == [7, 8, 9]
    assert drawn[0].draw_gt is False
    drawn.clear()
    run(ShowClassesHook(enable=True, out_dir='shown', interval=2), images, seen=[['two', 'views']] * 3)
    assert [call.name for call in drawn] == ['1.png', '2.png']
    assert [call.image[0, 0].tolist() for call in drawn] == [[200, 0, 0], [200, 2, 0]]


@pytest.mark.parametrize('hook', [ShowBoxesHook, ShowClassesHook])
def test_nothing_by_default(run, drawn, hook):
    run(hook(), ['1.png'])
    assert not drawn


def test_windows(run, drawn):
    """Without files, and without the backends of a log."""
    hook = ShowBoxesHook(draw=True, show=True)
    assert hook._visualizer._vis_backends == {}
    run(hook, ['1.png'])
    assert [(call.name, call.show, call.out_file) for call in drawn] == [('1.png', True, None)]


@pytest.mark.parametrize(
    ('config', 'hook'),
    [('retinanet_ccd_r18_fpn_digits', ShowBoxesHook), ('ccd_r18_digits', ShowClassesHook)],
)
def test_in_the_place_of_the_tasks_own(config, hook):
    cfg = mmccd.get_config(config)
    cfg.work_dir = 'work'
    show_predictions(cfg, False, 'shown', 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Visualizer, 'get_current_instance', SimpleNamespace)
        built = HOOKS.build(cfg.default_hooks.visualization)
    assert type(built) is hook
    assert built.out_dir == ('shown' if hook is ShowBoxesHook else 'work/shown')
    cfg = mmccd.get_config(config)
    cfg.work_dir = 'work'
    cfg.default_hooks.visualization.type = 'MyHook'
    show_predictions(cfg, False, 'shown', 2)
    assert cfg.default_hooks.visualization.type == 'MyHook'
