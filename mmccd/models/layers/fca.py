"""FCA: Frequency Channel Attention (FcaNet, ICCV 2021, arXiv:2012.11879), as an mmcv plugin layer.

SE whose global average is one of several frequencies: channels are split into 16 parts, and each part is summed up with
a basis function of the two-dimensional discrete cosine transform (DCT). The 16 frequencies are those of a 7x7 grid that
did best on their own in the paper. As in the authors' code, the basis is orthonormal, maps of another size are average
pooled to the grid before, and the two fully connected layers have no bias.

Different here: the authors' ResNets pool to 56, 28, 14 and 7 in their four stages (``grid``, a multiple of 7, by which
frequencies are multiplied); the default is 7 everywhere. The DCT is no part of checkpoints. Added: ``identity_init``,
and the gate computed in float32 under autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmccd.registry import MODELS

from .base import AttentionLayer, check_int, check_ratio, statistics_dtype, without_autocast

SIDE = 7  # of the grid that frequencies are numbered in
# Frequencies along height and along width, the best first: the paper's experiments, in the authors' order.
ALONG_H = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2, 4, 6, 3, 5, 5, 2, 6, 5, 5, 3, 3, 4, 2, 2, 6, 1)
ALONG_W = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2, 6, 3, 3, 3, 5, 1, 1, 2, 4, 2, 1, 1, 3, 0, 5, 3)


def cosines(frequencies: Tensor, size: int) -> Tensor:
    """Rows of the orthonormal DCT-II of ``size`` points: (F,) to (F, size)."""
    angle = math.pi * frequencies[:, None] * (torch.arange(size, dtype=torch.float64) + 0.5) / size
    norm = torch.where(frequencies == 0, math.sqrt(1 / size), math.sqrt(2 / size)).double()
    return angle.cos() * norm[:, None]


def pooling(size: int, grid: int, like: Tensor) -> Tensor:
    """Matrix (grid, size) of adaptive average pooling along one dimension, which any exporter takes."""
    position = torch.arange(size, device=like.device)
    cell = torch.arange(grid, device=like.device)[:, None]
    # From floor(cell * size / grid) to ceil((cell + 1) * size / grid).
    inside = ((position + 1) * grid > cell * size) & (position * grid < (cell + 1) * size)
    weight = inside.to(like.dtype)
    return weight / weight.sum(1, keepdim=True)


@MODELS.register_module()
class FCA(AttentionLayer):
    """Channel gate from frequencies of the discrete cosine transform, a different one for each part of the channels.

    Args:
        in_channels (int): Channels of the input.
        ratio (int): Reduction of the hidden layer, in_channels // ratio channels. Default: 16.
        frequencies (int): How many are used, and parts of neighbouring channels; divides ``in_channels``, up to 32.
            Default: 16.
        grid (int): Height and width that maps are pooled to, a multiple of 7. Default: 7.
        identity_init (bool): Initialise as the identity: the second layer is zero at first, and the gate is divided by
            its initial value, 1/2. Part of the model, so test with the same setting. Default: False.
        init_cfg (dict | list[dict] | None): Initialisation that replaces PyTorch's default one. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above, or no channel is left.

    Example:
        >>> from mmccd.models import FCA
        >>> sum(p.numel() for p in FCA(256).parameters())  # 2 * 256 * 256 / 16
        8192
    """

    _abbr_ = 'fca'
    filters: Tensor

    def __init__(
        self,
        in_channels: int,
        ratio: int = 16,
        frequencies: int = 16,
        grid: int = 7,
        identity_init: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_ratio(ratio, in_channels)
        check_int('frequencies', frequencies)
        if frequencies > len(ALONG_H) or in_channels % frequencies:
            raise ValueError(
                f'frequencies must be at most {len(ALONG_H)} and divide in_channels={in_channels}, got {frequencies}'
            )
        check_int('grid', grid)
        if grid % SIDE:
            raise ValueError(f'grid must be a multiple of {SIDE}, got {grid}')
        self.in_channels = in_channels
        self.frequencies, self.grid = frequencies, grid
        self.identity_init = identity_init
        self.register_buffer('filters', torch.empty(in_channels, grid, grid), persistent=False)
        self.fc1 = nn.Linear(in_channels, in_channels // ratio, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(in_channels // ratio, in_channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_inner_layers()
        if self.identity_init:
            nn.init.zeros_(self.fc2.weight)
        # Here, since a model that was built without memory has no values in its buffers either.
        with torch.device('cpu'):
            along_h, along_w = (
                cosines(torch.tensor(of[: self.frequencies]) * (self.grid // SIDE), self.grid)
                for of in (ALONG_H, ALONG_W)
            )
            basis = along_h[:, :, None] * along_w[:, None]  # (F, grid, grid)
        with torch.no_grad():
            self.filters.copy_(basis.repeat_interleave(len(self.filters) // self.frequencies, 0))

    def gate(self, x: Tensor) -> Tensor:
        """Gate of shape (N, C, 1, 1)."""
        self.check_channels(x)
        with without_autocast(x):
            z = x.to(statistics_dtype(x))
            h, w = z.shape[2:]
            pooled = pooling(h, self.grid, z) @ (z @ pooling(w, self.grid, z).T)  # (N, C, grid, grid)
            context = (pooled * self.filters).sum((2, 3)).to(self.fc1.weight.dtype)
            gate = torch.sigmoid(self.fc2(self.relu(self.fc1(context))))[:, :, None, None].to(x.dtype)
        return gate * 2 if self.identity_init else gate

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return dict(channel=self.gate(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features of shape (N, in_channels, H, W)."""
        return x * self.gate(x)
