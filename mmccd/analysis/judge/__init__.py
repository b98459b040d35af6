"""The judge: is a module the attention that its paper defines, and is it fit for use?

For any ``nn.Module`` from (N, C, H, W) to the same; PyTorch and NumPy are enough. ``tools/checks/check_attention.py``
runs it in a process of its own, :func:`check_attention` in this one.
"""

from .results import Finding, Table, Verdict
from .run import check_attention

__all__ = ['Finding', 'Table', 'Verdict', 'check_attention']
