"""Checkpoints to publish: they load without running code, or are not written."""

from __future__ import annotations

import io
from typing import Any

import torch

from .read import mmengine_allowed


def checkpoint_bytes(content: dict[str, Any]) -> bytes:
    """What ``torch.save`` makes of a checkpoint, for :func:`mmccd.checkpoints.files.write_with_checksum`.

    Raises:
        UnpicklingError: If it would not load with ``weights_only=True``.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    with mmengine_allowed():
        torch.load(buffer, map_location='meta', weights_only=True)
    return buffer.getvalue()
