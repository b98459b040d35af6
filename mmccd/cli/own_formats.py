"""Own data in other formats than COCO: the COCO files that ``tools/make_config.py`` writes of them."""

from __future__ import annotations

import json
import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mmccd.checkpoints.files import write_atomically
from mmccd.data.checks.report import number
from mmccd.data.formats import (
    WHOLE,
    CocoSplit,
    Findings,
    Labelled,
    check_splits,
    pick_split,
    read_labels,
    recognise,
    same_classes,
    to_coco,
)
from mmccd.errors import UserError

CONVERTER = 'python tools/dataset_converters/to_coco.py'


@dataclass
class Converted:
    """COCO files of labels in other formats.

    Attributes:
        data (dict[str, list[str]]): Paths by option, with folder and COCO file in the place of a labelled folder.
        files (dict[str, CocoSplit]): What is to be written, by path.
        findings (list[tuple[str, Findings]]): Of each dataset, by its path.
    """

    data: dict[str, list[str]]
    files: dict[str, CocoSplit] = field(default_factory=dict)
    findings: list[tuple[str, Findings]] = field(default_factory=list)

    def text(self) -> str:
        """For people: what was found, and what is in each file."""
        lines = []
        for source, findings in self.findings:
            if findings.counts:
                lines += [f'{source}:', findings.text()]
        lines += [f'{path}: {describe(split)}' for path, split in self.files.items()]
        return '\n'.join(lines)

    @contextmanager
    def written(self, overwrite: bool = False) -> Iterator[None]:
        """Write the files; should what follows fail, all is as it was before.

        Raises:
            UserError: If one cannot be written, or is there and not to be replaced.
        """
        there = [path for path in self.files if osp.exists(path)]
        if there and not overwrite:
            raise UserError(f'{", ".join(there)}: there already; give another --out, or --overwrite')
        done = []
        try:
            for path in there:
                os.replace(path, f'{path}.before')
            for path, split in self.files.items():
                write_split(path, split)
                done.append(path)
            yield
        except BaseException:  # Ctrl-C, too
            for path in done:
                os.remove(path)
            for path in there:
                os.replace(f'{path}.before', path)
            raise
        for path in there:
            os.remove(f'{path}.before')


def describe(split: CocoSplit) -> str:
    """``3 images, 5 boxes, images in my/images``."""
    return f'{number(split.images, "image", "images")}, {number(split.boxes, "box", "boxes")}, images in {split.folder}'


def write_split(path: str, split: CocoSplit) -> None:
    """Write a COCO file; a UserError if that fails."""
    try:
        write_atomically(path, json.dumps(split.content).encode())
    except OSError as e:
        raise UserError(f'{path} could not be written: {e.strerror}') from e


def shown_folder(folder: str, source: str) -> str:
    """An absolute folder relative to the current one, if the dataset was given so."""
    return folder if osp.isabs(source) else osp.relpath(folder)


def labelled_folders(data: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The format of each option's path, where it is one and a labelled folder of another format than COCO."""
    kinds = {}
    for argument, paths in data.items():
        if len(paths) == 1 and osp.exists(paths[0]):
            kind = recognise(paths[0])
            if kind is not None:
                kinds[argument] = kind
    return kinds


def convert(data: Mapping[str, Sequence[str]], kinds: Mapping[str, str], out: str, force: bool = False) -> Converted:
    """Read labelled folders of other formats than COCO.

    Args:
        data (Mapping[str, Sequence[str]]): Paths by the option that named them, ``--train`` first.
        kinds (Mapping[str, str]): Of :func:`labelled_folders`.
        out (str): The config to write: the COCO files are named after it, ``own_train.json`` for ``own.py``.
        force (bool): Leave out what is wrong instead of raising. Default: False.

    Returns:
        Converted: Without files where there is no such folder.

    Raises:
        UserError: If labels are wrong, or a folder has not the split that it was named for.
    """
    converted = Converted({argument: list(paths) for argument, paths in data.items()})
    if not kinds:
        return converted
    read: dict[str, Labelled] = {}
    for argument, kind in kinds.items():
        path = osp.normpath(data[argument][0])
        if path not in read:
            read[path] = read_labels(path, kind)
    classes = same_classes(read)
    used: dict[str, str] = {}
    for argument in kinds:
        path, split = osp.normpath(data[argument][0]), argument[2:]
        labelled = read[path]
        if set(labelled.splits) == {WHOLE}:
            if path in used:
                raise UserError(
                    f'{used[path]} and {argument}: {path} has no splits, and the same images would be in both. '
                    f'{CONVERTER} {path} --out DIR --val-share 0.2 divides it'
                )
            used[path] = argument
        found = to_coco(pick_split(labelled, split), classes, labelled.findings, f'{labelled.kind}, {path}, {split}')
        found.folder = shown_folder(found.folder, path)
        name = f'{osp.splitext(out)[0]}_{split}.json'
        converted.files[name] = found
        converted.data[argument] = [found.folder, name]
    for path, labelled in read.items():
        if not force:
            labelled.findings.refuse(path, 'Correct them, or add --force to leave them out')
        converted.findings.append((path, labelled.findings))
    check_splits(converted.files, ' and '.join(read))
    return converted
