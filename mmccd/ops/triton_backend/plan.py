"""How kernels are launched, and what they are compiled for; nothing here needs Triton.

What a kernel is compiled for has few values for one layer, however many sizes of images it sees: :class:`Plan` is the
only part that depends on the image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from mmccd.ops.options import MIN_NORM, Options

# Elements of the padded slab up to which it is one tile, kept in registers.
WHOLE_LIMIT = 16384
# Elements of the other way's tiles.
TILE_ELEMENTS = 4096
# Elements of the largest table in the mixing of scales, (C/G, L, L, L): 64 KiB, which every card has.
MIX_LIMIT = 1 << 14
# Parts of a sum that a program reads at once.
SUM_BLOCK = 8

# What a launch does.
STAGES = WHOLE, POOL, MEASURE, SUMS, APPLY = range(5)
# Which stride is one.
UNIT_NONE, UNIT_CHANNEL, UNIT_COLUMN = range(3)
NORMALIZE = {'zscore': 0, 'minmax': 1, None: 2}

# Triton compiles again for an integer that is 1 or a multiple of 16; sizes and strides take such values by chance.
SIZES = ['samples', 'groups', 'height', 'width', 'cell_w', 'tiles', 'tiles_h', 'tiles_w']
X_STRIDES = ['x_n', 'x_c', 'x_h', 'x_w']
Y_STRIDES = ['y_n', 'y_c', 'y_h', 'y_w']
G_STRIDES = ['g_n', 'g_c', 'g_h', 'g_w']


class Plan(NamedTuple):
    """What is compiled for: the only things that may depend on the image's size, with few values each.

    Attributes:
        whole (bool): Whether a slab is one tile.
        rows (int): Rows of a cell in a tile, a power of two.
        columns (int): Columns of a cell in a tile, a power of two.
        even (bool): Whether the cells divide the image.
        align (int): Power of two that divides all strides but the unit, in elements, at most 16 bytes.
        units (tuple[int, ...]): Which stride of each tensor is one.
    """

    whole: bool
    rows: int
    columns: int
    even: bool
    align: int
    units: tuple[int, ...]


def _power_of_2(n: int) -> int:
    """The power of two from ``n`` on; Triton's own takes 4 us."""
    return 1 << (n - 1).bit_length()


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _strides(t: Tensor) -> list[int]:
    """Strides of (N, C, H, W), 0 where there is one element only: PyTorch leaves those arbitrary."""
    return [stride if size > 1 else 0 for size, stride in zip(t.shape, t.stride())]


def too_fine(channels: int, options: Options) -> str | None:
    """Why kernels cannot hold the cells of these scales, or None where they can."""
    per_group, cells = channels // options.groups, math.lcm(*options.scales)
    elements = _power_of_2(per_group) * _power_of_2(cells) ** 3
    if elements <= MIX_LIMIT:
        return None
    return (
        f'scales={options.scales} have {cells} cells a side in common, too many for the Triton kernels with '
        f'{per_group} channels a group: {elements} elements, the limit is {MIX_LIMIT}'
    )


