"""Trains what ``zoo/`` holds, writes it with its cards, and compares another training with a card.

A training is the command ``tools/train.py`` in one process on one thread, with the instructions of AVX2, which nearly
every x86-64 CPU of the last ten years has, so that other machines have a chance of the same bits. Another processor
architecture or other versions of PyTorch may differ in the last bits; a card has those that it was made with.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from safetensors.torch import save

from mmccd.checkpoints.files import write_atomically
from mmccd.checkpoints.read import read_checkpoint
from mmccd.checkpoints.zoo import ENDING, MAKER
from mmccd.configs import load_config
from mmccd.env import processor_name
from mmccd.errors import UserError, suggest
from mmccd.models.build import build_model
from mmccd.version import __version__

from .made_data import made_sha256

ROOT = Path(__file__).resolve().parents[2]
# By which the bits of a training are the same each time.
ENVIRONMENT = dict(
    OMP_NUM_THREADS='1',
    MKL_NUM_THREADS='1',
    NUMBA_NUM_THREADS='1',
    PYTHONHASHSEED='0',
    CUDA_VISIBLE_DEVICES='',
    ATEN_CPU_CAPABILITY='avx2',
    ONEDNN_MAX_CPU_ISA='AVX2',
    MKL_CBWR='COMPATIBLE',
    NUMBA_CPU_NAME='haswell',
)
PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv', 'numba', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain')
RECIPE = ('model', 'train_dataloader', 'val_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness')
LICENCE = 'Apache-2.0; trained on Fashion-MNIST (MIT) and, in scenes, textures of scikit-image (CC0)'


@dataclass(frozen=True)
class Model:
    """A network of the zoo: a config's name, and what it is.

    Attributes:
        name (str): Of config and file.
        title (str): In the table of ``zoo/README.md``.
        metric (str): Name of its score.
        key (str): Of the metric.
        scale (float): Of the metric's value for the whole: 100 for percent.
    """

    name: str
    title: str
    metric: str = 'top-1'
    key: str = 'accuracy/top1'
    scale: float = 100.0


# In the order in which they are made: the detector begins with a classifier of this zoo.
MODELS = {
    model.name: model
    for model in (
        Model('r18-w32_fashion', 'ResNet-18, half as wide'),
        Model('se_r18-w32_fashion', 'the same with SE'),
        Model('ccd_r18-w32_fashion', 'the same with CCD'),
        Model('retinanet_ccd_r18-w32_fpn_fashion', 'RetinaNet with the latter', 'box AP', 'coco/bbox_mAP', 1.0),
    )
}


def check_names(names: Sequence[str]) -> list[Model]:
    """The models of these names, all if there are none, in the order in which they are made; UserError if unknown."""
    for name in names:
        if name not in MODELS:
            raise UserError(f'the zoo makes no {name!r}{suggest(name, MODELS) or ""}: it makes {", ".join(MODELS)}')
    return [model for model in MODELS.values() if not names or model.name in names]


def data_sha256(cfg: Config) -> str:
    """SHA-256 of the data that a config reads, from its manifest; UserError if it is not there, or half."""
    folder = Path(cfg.train_dataloader.dataset.data_root).parent
    return made_sha256(folder / 'fashion.json', 'python tools/dataset_converters/make_fashion.py')


def train(name: str, work_dir: Path, options: Sequence[str] = ()) -> Path:
    """Train a config in a process of its own, from scratch; the output goes to ``train.log`` in the work folder.

    Args:
        name (str): Of the config.
        work_dir (Path): Its work folder.
        options (Sequence[str]): Of ``--cfg-options``. Default: none.

    Returns:
        Path: The last checkpoint.

    Raises:
        UserError: If it fails, with the end of its output.
    """
    more = ['--cfg-options', *options] if options else []
    run_tool_of_zoo('train.py', [f'configs/{name}.py', '--work-dir', str(work_dir), *more], work_dir / 'train.log')
    return last_checkpoint(work_dir)


def last_checkpoint(work_dir: Path) -> Path:
    """The checkpoint of the last epoch, as mmengine noted it; UserError if there is none."""
    try:
        return work_dir / Path((work_dir / 'last_checkpoint').read_text().strip()).name
    except OSError as e:
        raise UserError(f'{work_dir} has no checkpoint of a training') from e


def run_tool_of_zoo(tool: str, arguments: Sequence[str], log: Path) -> None:
    """Run ``tools/<tool>`` in the environment of the zoo's trainings; UserError with the end of its log if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / 'tools' / tool), *arguments]
    print(f'$ python tools/{tool} {" ".join(arguments)} > {log}', flush=True)
    with open(log, 'w') as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **ENVIRONMENT}
        ).returncode
    if code:
        tail = '\n'.join(log.read_text().splitlines()[-5:])
        raise UserError(f'tools/{tool} ended with exit code {code}; the end of {log}:\n{tail}')


def half_precision(checkpoint: Path) -> bytes:
    """A checkpoint's weights as a file of safetensors: floating point numbers in half precision, the same each time.

    Raises:
        UserError: If a number is too large for half precision.
    """
    state = read_checkpoint(checkpoint)['state_dict']
    tensors = {}
    for name in sorted(state):
        tensor = state[name]
        tensors[name] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f'{checkpoint}: {name} is NaN or infinite in half precision')
    return save(tensors, metadata=dict(format='pt'))


