"""From a checkpoint file of another code base to one for a config here: recognised, converted, compared, written."""

from __future__ import annotations

import os
import os.path as osp
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmccd.checkpoints.architecture import other_than_resnet
from mmccd.checkpoints.convert import (
    Arch,
    check_fits,
    config_candidates,
    convert,
    eca_kernels,
    parse_arch,
    recognise,
    state_dict_of,
)
from mmccd.checkpoints.files import write_with_checksum
from mmccd.checkpoints.read import check_checkpoint_file, read_checkpoint
from mmccd.checkpoints.write import checkpoint_bytes
from mmccd.configs import CONFIGS
from mmccd.env import check_requirements
from mmccd.errors import UserError
from mmccd.version import __version__

from .build import build_model

TASK_NAMES = {'cls': 'classifier', 'det': 'detector'}


class Converted(NamedTuple):
    """What was converted; ``str()`` says it in a line.

    Attributes:
        arch (Arch): The architecture.
        tensors (int): How many there are.
        parameters (int): Numbers in those that are trained.
        path (str): Where they are.
        config (str): The config that they fit, as on a command line.
    """

    arch: Arch
    tensors: int
    parameters: int
    path: str
    config: str

    def __str__(self) -> str:
        return (
            f'{self.arch} ({TASK_NAMES[self.arch.task]}): {self.tensors} tensors, {self.parameters:,} parameters -> '
            f'{self.path}, fits {self.config}'
        )


def check_expected(arch: Arch, wanted: Arch | None, task: str | None) -> Arch:
    """Compare what was recognised with ``--arch`` and ``--task``; returns it, as GE if ``--arch`` names GE."""
    if task is not None and arch.task != task:
        raise ValueError(f'it is a {TASK_NAMES[arch.task]} ({arch}), and --task is {task}')
    if wanted is None:
        return arch
    if wanted.attention == 'ge' and arch.attention is None:
        arch = arch._replace(attention='ge')
    if wanted.detector is None:  # a backbone's name means the detectors with it as well
        wanted = wanted._replace(detector=arch.detector)
    if arch != wanted:
        raise ValueError(f'it is {arch}, and --arch is {wanted}')
    return arch


def find_config(arch: Arch, kernels: list[int] | None = None) -> tuple[Config, str]:
    """The config that the architecture needs, and how to name it; ``kernels`` are ECA's in the four stages."""
    for name, options in config_candidates(arch):
        if kernels is not None and len(set(kernels)) == 1:
            options = {**options, 'model.backbone.attention.kernel_size': kernels[0]}
        path = osp.join(CONFIGS, name)
        if osp.isfile(path):
            cfg = Config.fromfile(path)
            cfg.merge_from_dict(options)
            if kernels is not None and len(set(kernels)) > 1:
                return _with_kernels(cfg, name, options, kernels)
            return cfg, f'configs/{name}' + _shown(options)
    raise UserError(f'none of the configs for {arch} is in {CONFIGS}')


def _with_kernels(cfg: Config, name: str, options: dict, kernels: list[int]) -> tuple[Config, str]:
    """ECA with a kernel for each stage: plugins, which no command line can name."""
    position = 'after_conv3' if cfg.model.backbone.depth >= 50 else 'after_conv2'
    plugins = [
        dict(
            cfg=dict(type='mmccd.ECA', kernel_size=kernel),
            stages=tuple(k == kernel for k in kernels),
            position=position,
        )
        for kernel in dict.fromkeys(kernels)
    ]
    if eca_kernels(build_model(cfg).state_dict()) == kernels:  # as they follow from the channels
        return cfg, f'configs/{name}' + _shown(options)
    cfg.model.backbone.pop('attention', None)
    cfg.model.backbone.plugins = plugins
    others = {k: v for k, v in options.items() if 'attention' not in k}
    return cfg, (
        f'configs/{name}{_shown(others)}, with this in a config of your own:\n'
        f'model = dict(backbone=dict(attention=None, plugins={plugins}))'
    )


def _shown(options: dict) -> str:
    text = ' '.join(f'{k}={v}'.replace(' ', '') for k, v in options.items())
    return f' --cfg-options {text}' if text else ''


def convert_file(in_file: str, out_file: str, arch: str | None = None, task: str | None = None) -> Converted:
    """Write ``in_file``, converted, to ``out_file``.

    Args:
        in_file (str): A checkpoint that :mod:`mmccd.checkpoints.convert` knows.
        out_file (str): Where to write, with a checksum; the folder is created.
        arch (str, optional): The expected architecture. Default: recognised by the tensors.
        task (str, optional): The expected task, ``'cls'`` or ``'det'``. Default: any.

    Returns:
        Converted: What it is.

    Raises:
        UserError: With the reason; nothing was written then.
    """
    check_checkpoint_file(in_file, 'IN')
    if osp.exists(out_file) and osp.samefile(in_file, out_file):
        raise UserError(f'OUT must be another file than IN, got {out_file!r} twice')
    if osp.isdir(out_file):
        raise UserError(f'OUT must name a file, {out_file!r} is a folder')
    try:
        wanted = None if arch is None else parse_arch(arch)
    except ValueError as e:
        raise UserError(f'--{e}') from e
    try:
        checkpoint = read_checkpoint(in_file, mmap=True)
    except ValueError as e:
        raise UserError(str(e)) from e
    try:
        state = state_dict_of(checkpoint)
        found = check_expected(recognise(state), wanted, task)
        state = convert(state, found)
        other = other_than_resnet(checkpoint, in_file)
        if other is not None:
            raise ValueError(f'it names its network: {other}')
        cfg, config = find_config(found, eca_kernels(state))
        if cfg.get('default_scope') == 'mmpretrain':
            check_requirements('mmpretrain')
        model = build_model(cfg)
        check_fits(state, model.state_dict())
    except ValueError as e:
        raise UserError(f'{in_file} is not converted: {e}') from e
    except ImportError as e:
        raise UserError(str(e)) from e

    meta = dict(
        mmccd_version=__version__,
        arch=str(found),
        converted_from=osp.basename(in_file),
        # mmdet's and mmpretrain's inferencers take the classes from here.
        dataset_meta=dict(DATASETS.get(cfg.test_dataloader.dataset.type).METAINFO),
    )
    if isinstance(checkpoint.get('epoch'), int):
        meta['epoch'] = checkpoint['epoch']
    content = checkpoint_bytes(dict(meta=meta, state_dict={k: state[k] for k in model.state_dict()}))
    os.makedirs(osp.dirname(osp.abspath(out_file)), exist_ok=True)
    write_with_checksum(out_file, content)
    parameters = sum(state[k].numel() for k, _ in model.named_parameters())
    return Converted(found, len(state), parameters, out_file, config)
