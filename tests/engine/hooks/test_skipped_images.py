"""What the hook gathers, writes and stops."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import HOOKS

from mmccd import env
from mmccd.data import BrokenImageError, CocoDataset
from mmccd.engine import SkippedImagesHook
from mmccd.engine.hooks import skipped_images


@pytest.fixture
def dataset(toy_coco) -> CocoDataset:
    (toy_coco / 'train' / '2.jpg').unlink()
    (toy_coco / 'train' / '5.jpg').write_bytes(b'')
    return CocoDataset(
        data_root=str(toy_coco),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        max_broken=0.4,
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[],
    )


def runner(dataset, work_dir, rank=0):
    return SimpleNamespace(
        train_dataloader=SimpleNamespace(dataset=dataset),
        work_dir=str(work_dir),
        rank=rank,
        iter=9,
        logger=logging.getLogger('test'),
    )


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: RepeatDataset(d, 3), lambda d: ConcatDataset([d])])
def test_file_and_log(dataset, tmp_path, caplog, wrap):
    hook = HOOKS.build(dict(type='mmccd.SkippedImagesHook', interval=10))
    hook.after_train_epoch(runner(wrap(dataset), tmp_path))
    assert not (tmp_path / 'skipped_images.txt').exists()
    dataset.skipped[1], dataset.skipped[4] = 3, 1
    hook.after_train_iter(runner(wrap(dataset), tmp_path), 0)
    assert (tmp_path / 'skipped_images.txt').read_text().splitlines() == [
        f'{tmp_path}/train/2.jpg\t3\tthere is no such file',
        f'{tmp_path}/train/5.jpg\t1\tthe file is empty',
    ]
    hook.after_train_epoch(runner(wrap(dataset), tmp_path))
    assert caplog.messages == [f'2 broken images were skipped so far, listed in {tmp_path}/skipped_images.txt']


def test_former_name(monkeypatch):
    """In configs of mmccd 0.1: it works, and is said in the log once."""
    records = []
    monkeypatch.setattr(env, '_WARNED', set())
    monkeypatch.setattr(skipped_images, 'print_log', lambda text, logger, level: records.append((level, text)))
    for _ in range(2):
        hook = HOOKS.build(dict(type='mmccd.BrokenPicturesHook', interval=7))
    assert isinstance(hook, SkippedImagesHook)
    assert hook.interval == 7
    [(level, text)] = records
    assert level == logging.WARNING
    assert 'BrokenPicturesHook' in text
    assert 'SkippedImagesHook' in text


def test_other_processes_count_as_well(dataset, tmp_path, monkeypatch):
    """Two here and one there make three of six: more than 0.4. The first process alone writes."""
    dataset.skipped[1], dataset.skipped[4] = 1, 1
    other = {f'{tmp_path}/train/2.jpg': 2, f'{tmp_path}/train/6.jpg': 1}
    monkeypatch.setattr(skipped_images, 'all_gather_object', lambda own: [own, [other]])
    hook = SkippedImagesHook()
    with pytest.raises(BrokenImageError, match=r'3 of 6 training images cannot be used, more than max_broken=0\.4'):
        hook.after_train_epoch(runner(dataset, tmp_path, rank=1))
    assert not (tmp_path / 'skipped_images.txt').exists()
    with pytest.raises(BrokenImageError):
        hook.after_train_epoch(runner(dataset, tmp_path))
    assert [line.split('\t')[1:] for line in (tmp_path / 'skipped_images.txt').read_text().splitlines()] == [
        ['3', 'there is no such file'],
        ['1', 'the file is empty'],
        ['1', 'it can be read now'],
    ]


def test_between_the_intervals_nothing_is_done(dataset, tmp_path):
    dataset.skipped[1] = 1
    SkippedImagesHook(interval=100).after_train_iter(runner(dataset, tmp_path), 0)
    assert not (tmp_path / 'skipped_images.txt').exists()


def test_interval():
    with pytest.raises(ValueError, match='interval must be at least 1, got 0'):
        SkippedImagesHook(interval=0)
