"""What the checks of a dataset find: the kinds of findings, and the report of them."""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mmccd.data.image_files import DARK

SLACK = 1.0  # pixels that a box may reach out of its image: rounding
KINDS = {
    'annotation-file': ('error', 'annotations that cannot be read'),
    'image-entry': ('error', "entries of 'images' without what they need"),
    'image-id-double': ('error', 'images with the id of another one'),
    'annotation-entry': ('error', "entries of 'annotations' without what they need"),
    'annotation-id-double': ('error', 'annotations with the id of another one'),
    'annotation-without-image': ('error', 'annotations of an image that is not in the file'),
    'annotation-without-category': ('error', 'annotations of a category that is not in the file'),
    'category-entry': ('error', "entries of 'categories' without id or name, or with another's id"),
    'not-finite': ('error', 'boxes or areas that are not finite'),
    'ids': ('error', 'ids that evaluation cannot tell apart'),
    'classes': ('error', 'classes that do not fit'),
    'label': ('error', 'labels without a class'),
    'path-outside': ('error', 'paths that leave the data root'),
    'image-missing': ('error', 'images that are not there'),
    'image-broken': ('error', 'images that cannot be decoded'),
    'image-size': ('error', 'images of another size than the annotations say'),
    'empty-split': ('error', 'splits without images, without annotations, or with less than a batch'),
    'image-shared': ('error', 'files in training and evaluation both'),
    'evaluator': ('error', 'evaluators with other images than their loader'),
    'evaluator-file': ('warning', 'evaluators with another annotation file than their loader'),
    'content-shared': ('warning', 'images in training and evaluation with the same content'),
    'image-file-double': ('warning', 'files that several entries name'),
    'box-empty': ('warning', 'boxes below one pixel or without area, which are left out'),
    'box-outside': ('warning', 'boxes outside of their image, which are left out'),
    'box-partly-outside': ('warning', f'boxes that reach more than {SLACK:g} pixel out of their image'),
    'box-double': ('warning', 'boxes that repeat another one of their image and class'),
    'box-corners': ('warning', 'boxes that seem to be x1, y1, x2, y2 instead of x, y, width, height'),
    'image-left-out': (
        'warning',
        'files that are no images by their suffix, which are left out: convert images of other formats to JPEG or PNG',
    ),
    'image-without-class': ('warning', 'images beside the class folders, which are left out'),
    'image-dark': ('warning', DARK),
    'image-huge': ('warning', 'images with more pixels than --max-pixels'),
    'repaired': ('note', 'what is repaired on reading; other programs may read it wrongly'),
    'file-left-out': ('note', 'files that are no images by their suffix, which are left out'),
    'image-deep': ('note', 'images of 16 bits, of which the upper 8 are used'),
    'image-small': ('note', "images with a side below filter_cfg's min_size, which training leaves out"),
    'image-without-boxes': ('note', 'images without a usable box'),
    'class-without-examples': ('note', 'classes without an example'),
    'category-unused': ('note', 'categories that the config has no class for'),
    'not-checked': ('note', 'what was not checked'),
}
# Errors that write_clean leaves out with their entries.
CLEANED = (
    'image-entry',
    'image-id-double',
    'annotation-entry',
    'annotation-id-double',
    'annotation-without-image',
    'annotation-without-category',
    'not-finite',
    'ids',
    'path-outside',
    'image-missing',
    'image-broken',
    'image-size',
)
SEVERITIES = ('error', 'warning', 'note')
Add = Callable[[str, str], None]


@dataclass
class Report:
    """Findings of :func:`~mmccd.data.checks.check.check_config`.

    Attributes:
        images (dict[str, int]): Number of images of each split.
        findings (dict[str, list]): (split, what) of each kind found, in the order found.
        cleaned (dict[str, Callable]): For each COCO annotation file, what makes its content without what is broken.
    """

    images: dict[str, int] = field(default_factory=dict)
    findings: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    cleaned: dict[str, Callable[[], dict]] = field(default_factory=dict)

    def add(self, name: str, kind: str, what: str) -> None:
        """Note a finding of one of ``KINDS`` in the split ``name``."""
        assert kind in KINDS
        self.findings[kind].append((name, what))

    def count(self, severity: str) -> int:
        """Number of findings of a severity."""
        return sum(len(found) for kind, found in self.findings.items() if KINDS[kind][0] == severity)

    def sorted(self) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
        """(severity, kind, text, findings), the most severe first."""
        order = [k for severity in SEVERITIES for k in KINDS if KINDS[k][0] == severity and self.findings.get(k)]
        return [(*KINDS[k][:1], k, KINDS[k][1], self.findings[k]) for k in order]

    def text(self, examples: int = 3) -> str:
        """For people: each kind with its first examples, and a sum."""
        lines = [f'{name}: {number(n, "image", "images")}' for name, n in self.images.items()]
        for severity, kind, text, found in self.sorted():
            lines.append(f'{severity:8}{len(found):>8,}  {kind}: {text}')
            lines += [f'{"":18}{name}: {what}' for name, what in found[:examples]]
            if len(found) > examples:
                lines.append(f'{"":18}and {len(found) - examples:,} more')
        return '\n'.join([*lines, ', '.join(number(self.count(s), s, f'{s}s') for s in SEVERITIES)])

    def as_dict(self) -> dict:
        """For programs: all findings."""
        return dict(
            images=self.images,
            counts={s: self.count(s) for s in SEVERITIES},
            findings=[
                dict(severity=severity, kind=kind, text=text, items=[dict(split=n, what=w) for n, w in found])
                for severity, kind, text, found in self.sorted()
            ],
        )


@dataclass
class CheckedSplit:
    """A split (training, validation, test) after its annotations were read.

    Attributes:
        name (str): ``train``, ``val``, ``test``; several where they are one and the same.
        paths (dict): Size (width, height) that the annotations give to each image, or None.
        kept (int | None): How many images its loader has, after filtering; None if that is not known.
        drop (Callable): Called with the path of an image that cannot be used.
    """

    name: str
    paths: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    kept: int | None = None
    drop: Callable[[str], None] = lambda path: None


def number(n: int, one: str, many: str) -> str:
    """``1 class``, ``2 classes``."""
    return f'{n:,} {one if n == 1 else many}'


def readable(text: str) -> str:
    """A text that any terminal can print on one line."""
    return text if text.isprintable() else repr(text)


def short(value: Any) -> str:
    """A value from a file, in a few characters."""
    return reprlib.repr(value)