def score_of(model: Model, file: Path, work_dir: Path) -> float:
    """Score of a file on the validation split, a share of 1; one that was tested already is not tested again."""
    out = work_dir / 'metrics.json'
    if not out.is_file() or out.stat().st_mtime < file.stat().st_mtime:
        arguments = [f'configs/{model.name}.py', str(file), '--work-dir', str(work_dir / 'test')]
        run_tool_of_zoo('test.py', [*arguments, '--out', str(out), '--out-item', 'metrics'], work_dir / 'test.log')
    return round(json.loads(out.read_text())[model.key] / model.scale, 4)


def recipe_hash(cfg: Config) -> str:
    """SHA-256 of the entries of a config that a training depends on.

    The prefix of mmccd's own classes does not count: a runner puts its readers in the place of those of the same name.
    """
    entries = Config({key: cfg[key] for key in RECIPE}).to_dict()
    text = json.dumps(entries, sort_keys=True, default=str).replace('"mmccd.', '"')
    return hashlib.sha256(text.encode()).hexdigest()


def log_of(work_dir: Path, lines: int = 12) -> list[dict[str, float]]:
    """About so many lines of the newest log, evenly over the training, and its validations."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for line in logs[-1].read_text().splitlines()] if logs else []
    train_rows = [row for row in rows if 'loss' in row]
    chosen = train_rows[:: max(1, len(train_rows) // lines)]
    kept = [row for row in rows if row in chosen or 'loss' not in row]
    numbers = ('lr', 'loss', *(m.key for m in MODELS.values()))
    return [
        {k: row[k] for k in ('epoch', 'iter') if k in row} | {k: float(f'{row[k]:.5g}') for k in numbers if k in row}
        for row in kept
    ]


def environment() -> dict[str, str]:
    """What the bits of a training depend on beside its recipe: the processor, and versions."""
    found = dict(python=platform.python_version(), machine=platform.machine(), processor=processor_name())
    distributions = metadata.packages_distributions()  # reads all that is installed
    for package in PACKAGES:
        names = distributions.get('cv2' if package == 'opencv' else package, [])
        found[package] = metadata.version(names[0]) if names else ''
    return found


def make_card(model: Model, content: bytes, score: float, work_dir: Path) -> dict[str, Any]:
    """What is recorded of a file: how it was made, by what, and what it reaches."""
    cfg = load_config(str(ROOT / 'configs' / f'{model.name}.py'))
    # Of the model, not of the file, which has shared tensors of a head under the name of each level.
    parameters = sum(p.numel() for p in build_model(cfg).parameters())
    return dict(
        name=model.name,
        title=model.title,
        config=f'configs/{model.name}.py',
        recipe_sha256=recipe_hash(cfg),
        file=f'{model.name}{ENDING}',
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=parameters,
        classes=list(cfg.test_dataloader.dataset.metainfo.classes),
        metric=model.metric,
        score=score,
        split='val of data/fashion',
        data_sha256=data_sha256(cfg),
        initialised_by=(cfg.model.backbone.get('init_cfg') or {}).get('checkpoint'),
        seed=cfg.randomness.seed,
        epochs=cfg.train_cfg.max_epochs,
        made_by=f'python {MAKER} {model.name}',
        mmccd=__version__,
        environment=environment(),
        variables=ENVIRONMENT,
        licence=LICENCE,
        log=log_of(work_dir),
    )


def make(model: Model, out: Path, work_dir: Path, trained: bool = False) -> dict[str, Any]:
    """Train a network, and write its file and its card; ``trained``: take what the work folder holds already."""
    folder = work_dir / model.name
    cfg = load_config(str(ROOT / 'configs' / f'{model.name}.py'))
    data_sha256(cfg)  # before minutes of training
    checkpoint = last_checkpoint(folder) if trained else train(model.name, folder)
    if recipe_hash(load_config(str(folder / f'{model.name}.py'))) != recipe_hash(cfg):  # the runner's dump
        raise UserError(f'{folder} is of another recipe than configs/{model.name}.py')
    content = half_precision(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    file = folder / f'{model.name}{ENDING}'
    if not file.is_file() or file.read_bytes() != content:
        write_atomically(str(file), content)
    card = make_card(model, content, score_of(model, file, folder), folder)
    write_atomically(str(out / file.name), content)
    write_atomically(str(out / f'{model.name}.json'), (json.dumps(card, indent=1) + '\n').encode())
    return card


def verify(model: Model, card: Mapping[str, Any], work_dir: Path) -> str:
    """Train a network again, and compare it with its card.

    Returns:
        str: One line: the same bits.

    Raises:
        UserError: If they differ, with what else differs from the card: recipe, data, processor, versions.
    """
    cfg = load_config(str(ROOT / 'configs' / f'{model.name}.py'))
    here = dict(environment(), recipe=recipe_hash(cfg), data=data_sha256(cfg))
    there = dict(card['environment'], recipe=card['recipe_sha256'], data=card['data_sha256'])
    found = hashlib.sha256(half_precision(train(model.name, work_dir / 'verify' / model.name))).hexdigest()
    if found == card['sha256']:
        return f'{model.name}: the same bits, SHA-256 {found}'
    others = [f'{key} {here[key]!r} (card: {there.get(key)!r})' for key in here if here[key] != there.get(key)]
    reason = f'other than in the card: {", ".join(others)}' if others else 'recipe, data, processor and versions agree'
    raise UserError(f'{model.name}: other bits, SHA-256 {found}, and not {card["sha256"]}; {reason}')
