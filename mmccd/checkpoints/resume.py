"""Which checkpoint of a work folder a training continues from."""

from __future__ import annotations

import os
import os.path as osp
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from mmengine.config import Config

from mmccd.env import is_first_of_all
from mmccd.errors import UserError

from .handover import OpenedCheckpoint
from .read import CheckpointFile

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


class _Candidate:
    """The newest checkpoint of one name that can be opened: its content, whose tensors are not read yet."""

    def __init__(self, path: str) -> None:
        self.path = path
        with ExitStack() as stack:  # closes the file if something is wrong with it
            self.file = stack.enter_context(CheckpointFile(path))
            try:
                self.content = self.file.load(mmap=True)
                self.iterations = _iterations(path, self.content)
            except ValueError:
                self.file.verify()  # a wrong checksum is the better message
                raise
            self.close = stack.pop_all().close


def find_newest(folder: str, templates: tuple[str, ...] = TEMPLATES) -> tuple[OpenedCheckpoint | None, dict[str, str]]:
    """Find and read the loadable checkpoint with the most iterations. No code in the files runs.

    The newest file of each name is opened, once, and only its iteration count is read. The one with the most
    iterations is compared with its checksum; older ones are opened only if it is damaged.

    Args:
        folder (str): Where the checkpoints are; may be missing.
        templates (tuple[str, ...]): Names, with ``{}`` for the number that grows.

    Returns:
        tuple[OpenedCheckpoint | None, dict[str, str]]: The checkpoint, None if there is none; and for each newer file
        that was skipped, why.
    """
    skipped: dict[str, str] = {}
    paths = [_newest_first(folder, template) for template in templates] if osp.isdir(folder) else []
    heads = [(_open_next(rest, skipped), rest) for rest in paths]
    try:
        while True:
            found = [(head, rest) for head, rest in heads if head is not None]
            if not found:
                return None, skipped
            best, rest = max(found, key=lambda pair: pair[0].iterations)
            try:
                best.file.verify()
                return OpenedCheckpoint(best.path, best.content), skipped
            except (ValueError, OSError) as e:
                skipped[best.path] = str(e)
                best.close()
            heads = [(_open_next(r, skipped), r) if r is rest else (head, r) for head, r in heads]
    finally:
        for head, _ in heads:
            if head is not None:
                head.close()


def _open_next(paths: Iterator[str], skipped: dict[str, str]) -> _Candidate | None:
    """The next of ``paths`` from which training can continue; notes those from which it cannot."""
    for path in paths:
        try:
            return _Candidate(path)
        except (ValueError, OSError) as e:
            skipped[path] = str(e)
    return None


def newest_checkpoint(folder: str, templates: tuple[str, ...] = TEMPLATES) -> tuple[str | None, dict[str, str]]:
    """As :func:`find_newest`, but for the path alone."""
    found, skipped = find_newest(folder, templates)
    return (None if found is None else found.source), skipped


def how_to_continue(cfg: Config) -> str:
    """What continues an interrupted training: ``--resume`` if there is a checkpoint, for a message. Opens no file."""
    folder = checkpoint_folder(cfg)
    if folder is None:
        return 'with --resume, the same command continues from the newest checkpoint'
    if osp.isdir(folder) and any(next(_newest_first(folder, t), None) for t in checkpoint_templates(cfg)):
        return f'with --resume, the same command continues from the newest checkpoint in {folder}'
    return f'there is no checkpoint in {folder} yet'


def _iterations(path: str, content: Any) -> int:
    """Iterations of training that a checkpoint has; ValueError unless training can continue from it."""
    try:
        iterations = int(content['meta']['iter'])
        complete = 'state_dict' in content and 'message_hub' in content
    except (TypeError, KeyError, ValueError):
        complete = False
    if not complete:
        raise ValueError(f'{path} is no checkpoint to resume from: it lacks what mmengine saves beside the weights')
    return iterations


def set_resume(cfg: Config, asked: str) -> OpenedCheckpoint | None:
    """Put what ``--resume`` means into the config, and print which checkpoint that is.

    Args:
        cfg (Config): The config, with ``work_dir``; ``resume`` and ``load_from`` are set.
        asked (str): A path or URL, or ``'auto'`` for the newest loadable checkpoint of the work folder.

    Returns:
        OpenedCheckpoint | None: The checkpoint; None if training starts from scratch, or if mmengine searches another
        storage for one.

    Raises:
        UserError: If the path is no file, or there are checkpoints and none can be loaded: training from scratch
            would overwrite them.
    """
    cfg.resume = True
    if asked != 'auto':
        checkpoint = OpenedCheckpoint.read(asked, '--resume')
        cfg.load_from = asked
        return checkpoint
    folder = checkpoint_folder(cfg)
    if folder is None:
        cfg.load_from = None
        return None
    found, skipped = find_newest(folder, checkpoint_templates(cfg))
    if found is None and skipped:
        raise UserError(
            f'--resume: no checkpoint in {folder} can be loaded:\n  '
            + '\n  '.join(skipped.values())
            + '\nMove them away to train from scratch.'
        )
    if is_first_of_all():
        for reason in skipped.values():
            print(f'--resume: skipped {reason}')
        print(
            f'--resume: continuing from {found.source}'
            if found
            else f'--resume: no checkpoint in {folder}, training starts from scratch',
            flush=True,
        )
    if found is None:
        cfg.resume = False
    else:
        cfg.load_from = found.source
    return found
