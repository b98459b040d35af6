"""Draw the figures of mathematics.md into docs/images: python docs/figures.py [--out FOLDER]."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from skimage.data import astronaut

from mmccd.ops import ccd_gate
from mmccd.ops.geometry import cell_of

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SCALES = (1, 2, 4)
COLORS = 'RdYlBu_r'
SIGNED = 'RdBu_r'
DARK, BLUE, ORANGE = '0.15', '#4575b4', '#d9732b'


def features() -> torch.Tensor:
    """Three channels that can be drawn: an image's colours, normalised as a network gets them, (1, 3, H, W)."""
    image = torch.from_numpy(astronaut()).float().permute(2, 0, 1)[None] / 255
    image = F.adaptive_avg_pool2d(image[..., :384, :], (90, 120))
    return (image - MEAN[:, None, None]) / STD[:, None, None]


def colours(x: torch.Tensor) -> np.ndarray:
    """Features (1, 3, H, W) as an image again."""
    return (x[0].permute(1, 2, 0) * STD + MEAN).clamp(0, 1).numpy()


def show(axes: Axes, values: np.ndarray, title: str, below: str, **options) -> None:
    axes.imshow(values, extent=(0, 4, 3, 0), interpolation='nearest', **options)
    axes.set_title(title, fontsize=10, color=DARK)
    axes.set_xlabel(below, fontsize=9, color=DARK)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def draw_layer() -> Figure:
    """All steps of the layer, on a group of three channels."""
    x = features()
    pools = [F.adaptive_avg_pool2d(x, s) for s in SCALES]
    context = sum(F.interpolate(p, size=max(SCALES)) for p in pools) / len(SCALES)
    similarity = (x * F.interpolate(context, size=x.shape[-2:])).sum(1)[0]
    normalized = (similarity - similarity.mean()) / similarity.std()

    figure = Figure(figsize=(9, 3.9), dpi=100, layout='constrained')
    top, bottom = figure.subplots(2, 5)
    show(top[0], colours(x), 'features x', 'three channels, as colours')
    for axes, p, s in zip(top[1:], pools, SCALES):
        show(axes, colours(p), f'context {s} x {s}', 'mean of all' if s == 1 else f'means of {s * s} bins')
    show(top[4], colours(context), 'cascade', 'mean of the three')

    limit = similarity.abs().max().item()
    show(
        bottom[0],
        similarity.numpy(),
        'similarity d',
        f'{similarity.min():.1f} to {similarity.max():.1f}',
        cmap=SIGNED,
        vmin=-limit,
        vmax=limit,
    )
    show(
        bottom[1],
        normalized.numpy(),
        'normalised',
        f'{normalized.min():.1f} to {normalized.max():.1f}',
        cmap=SIGNED,
        vmin=-3,
        vmax=3,
    )
    for axes, scale in zip(bottom[2:], (0.0, 0.5, 2.0)):
        gate = ccd_gate(x, torch.tensor([scale]), torch.ones(1), 1)[0, 0]
        expected = torch.sigmoid(scale * normalized + 1)
        assert torch.allclose(gate, expected, atol=1e-5)  # the figure's steps are the layer's
        below = 'initially 0.731' if scale == 0 else f'{gate.min():.2f} to {gate.max():.2f}'
        show(axes, gate.numpy(), f'gate, scale {scale:g}', below, cmap=COLORS, vmin=0, vmax=1)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLORS), ax=bottom[4], fraction=0.05, pad=0.03)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_bins(size: int = 7, cells: int = 4) -> Figure:
    """Which rows a cell is the mean of, and which cell a row reads."""
    figure = Figure(figsize=(6.5, 2.9), dpi=120, layout='constrained')
    axes = figure.subplots()
    for i in range(size):
        axes.add_patch(matplotlib.patches.Rectangle((i, 0), 1, 0.8, facecolor='0.93', edgecolor='white', linewidth=3))
        axes.text(i + 0.5, 0.4, str(i), ha='center', va='center', color=DARK, fontsize=12)
    for j in range(cells):
        first, last = j * size // cells, -(-(j + 1) * size // cells)  # floor, ceil: adaptive pooling's bins
        y = 1.15 + 0.42 * (j % 2)
        axes.plot([first + 0.06, last - 0.06], [y, y], color=BLUE, linewidth=7, solid_capstyle='butt')
        axes.text((first + last) / 2, y + 0.1, f'bin {j}', ha='center', va='bottom', color=BLUE, fontsize=9)
    read = cell_of(torch.arange(size), size, cells).tolist()
    for j in range(cells):
        rows = [i for i in range(size) if read[i] == j]
        axes.plot([rows[0] + 0.06, rows[-1] + 0.94], [-0.35, -0.35], color=ORANGE, linewidth=7, solid_capstyle='butt')
        middle = (rows[0] + rows[-1] + 1) / 2
        axes.text(middle, -0.55, f'read cell {j}', ha='center', va='top', color=ORANGE, fontsize=9)
    axes.text(-0.2, 1.4, 'pooling', ha='right', va='center', color=BLUE)
    axes.text(-0.2, 0.4, 'row', ha='right', va='center', color=DARK)
    axes.text(-0.2, -0.35, 'upsampling', ha='right', va='center', color=ORANGE)
    axes.set_xlim(-1.6, size + 0.1)
    axes.set_ylim(-1, 2)
    axes.set_axis_off()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'images', help='default: docs/images')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in (('layer.png', draw_layer), ('bins.png', draw_bins)):
        draw().savefig(args.out / name)
        print(args.out / name)


if __name__ == '__main__':
    main()
