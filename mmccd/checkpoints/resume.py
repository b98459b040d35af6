"""Which checkpoint of a work folder a training goes on from."""

from __future__ import annotations

import os
import os.path as osp
import re
from collections.abc import Iterator

from mmengine.config import Config

from mmccd.errors import UserError

from .read import check_checkpoint_file, load_local_checkpoint

# What mmengine's checkpoint hook and ours write; a best_*.pth has no optimizer, what users copy has other names.
TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth', 'interrupted.pth')


def checkpoint_folder(cfg: Config) -> str | None:
    """Folder of a config's checkpoints; None if it is not on this machine's disk."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    out_dir = hook.get('out_dir')
    if out_dir is None or out_dir == cfg.work_dir:
        return cfg.work_dir
    return None if '://' in out_dir else osp.join(out_dir, osp.basename(cfg.work_dir.rstrip(osp.sep)))


def checkpoint_templates(cfg: Config) -> tuple[str, ...]:
    """Names that checkpoints of this config may have."""
    own = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('filename_tmpl')
    return tuple(dict.fromkeys((*TEMPLATES, own))) if own else TEMPLATES


def _newest_first(folder: str, template: str) -> Iterator[str]:
    pattern = re.compile(re.escape(template).replace(r'\{\}', r'(\d+)'))
    found = [m for m in map(pattern.fullmatch, os.listdir(folder)) if m]
    for match in sorted(found, key=lambda m: int(m[1]) if m.groups() else 0, reverse=True):
        yield osp.join(folder, match[0])


def newest_checkpoint(folder: str, templates: tuple[str, ...] = TEMPLATES) -> tuple[str | None, dict[str, str]]:
    """Find the loadable checkpoint with the most iterations. No code in the files runs.

    Args:
        folder (str): Where the checkpoints are; may be missing.
        templates (tuple[str, ...]): Names, with ``{}`` for the number that grows.

    Returns:
        tuple[str | None, dict[str, str]]: The path, None if there is none; and for each newer file that was skipped,
        why.
    """
    best, most, skipped = None, -1, {}
    for template in templates if osp.isdir(folder) else ():
        for path in _newest_first(folder, template):
            try:
                iterations = _iterations(path)
            except (ValueError, OSError) as e:
                skipped[path] = str(e)
                continue
            if iterations > most:
                best, most = path, iterations
            break
    return best, skipped


def _iterations(path: str) -> int:
    """Iterations that a checkpoint has had; ValueError unless training can go on from it."""
    content = load_local_checkpoint(path)
    try:
        iterations = int(content['meta']['iter'])
        complete = 'state_dict' in content and 'message_hub' in content
    except (TypeError, KeyError, ValueError):
        complete = False
    if not complete:
        raise ValueError(f'{path} is no checkpoint to go on from: it lacks what mmengine saves beside the weights')
    return iterations


def set_resume(cfg: Config, asked: str) -> str | None:
    """What ``--resume`` means, put into the config; says what it chose.

    Args:
        cfg (Config): The config, with ``work_dir``; ``resume`` and ``load_from`` are set.
        asked (str): A path or URL, or ``'auto'`` for the newest loadable checkpoint of the work folder.

    Returns:
        str | None: The checkpoint; None if training starts anew, or mmengine looks for one on another storage.

    Raises:
        UserError: If the path is no file, or there are checkpoints and none can be loaded: starting anew would
            overwrite them.
    """
    cfg.resume = True
    if asked != 'auto':
        check_checkpoint_file(asked, '--resume')
        cfg.load_from = asked
        return asked
    folder = checkpoint_folder(cfg)
    if folder is None:
        cfg.load_from = None
        return None
    path, skipped = newest_checkpoint(folder, checkpoint_templates(cfg))
    if path is None and skipped:
        raise UserError(
            f'--resume: no checkpoint in {folder} can be loaded:\n  '
            + '\n  '.join(skipped.values())
            + '\nMove them away to train from the beginning.'
        )
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        for reason in skipped.values():
            print(f'--resume: skipped {reason}')
        print(
            f'--resume: going on from {path}'
            if path
            else f'--resume: no checkpoint in {folder}, training starts from the beginning',
            flush=True,
        )
    if path is None:
        cfg.resume = False
    else:
        cfg.load_from = path
    return path
