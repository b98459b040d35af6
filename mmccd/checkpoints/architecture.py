"""What a file says about its network, beside tensors whose names and shapes several networks share.

timm's ``resnetblur50`` and ``resnetaa50`` have the tensors of ``resnet50`` and compute something else: they blur before
they subsample. Their files may name the architecture, be called by it, or have timm's ``config.json`` beside them.
"""

from __future__ import annotations

import json
import os.path as osp
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Of timm: networks whose tensors are a ResNet's, and whose pooling is not.
_BLURRED = re.compile(r'blur|resnetaa|antialias', re.IGNORECASE)
_BLURRED_FILE = re.compile(r'resnet(?:blur|aa)\d', re.IGNORECASE)  # resnetblur50-84f4748f.pth
# Arguments of timm's models that change what a ResNet computes, and none of its tensors.
_CHANGES = ('aa_layer', 'output_stride', 'avg_down')


def other_than_resnet(content: Any, source: str) -> str | None:
    """What a checkpoint says of itself that no tensor shows: why it is no plain ResNet's; None if it says nothing.

    Args:
        content (Any): What was read.
        source (str): Its file or URL; its name counts, and timm's ``config.json`` beside a file is read.

    Example:
        >>> other_than_resnet({'arch': 'resnetblur50', 'state_dict': {}}, 'x.pth')
        "'resnetblur50' has the tensors of a plain ResNet, and blurs before it subsamples"
    """
    file = osp.basename(source)
    if _BLURRED_FILE.search(file):
        return f'{file!r} is of a network that has the tensors of a plain ResNet, and blurs before it subsamples'
    for name, arguments in _named(content, source):
        if _BLURRED.search(name):
            return f'{name!r} has the tensors of a plain ResNet, and blurs before it subsamples'
        changes = [f'{key}={arguments[key]!r}' for key in _CHANGES if arguments.get(key)]
        if changes:
            return f'{name!r} with {", ".join(changes)} has the tensors of a plain ResNet, and computes something else'
    return None


def _named(content: Any, source: str) -> Iterator[tuple[str, Mapping]]:
    """(name of the architecture, arguments of the model) wherever a file may have them."""
    places: list[Any] = []
    if isinstance(content, Mapping):
        entries = ('meta', 'metadata', 'pretrained_cfg', 'default_cfg', 'config', 'args', 'hyper_parameters')
        places = [content, *(content.get(entry) for entry in entries)]
    places += [_beside(source)]
    for place in places:
        if not isinstance(place, Mapping):
            continue
        name = next((place[key] for key in ('architecture', 'arch', 'model_name') if key in place), None)
        if name is None:
            name = place.get('model')
        arguments = place.get('model_args') or place.get('model_kwargs')
        if isinstance(name, str):
            yield name, arguments if isinstance(arguments, Mapping) else {}


def _beside(source: str) -> Any:
    """timm's ``config.json``, as it lies beside the weights in a model's folder."""
    path = osp.join(osp.dirname(source), 'config.json')
    if '://' in source or not osp.isfile(path):
        return None
    try:
        with open(path, encoding='utf-8') as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(found, dict) and isinstance(found.get('pretrained_cfg'), dict):
        return {**found['pretrained_cfg'], **found}
    return found
