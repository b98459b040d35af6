"""Content of a work folder: the config, the curves, the newest checkpoint, stored predictions.

Everything is optional. What is missing or damaged becomes a note and raises no error.
"""

from __future__ import annotations

import json
import math
import os
import os.path as osp
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import nn

from mmccd.apis import init_model
from mmccd.checkpoints.resume import newest_checkpoint
from mmccd.configs import datasets_of, with_names
from mmccd.data.classes import class_names, dataset_class

TASKS = {'mmdet': 'detection', 'mmpretrain': 'classification'}
RECORDED, RECORDED_PREDICTIONS = 'recorded.json', 'predictions.json'
_BESIDE = ('data_time', 'time', 'step', 'epoch', 'iter', 'memory', 'eta')  # of a line of scalars.json: no metric


@dataclass
class Run:
    """One training.

    Attributes:
        folder (str): Its work folder.
        name (str): Unique among the runs of a report.
        cfg (Config | None): The config that it was trained with.
        config_text (str): The file's content.
        task (str | None): ``'detection'`` or ``'classification'``; None if unknown.
        training (list[dict]): Logged lines of training, by ``step``, an iteration.
        validation (list[dict]): Logged lines of validation, by ``step``: an epoch, or an iteration if ``by_epoch`` is
            false.
        checkpoint (str | None): The newest one.
        results (str | None): COCO result file, or what :func:`.record` stored.
        recorded (dict | None): Where, when and how, if this is a folder of :func:`.record`.
        notes (list[str]): What was missing, damaged or left out.
    """

    folder: str
    name: str
    cfg: Config | None = None
    config_text: str = ''
    task: str | None = None
    by_epoch: bool = True
    training: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    checkpoint: str | None = None
    results: str | None = None
    recorded: dict | None = None
    notes: list[str] = field(default_factory=list)
    _models: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def usable(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.cfg or self.training or self.validation)

    @property
    def seconds(self) -> float | None:
        """Time of the training's iterations, data included, validation not; None if the logs do not have it."""
        total, last = 0.0, 0
        for line in self.training:
            if 'time' not in line:
                return None
            total += line['time'] * (line['step'] - last)
            last = line['step']
        return total or None

    def model(self, device: str | torch.device) -> nn.Module:
        """The model with the weights of the checkpoint; with random ones if there is none."""
        if str(device) not in self._models:
            if self.cfg is None:
                raise ValueError('there is no config')
            self._models[str(device)] = init_model(self.cfg, self.checkpoint, device)
        return self._models[str(device)]

    def test_split(self) -> str:
        """``'test'``, or ``'val'`` if the annotation file of the test split does not exist."""
        splits = [s for s in ('test', 'val') if self.cfg is not None and self.cfg.get(f'{s}_dataloader')]
        if not splits:
            raise ValueError('the config has no test_dataloader' if self.cfg is not None else 'there is no config')
        for split in splits:
            if self.task == 'classification' or osp.isfile(annotation_file(self.cfg, split) or ''):
                return split
        path = annotation_file(self.cfg, splits[0]) or '(none in the config)'
        raise ValueError(f'annotation file {path} does not exist (seen from {os.getcwd()})')

    def dataset(self) -> ConfigDict:
        """Config of the dataset of :meth:`test_split`."""
        split = self.test_split()
        return next(datasets_of(self.cfg[f'{split}_dataloader'], split))[1]

    def classes(self) -> list[str] | None:
        """Class names of :meth:`dataset`, if the config or the class of the dataset has them."""
        dataset = self.dataset()
        cls = dataset_class(dataset, self.cfg.get('default_scope'))
        return None if cls is None else class_names(dataset, cls)


def annotation_file(cfg: Config, split: str) -> str | None:
    """``ann_file`` of an evaluator, else of the loader's dataset."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        if evaluator.get('ann_file'):
            return evaluator['ann_file']
    for _, dataset in datasets_of(cfg.get(f'{split}_dataloader') or ConfigDict(), split):
        if dataset.get('ann_file'):
            return osp.join(dataset.get('data_root') or '', dataset['ann_file'])
    return None


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Read work folders, or those of :func:`.record`; duplicates once."""
    unique: dict[str, str] = {}
    for folder in folders:
        unique.setdefault(osp.realpath(folder), folder)
    folders = list(unique.values())
    runs = [read_run(folder, name) for folder, name in zip(folders, _names(folders))]
    used = Counter(run.results for run in runs)
    for run in runs:
        if run.results and used[run.results] > 1:
            run.notes.append(
                f'{run.results} was left out: the tests of several runs wrote it (outfile_prefix), and it '
                "is the last one's"
            )
            run.results = None
    return runs


def _names(folders: Sequence[str]) -> list[str]:
    """The folders' names, with as many parents as they need to differ."""
    parts = [Path(osp.abspath(f)).parts for f in folders]
    names = []
    for own in parts:
        n = 1
        while n < len(own) - 1 and sum(p[-n:] == own[-n:] for p in parts) > 1:
            n += 1
        names.append('/'.join(own[-n:]))
    return names


