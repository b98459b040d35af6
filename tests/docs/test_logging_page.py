"""The configs of docs/logging.md train: a few iterations each, with the packages or with recorders in their place."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from unittest import mock

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmccd.data.stock import use_own_readers

SECTIONS = ('TensorBoard', 'Weights & Biases', 'MLflow', 'Early stopping', 'Plateau')


@pytest.fixture
def train(root, made_up, toy_coco):
    """Trains what the configs of some sections add, on six images of 40 x 30; returns the runner."""
    text = (root / 'docs' / 'logging.md').read_text()
    snippets = dict(re.findall(r'^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```', text, re.MULTILINE | re.DOTALL))
    assert tuple(snippets) == SECTIONS

    def load(section: str) -> Config:
        code = re.sub(r'^_base_ = .*$', "_base_ = ['./base.py']", snippets[section], flags=re.MULTILINE)
        (toy_coco / 'own.py').write_text(code)
        return Config.fromfile(str(toy_coco / 'own.py'))

    def run(*sections: str, epochs: int = 1) -> Runner:
        made_up.write_config(toy_coco / 'base.py', made_up.detection_config(toy_coco))
        first, *others = (load(section) for section in sections)
        for cfg in others:
            first.visualizer.vis_backends += cfg.visualizer.vis_backends[1:]
            first.param_scheduler = cfg.param_scheduler
        first.work_dir = str(toy_coco / 'work')
        first.model.backbone.init_cfg = None
        first.model.test_cfg.score_thr = 0.9  # nothing is found: an AP of 0 each time
        first.train_cfg.max_epochs = epochs
        first.default_hooks.logger.interval = 1
        first.default_hooks.checkpoint.interval = 100
        for split in ('train', 'val'):
            loader = first[f'{split}_dataloader']
            loader.update(num_workers=0, persistent_workers=False, batch_size=3)
            loader.dataset.pipeline = [
                dict(t, scale=(64, 64)) if t['type'].endswith('Resize') else t for t in loader.dataset.pipeline
            ]
        use_own_readers(first)  # as tools/train.py does
        runner = Runner.from_cfg(first)
        runner.train()
        return runner

    return run


class Recorder(ModuleType):
    """A module that keeps all calls of its functions."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)
        return mock.Mock(side_effect=lambda *args, **kwargs: self.calls.append((name, args, kwargs)))

    def of(self, name: str) -> list[tuple[tuple, dict]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def test_backends(train, toy_coco, monkeypatch):
    """All three at once; recorders stand for packages that are not installed, and for the two that use a network."""
    wandb, mlflow, writer = Recorder('wandb'), Recorder('mlflow'), mock.Mock()
    wandb.config, wandb.run = mock.Mock(), mock.Mock()
    mlflow.get_experiment_by_name = lambda name: None
    tensorboard = Recorder('torch.utils.tensorboard')
    tensorboard.SummaryWriter = lambda folder: writer
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        monkeypatch.setitem(sys.modules, tensorboard.__name__, tensorboard)
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    monkeypatch.setitem(sys.modules, 'mlflow', mlflow)
    train('TensorBoard', 'Weights & Biases', 'MLflow')
    names = {'loss', 'lr', 'coco/bbox_mAP'}

    if tensorboard.__name__ in sys.modules and sys.modules[tensorboard.__name__] is tensorboard:
        assert names <= {call.args[0] for call in writer.add_scalar.call_args_list}
    else:
        assert list((toy_coco / 'work').glob('*/vis_data/events.out.tfevents.*'))

    [(_, kwargs)] = wandb.of('init')
    assert (kwargs['project'], kwargs['name']) == ('mmccd', 'retinanet_ccd')
    assert names <= {k for args, _ in wandb.of('log') for k in args[0]}

    assert mlflow.of('set_tracking_uri')[0][0] == ('sqlite:///mlflow.db',)
    assert mlflow.of('set_experiment')[0][0] == ('mmccd',)
    assert mlflow.of('set_tag')[0][0] == ('mlflow.runName', 'retinanet_ccd')
    logged = {k for args, _ in mlflow.of('log_metrics') for k in args[0]}
    assert names <= logged | {args[0] for args, _ in mlflow.of('log_metric')}
    assert list((toy_coco / 'work').glob('*/vis_data/scalars.json'))  # what the report reads


@pytest.mark.long
def test_early_stopping_and_plateau(train):
    """The first validation is the best, the next three are not better: the learning rate falls, the training ends."""
    runner = train('Early stopping', 'Plateau', epochs=10)
    assert runner.epoch == 4
    warm_up, plateau = runner.param_schedulers
    iterations = 4 * 2
    lr, initial = (plateau.optimizer.param_groups[0][k] for k in ('lr', 'initial_lr'))
    # Without the fall it would be that of the warm-up after 7 steps of 500.
    assert warm_up.last_step == iterations
    assert lr < 0.2 * initial * (0.001 + 0.999 * iterations / 499)
