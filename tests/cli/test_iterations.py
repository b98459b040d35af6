"""Trainings without an iteration, which end at the start."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader

from mmccd.cli.runner import check_iterations
from mmccd.errors import UserError


class Images(list):
    """Sizes of images."""

    def get_data_info(self, i):
        return dict(zip(('width', 'height'), self[i]))


WIDE, HIGH = (8, 4), (4, 8)


@pytest.mark.parametrize('loop', [EpochBasedTrainLoop, IterBasedTrainLoop])
@pytest.mark.parametrize(
    ('images', 'sampler', 'batches', 'size', 'message'),
    [
        (
            [WIDE] * 4,
            DefaultSampler,
            BatchSampler,
            5,
            'the 4 images of a process are less than a batch, which .* 5, to',
        ),
        ([WIDE] * 5, DefaultSampler, BatchSampler, 5, None),
        ([WIDE] * 4, InfiniteSampler, BatchSampler, 5, None),  # its stream has no end
        ([WIDE] * 4, DefaultSampler, AspectRatioBatchSampler, 4, None),
        ([WIDE, WIDE, HIGH, HIGH], DefaultSampler, AspectRatioBatchSampler, 4, 'less than a batch of one aspect ratio'),
        ([WIDE, WIDE, HIGH, HIGH], DefaultSampler, AspectRatioBatchSampler, 3, None),
        ([WIDE, HIGH], DefaultSampler, AspectRatioBatchSampler, 4, 'the 2 images of a process are less than a batch'),
    ],
)
def test_nothing_to_train_on(loop, images, sampler, batches, size, message):
    data = Images(images)
    loader = DataLoader(data, batch_sampler=batches(sampler(data), size, drop_last=True), collate_fn=list)
    made = object.__new__(loop)
    made.dataloader = loader
    runner = SimpleNamespace(train_loop=made)
    if message is None:
        check_iterations(runner)
        assert sampler is InfiniteSampler or len(list(loader)) == 1
        return
    assert not list(loader)
    with pytest.raises(UserError, match=message):
        check_iterations(runner)
