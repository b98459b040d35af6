"""Reading checkpoint files without running code from them."""
from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch


def _mmengine_globals() -> list:
    """What mmengine's own checkpoints hold beside tensors: the message hub's histories, which are NumPy arrays."""
    from mmengine.logging import HistoryBuffer
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    dtypes = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [HistoryBuffer, multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *dtypes]


def load_local_checkpoint(path: str, map_location: str = 'cpu') -> Any:
    """``torch.load`` with ``weights_only=True``, for files of mmengine's runner as well.

    Raises:
        ValueError: If the file is cut short, is no checkpoint, or holds objects that are not plain data.
    """
    try:
        with torch.serialization.safe_globals(_mmengine_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f'{path} is not a checkpoint of tensors and plain data, and is not loaded: {reason}') from e
    except (RuntimeError, EOFError) as e:
        raise ValueError(f'{path} cannot be read as a checkpoint (cut short?): {e}') from e
