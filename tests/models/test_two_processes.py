"""Two processes with half of the batch each against one process with all of it: gradients and metrics.

Started as a program by torchrun, this file is one of the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

import mmccd  # before anything of mmdet
from mmccd.cli.arguments import run_tool
from mmccd.models import ignore_padding_in
from mmccd.models.layers import attention_types

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ATTENTIONS = (None, *attention_types())
CASES = [*(f'classifier {a}' for a in ATTENTIONS), 'attached CCD', 'RetinaNet CCD', 'padded CCD']
# Of the padded case's images: one process has padding, the other one has none.
SIZES = [(64, 64), (64, 64), (52, 64), (50, 60)]
SCORES = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.3, 0.7]]
LABELS = [0, 0, 1, 0, 1]


def build(case: str) -> tuple[Config, torch.nn.Module]:
    """A digits model in float64 whose norms are frozen and whose gates do something."""
    kind, attention = case.split()
    is_detector = kind in ('RetinaNet', 'padded')
    cfg = Config.fromfile(ROOT / 'configs' / ('retinanet_r18_fpn_digits.py' if is_detector else 'r18_digits.py'))
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.backbone.ignore_padding = kind == 'padded'
    if attention != 'None' and kind != 'attached':
        cfg.model.backbone.attention = dict(type=f'mmccd.{attention}')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    if kind == 'attached':
        mmccd.attach(model, f'mmccd.{attention}')
    assert ignore_padding_in(model) == (kind == 'padded')
    for p in model.backbone.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, 0.5, 0.2)
    for m in model.train().modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
    return cfg, model.double()


def make_batch(cfg: Config, part: slice) -> dict:
    """A part of four images. Their boxes are the same: a detector divides its loss by the boxes of a process."""
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(i) for i in range(4)]
        return dict(inputs=images[part], data_samples=samples[part])
    from mmdet.structures import DetDataSample

    samples = []
    sizes = SIZES if cfg.model.backbone.ignore_padding else [(64, 64)] * 4
    for i, size in enumerate(sizes):
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 6.0, 24.0, 44.0], [30.0, 10.0, 52.0, 50.0]]), labels=torch.tensor([i, 3])
        )
        samples.append(sample)
    inputs = [image[:, :h, :w] for image, (h, w) in zip(images, sizes)]
    return dict(inputs=inputs[part], data_samples=samples[part])


def gradients(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    """Gradient of every parameter; of the mean over processes where the model is wrapped."""
    inner = getattr(model, 'module', model)
    data = inner.data_preprocessor(batch, training=True)
    loss, _ = inner.parse_losses(model(inputs=data['inputs'].double(), data_samples=data['data_samples'], mode='loss'))
    loss.backward()
    return {n: p.grad for n, p in inner.named_parameters()}


def accuracy() -> dict[str, float]:
    """Top-1 accuracy over five samples, this process's share of them given."""
    from mmengine.dataset import DefaultSampler
    from mmengine.evaluator import Evaluator
    from mmpretrain.evaluation import Accuracy
    from mmpretrain.structures import DataSample

    evaluator = Evaluator(Accuracy(topk=(1,)))
    for i in DefaultSampler(range(5), shuffle=False):
        evaluator.process([DataSample().set_gt_label(LABELS[i]).set_pred_score(torch.tensor(SCORES[i]))])
    return evaluator.evaluate(5)


def one_of_two(out: str) -> None:
    from mmengine.model import MMDistributedDataParallel

    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    found = {}
    for case in CASES:
        cfg, model = build(case)
        # As mmccd.cli.checks has it, find_unused_parameters off.
        model = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
        found[case] = gradients(model, make_batch(cfg, slice(2 * rank, 2 * rank + 2)))
    found['accuracy'] = accuracy()
    torch.save(found, f'{out}/{rank}.pth')


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp('two')
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', __file__, out]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(out / f'{rank}.pth') for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_gradients(two, case):
    cfg, model = build(case)
    expected = gradients(model, make_batch(cfg, slice(4)))
    assert max(g.abs().max() for g in expected.values()) > 1e-3
    for found in two:
        assert list(found[case]) == list(expected)
        for name, gradient in expected.items():
            error = (found[case][name] - gradient).abs().max()
            assert error <= 1e-5 * gradient.abs().max(), name


@pytest.mark.slow
def test_metrics(two):
    """Five samples for two processes: one is seen twice and counts once. Three of five are right."""
    assert accuracy() == {'accuracy/top1': pytest.approx(60.0)}
    assert two[0]['accuracy'] == two[1]['accuracy'] == accuracy()


if __name__ == '__main__':
    run_tool(lambda: one_of_two(sys.argv[1]))  # whose end is safe with gloo
