"""What differs between classifiers and detectors, and the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mmccd.errors import suggest


def is_detector(model: nn.Module) -> bool:
    """Whether the model has a head for boxes."""
    return hasattr(model, 'bbox_head') or hasattr(model, 'roi_head')


def num_classes(model: nn.Module) -> int:
    """Number of classes of the model's head, without background."""
    return (as_list(box_heads(model))[-1] if is_detector(model) else model.head).num_classes


def class_index(text: str, names: Sequence[str]) -> int:
    """Index of the class that ``text`` names: one of ``names``, or of the synonyms in one (ImageNet's have commas),
    else an index itself.

    Raises:
        ValueError: If there is none, or several.
    """
    found = [i for i, name in enumerate(names) if text == name]
    found = found or [i for i, name in enumerate(names) if text in name.split(', ')]
    if len(found) > 1:
        raise ValueError(f'class {text!r} is the name of several: take one of the indices {", ".join(map(str, found))}')
    if not found and text.isdecimal() and int(text) < len(names):
        return int(text)
    if not found:
        raise ValueError(
            f'class {text!r} does not exist, it must be a name, or an index from 0 to {len(names) - 1}'
            f'{suggest(text, names)}'
        )
    return found[0]


def box_heads(model: nn.Module) -> nn.Module:
    """The head for boxes, or those of all stages of a two-stage detector, as a ModuleList."""
    return model.roi_head.bbox_head if hasattr(model, 'roi_head') else model.bbox_head


def as_list(modules: nn.Module) -> list[nn.Module]:
    """The modules of a ModuleList; any other module alone."""
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