def launch_plan(tensors: tuple[Tensor, ...], options: Options) -> Plan:
    """How kernels are launched for these (N, C, H, W) tensors of one shape."""
    _, channels, height, width = tensors[0].shape
    per_group, cells = channels // options.groups, math.lcm(*options.scales)
    block_c, block_l = _power_of_2(per_group), _power_of_2(cells)
    even = height % cells == 0 and width % cells == 0
    cell_h, cell_w = _ceil(height, cells), _ceil(width, cells)
    side = _power_of_2(max(cell_h, cell_w))
    whole = block_c * (block_l * side) ** 2 <= WHOLE_LIMIT
    if whole:
        rows = columns = side
    else:
        # 64 columns of an image, or 32 where that leaves fewer idle.
        columns = max(1, 64 // block_l)
        if columns > 1 and _ceil(cell_w, columns // 2) < 2 * _ceil(cell_w, columns):
            columns //= 2
        rows = max(1, TILE_ELEMENTS // (block_c * block_l * columns))
        rows = min(rows, _power_of_2(cell_h))

    # The unit stride and what divides the others, so that threads may load vectors.
    align, units = max(1, 16 // max(t.element_size() for t in tensors)), []
    for t in tensors:
        strides = _strides(t)
        if strides[3] == 1 or (width == 1 and strides[1] != 1):
            unit, others = UNIT_COLUMN, [*strides[:3], width // cells if even else 1]
        elif strides[1] == 1 or channels == 1:
            unit, others = UNIT_CHANNEL, [strides[0], *strides[2:], per_group]
        else:
            unit, others = UNIT_NONE, strides
        units.append(unit)
        while any(stride % align for stride in others):
            align //= 2
    return Plan(whole, rows, columns, even, align, tuple(units))


def run_time(plan: Plan, x: Tensor, options: Options) -> dict[str, int]:
    """The sizes that kernels take when they run, by the names of SIZES."""
    samples, _, height, width = x.shape
    cells = math.lcm(*options.scales)
    cell_w = width // cells if plan.even else 0
    tiles_h, tiles_w = _ceil(_ceil(height, cells), plan.rows), _ceil(_ceil(width, cells), plan.columns)
    return dict(
        samples=samples,
        groups=options.groups,
        height=height,
        width=width,
        cell_w=cell_w // plan.align if UNIT_COLUMN in plan.units else cell_w,
        tiles=1 if plan.whole else cells * tiles_h * tiles_w,
        tiles_h=tiles_h,
        tiles_w=tiles_w,
    )


def run_time_strides(plan: Plan, names: list[str], t: Tensor, which: int) -> dict[str, int]:
    """Strides of the tensor that is number ``which`` of the plan's, in units of its ``align``."""
    strides = _strides(t)
    if plan.units[which] == UNIT_CHANNEL:
        strides[1] = 0  # the kernel knows it
    elif plan.units[which] == UNIT_COLUMN:
        strides[3] = 0
    return dict(zip(names, (stride // plan.align for stride in strides)))


def compile_time(plan: Plan, channels: int, options: Options) -> dict[str, Any]:
    """What both directions are compiled for, but the dtype of sums."""
    per_group, cells = channels // options.groups, math.lcm(*options.scales)
    block_l = _power_of_2(cells)
    return dict(
        CG=per_group,
        CB=_power_of_2(per_group),
        A=block_l if plan.whole else 1,
        BH=plan.rows,
        BW=plan.columns,
        SCALES=tuple(options.scales),
        S=max(options.scales),
        L=cells,
        LB=block_l,
        EVEN=plan.even,
        ALIGN=plan.align,
        COSINE=options.similarity == 'cosine',
        NORM=NORMALIZE[options.normalize],
        EPS=float(options.eps),
        GAIN=float(options.gain),
        MIN=MIN_NORM,
    )


def warps(switches: dict[str, Any], per_thread: int) -> int:
    """Warps of a program, for so many elements of its tile a thread."""
    elements = math.prod(switches[k] for k in ('CB', 'A', 'BH', 'LB', 'BW'))
    return min(16, max(1, elements // (32 * per_thread)))


def sum_launch(switches: dict[str, Any], slabs: int, *wanted: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and compile-time arguments of the kernels that add up parts and mix scales."""
    table = switches['LB'] ** 2
    channels = min(switches['CB'], max(1, TILE_ELEMENTS // (max(SUM_BLOCK, switches['LB']) * table)))
    names = ('CG', 'SCALES', 'S', 'L', 'LB', 'EVEN', 'ACC', *wanted)
    return (slabs, _ceil(switches['CG'], channels)), dict(
        CF=channels, BLOCK=SUM_BLOCK, num_warps=4, **{k: switches[k] for k in names}
    )
