"""Labelled images as every format's reader gives them, and the findings of reading."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from mmccd.data.checks.report import number, readable
from mmccd.errors import UserError

# Errors are refused, or left out where the user says so; notes are said. Both are counted.
KINDS = {
    'label-file': ('error', 'label files that cannot be read'),
    'label': ('error', 'labels that are malformed'),
    'label-class': ('error', 'labels of no known class'),
    'label-without-image': ('error', 'labels of an image that is not there'),
    'image-without-label-file': ('error', 'listed images that have no label file'),
    'image-missing': ('error', 'listed images that are not there'),
    'image-broken': ('error', 'images that cannot be read'),
    'image-size': ('error', 'images of another size than their labels say'),
    'image-double': ('error', 'images or labels that are there twice'),
    'split': ('error', 'splits that are not there or cannot be read'),
    'box-empty': ('note', 'boxes below one pixel: left out'),
    'box-outside': ('note', 'boxes outside of their image: left out'),
    'box-double': ('note', 'boxes that repeat another one of their image: left out'),
    'box-partly-outside': ('note', 'boxes that reach more than 1 pixel out of their image: as they are'),
    'no-box': ('note', 'labels that have no box: left out'),
    'enclosed': ('note', 'shapes that are no upright boxes: the enclosing boxes are taken'),
    'joined': ('note', 'shapes of a group: one box around each group'),
    'keypoints': ('note', 'labels with keypoints: the boxes are taken'),
    'several-classes': ('note', 'boxes of several classes: one box for each class'),
    'difficult': ('note', "objects marked 'difficult': ignored in training and evaluation (iscrowd 1)"),
    'difficult-kept': ('note', "objects marked 'difficult': taken like all others"),
    'not-labelled': ('note', 'images that nobody has labelled: left out'),
    'no-label-file': ('note', 'images without a label file: taken as images without objects'),
    'not-listed': ('note', 'label files that no split lists: left out'),
    'class-alike': ('note', 'classes whose names differ in capitals or spaces alone: different classes'),
    'taken': ('note', 'what was taken for granted'),
}
SPLITS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation', 'dev', 'minival'),
    'test': ('test', 'testing'),
}
WHOLE = 'all'  # the split of a dataset that has none
EXAMPLES = 10  # of a kind that are kept


class Findings:
    """What reading found: errors and notes, counted by kind, with the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, what: str) -> None:
        """Note a finding of one of ``KINDS``."""
        assert kind in KINDS
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(readable(what))

    def errors(self) -> int:
        """Number of errors."""
        return sum(n for kind, n in self.counts.items() if KINDS[kind][0] == 'error')

    def text(self, severity: str | None = None, examples: int = 3) -> str:
        """For people: each kind with its first examples; of one severity, or of both."""
        lines = []
        for kind, (level, what) in KINDS.items():
            n = self.counts[kind]
            if n and severity in (None, level):
                lines.append(f'{level:6}{n:>8,}  {kind}: {what}')
                lines += [f'{"":16}{example}' for example in self.examples[kind][:examples]]
                lines += [f'{"":16}and {n - examples:,} more'] * (n > examples)
        return '\n'.join(lines)

    def refuse(self, name: str, remedy: str) -> None:
        """Raise a UserError with all kinds of errors, if there are any."""
        n = self.errors()
        if n:
            raise UserError(f'{name} has {number(n, "error", "errors")}:\n{self.text("error")}\n{remedy}')


@dataclass(frozen=True)
class Label:
    """A box. ``where``: file and line or entry that it stands in.

    Attributes:
        name (str): Its class.
        box (tuple[float, float, float, float]): x, y, width, height in pixels; x and y count from 0 at the outer edge
            of the first pixel, as in COCO.
        where (str): For messages.
        ignored (bool): Whether training and evaluation ignore it.
    """

    name: str
    box: tuple[float, float, float, float]
    where: str
    ignored: bool = False


@dataclass
class LabelledImage:
    """An image with its labels. ``size``: (width, height) as the pipelines see it, EXIF orientation applied."""

    path: str
    size: tuple[int, int]
    labels: list[Label]


@dataclass
class Labelled:
    """A dataset as a reader gives it.

    Attributes:
        source (str): The path that was given.
        kind (str): Name of its format.
        splits (dict[str, list[LabelledImage]]): By ``'train'``, ``'val'``, ``'test'``, or ``WHOLE``.
        classes (tuple[str, ...] | None): In the dataset's own order; None where it declares none.
        findings (Findings): Of reading.
    """

    source: str
    kind: str
    splits: dict[str, list[LabelledImage]]
    classes: tuple[str, ...] | None = None
    findings: Findings = field(default_factory=Findings)


def split_name(name: str) -> str | None:
    """``'val'`` for ``Valid`` and its like; None for what names no split."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def split_of(path: str | PurePath) -> str:
    """The split that a folder of a relative path names; ``WHOLE`` if none does."""
    return next(filter(None, map(split_name, PurePath(path).parts[:-1])), WHOLE)


def check_class_names(names: Iterable, source: str) -> tuple[str, ...]:
    """Names of classes, in order; a UserError if one is no name or occurs twice."""
    checked: list[str] = []
    for i, name in enumerate(names):
        if isinstance(name, bool):
            raise UserError(f'{source}: names[{i}] is {str(name).lower()}: YAML reads yes, no, on, off so; quote it')
        if not isinstance(name, (str, int, float)) or not str(name).strip():
            raise UserError(f'{source}: names[{i}] must be the name of a class, is {name!r}')
        if str(name).strip() in checked:
            raise UserError(f'{source}: the classes {checked.index(str(name).strip())} and {i} are both named {name!r}')
        checked.append(str(name).strip())
    return tuple(checked)


def same_classes(datasets: Mapping[str, Labelled]) -> tuple[str, ...]:
    """The classes of datasets that belong together: as all declare them, else all names that occur, sorted.

    Args:
        datasets (Mapping[str, Labelled]): By the names that messages give them.

    Raises:
        UserError: If two declare different ones.
    """
    declared = {name: d.classes for name, d in datasets.items() if d.classes is not None}
    if declared:
        (first, classes), *others = declared.items()
        for name, more in others:
            if more != classes:
                raise UserError(
                    f'{first} and {name} declare different classes: {", ".join(classes[:10])} and '
                    f'{", ".join(more[:10])}. Labels are positions in this list: declare the same, in the same order'
                )
        found = {
            label.name for d in datasets.values() for images in d.splits.values() for i in images for label in i.labels
        }
        return (*classes, *sorted(found - set(classes)))
    return tuple(
        sorted(
            {
                label.name
                for d in datasets.values()
                for images in d.splits.values()
                for i in images
                for label in i.labels
            }
        )
    )