def read_run(folder: str, name: str) -> Run:
    """Read a work folder, or one of :func:`.record`."""
    run = Run(folder, name)
    path = Path(folder)
    if not path.is_dir():
        run.notes.append('the folder does not exist')
        return run
    stamped = sorted(p for p in path.iterdir() if (p / 'vis_data').is_dir())
    lines = {p: list(_scalars(p / 'vis_data' / 'scalars.json', run)) for p in stamped}
    if (path / 'scalars.json').is_file():
        lines[path] = list(_scalars(path / 'scalars.json', run))
    # Testing writes a config as well, with its checkpoint and its options: the training's goes first.
    trained = [p for p in stamped if any(_is_training(line) for line in lines[p])]
    configs = [p / 'vis_data' / 'config.py' for p in reversed(trained)] + sorted(path.glob('*.py'))
    configs = [c for c in configs if c.is_file()]
    for config in configs:
        try:
            run.cfg = with_names(Config.fromfile(str(config)))
        except Exception as e:  # a config is a program
            run.notes.append(f'{config} cannot be read: {type(e).__name__}: {e}')
            continue
        run.config_text = config.read_text(encoding='utf-8', errors='replace')
        break
    if run.cfg is None:
        run.notes.append('there is no config that can be read')
    else:
        run.task = TASKS.get(run.cfg.get('default_scope'))
        run.by_epoch = (run.cfg.get('train_cfg') or {}).get('by_epoch', True)
    for found in lines.values():
        _merge(run, found)
    if run.task is None:
        keys = {k for line in run.validation for k in line}
        run.task = (
            'detection'
            if any('mAP' in k for k in keys)
            else 'classification'
            if any(k.startswith('accuracy/') for k in keys)
            else None
        )
    if not run.training:
        run.notes.append('there is no log of a training (scalars.json)')
    _find_checkpoint(run)
    _read_recorded(run, path)
    if run.results is None:
        _find_results(run, path)
    return run


def _scalars(path: Path, run: Run) -> Iterator[dict]:
    """Lines of a scalars.json that can be used."""
    bad = 0
    try:
        text = path.read_text(encoding='utf-8', errors='replace')
    except FileNotFoundError:
        return
    except OSError as e:
        run.notes.append(f'{path} cannot be read: {e.strerror}')
        return
    for line in filter(str.strip, text.splitlines()):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not _is_number(found.get('step')):
            bad += 1
            continue
        found = {k: v for k, v in found.items() if v is not None}  # an AP without an example
        numbers = {k: v for k, v in found.items() if _is_number(v)}
        bad += len(numbers) < len(found)
        yield numbers
    if bad:
        run.notes.append(f'{path}: {bad} damaged line{"s" if bad > 1 else ""} left out, wholly or partly')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_training(line: dict) -> bool:
    return 'iter' in line or 'lr' in line


def _merge(run: Run, lines: list[dict]) -> None:
    """Add the lines of one start of the training. Repeated steps replace those of earlier starts."""
    training = [line for line in lines if _is_training(line)]
    validation = [line for line in lines if not _is_training(line) and metrics_of(line)]
    if training:
        first = min(line['step'] for line in training)
        run.training = [line for line in run.training if line['step'] < first]
        again = training[0].get('epoch', 0) if run.by_epoch else first
        run.validation = [line for line in run.validation if line['step'] < again]
    for known, new in ((run.training, training), (run.validation, validation)):
        merged = {line['step']: line for line in (*known, *new)}
        known[:] = [merged[step] for step in sorted(merged)]


def metrics_of(line: dict) -> dict[str, float]:
    """Metrics of a logged line. COCO's -1, for a size that no object has, is left out."""
    return {k: v for k, v in line.items() if k not in _BESIDE and not (v == -1 and 'mAP' in k)}


def _find_checkpoint(run: Run) -> None:
    noted = Path(run.folder, 'last_checkpoint')
    if noted.is_file():
        # By its name: the folder may have been moved, or copied, since.
        path = noted.with_name(osp.basename(noted.read_text(errors='replace').strip()))
        if path.is_file():
            run.checkpoint = str(path)
            return
        run.notes.append(f'last_checkpoint names {path.name}, which does not exist')
    run.checkpoint, skipped = newest_checkpoint(run.folder)
    run.notes += [f'checkpoint skipped: {reason}' for reason in skipped.values()]


def _read_recorded(run: Run, path: Path) -> None:
    if not (path / RECORDED).is_file():
        return
    try:
        recorded = json.loads((path / RECORDED).read_text(encoding='utf-8'))
        if not isinstance(recorded, dict):
            raise ValueError('it is not a JSON object')
    except ValueError as e:
        run.notes.append(f'{path / RECORDED} cannot be read: {e}')
        return
    run.recorded = {str(k): v for k, v in recorded.items()}
    if (path / RECORDED_PREDICTIONS).is_file():
        run.results = str(path / RECORDED_PREDICTIONS)


def _find_results(run: Run, path: Path) -> None:
    """COCO result files in the folder, or where the config of a test put them; the newest, unless it is outdated."""
    found = set(path.glob('*.bbox.json')) | set(path.glob('*/*.bbox.json'))
    for config in (*path.glob('*.py'), *path.glob('*/vis_data/config.py')):
        try:
            cfg = Config.fromfile(str(config))
        except Exception:  # noted already, or not the run's own
            continue
        evaluators = cfg.get('test_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            if evaluator.get('outfile_prefix'):
                found.add(Path(f'{evaluator["outfile_prefix"]}.bbox.json'))
    found = [p for p in found if p.is_file()]
    if not found:
        return
    newest = max(found, key=lambda p: p.stat().st_mtime)
    if run.checkpoint and os.stat(run.checkpoint).st_mtime > newest.stat().st_mtime:
        run.notes.append(f'{newest} is older than {run.checkpoint} and was left out')
        return
    run.results = str(newest)
