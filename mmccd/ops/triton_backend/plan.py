"""How kernels are launched, and what they are compiled for; nothing here needs Triton.

What a kernel is compiled for has few values for one layer, however many sizes of images it sees: see :class:`Plan`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmccd.ops.geometry import bin_start, cell_of
from mmccd.ops.options import FLATNESS, MIN_NORM, Options

# Elements of the padded slab up to which one program holds it in registers.
WHOLE_LIMIT = 16384
# Elements of the table in the mixing of scales, (C/G, L, L, L), up to which that program mixes them, too.
WHOLE_MIX_LIMIT = 1 << 14
# Elements of the largest such table: 64 KiB, which every card has.
MIX_LIMIT = 1 << 14
# Elements and rows of the other way's tiles, and bytes of neighbouring channels: two memory sectors.
TILE_ELEMENTS, TILE_ROWS, TILE_BYTES = 4096, 8, 64
# Elements of a tile a thread, and the warps that this is for at most: 256 threads have 255 registers each.
FORWARD_PER_THREAD, APPLY_PER_THREAD, BACKWARD_PER_THREAD, MAX_WARPS = 64, 32, 32, 8
# Elements and columns that programs of a cell read at once, their warps, and how many programs there should be.
CELL_ELEMENTS, CELL_COLUMNS, CELL_PROGRAMS = 2048, 16, 2048
POOL_WARPS, SUMS_WARPS = 2, 8
# Elements of a table in the mixing of scales where that is a kernel of its own, or takes a program twice the threads;
# tiles whose statistics are read at once.
MIX_ELEMENTS, TILES_AT_ONCE = 4096, 128

# Which stride is one.
UNIT_NONE, UNIT_CHANNEL, UNIT_COLUMN = range(3)
NORMALIZE = {'zscore': 0, 'minmax': 1, None: 2}

# Triton compiles again for an integer that is 1 or a multiple of 16; sizes and strides take such values by chance.
SIZES = ['samples', 'groups', 'height', 'width']
TILES = ['tiles_h', 'tiles_w']
X_STRIDES = ['x_n', 'x_c', 'x_h', 'x_w']
Y_STRIDES = ['y_n', 'y_c', 'y_h', 'y_w']
G_STRIDES = ['g_n', 'g_c', 'g_h', 'g_w']


class Plan(NamedTuple):
    """What is compiled for: the only things that may depend on the image's size.

    Attributes:
        whole (bool): Whether a program has a slab, and not a tile of it.
        fixed (tuple[int, ...]): Sizes, and strides within a sample, that are compiled in: of square slabs of one
            program, which classification has, and always of the same size; else empty.
        even (bool): Whether the cells divide the image, where ``whole``.
        rows (int): Rows of a tile; where ``whole``, of a cell in it. A power of two, as the next two.
        columns (int): Likewise columns.
        groups (int): Groups of a tile.
        align (int): Power of two that divides all strides but the unit, in elements, at most 16 bytes; 1 where they are
            compiled in.
        sample_align (int): Likewise of the strides of samples.
        units (tuple[int, ...]): Which stride of each tensor is one.
    """

    whole: bool
    fixed: tuple[int, ...]
    even: bool
    rows: int
    columns: int
    groups: int
    align: int
    sample_align: int
    units: tuple[int, ...]


class Constants(NamedTuple):
    """What kernels are compiled for, as they call it."""

    CG: int  # C/G
    CB: int  # C/G rounded up to a power of two
    GB: int  # groups of a tile
    CF: int  # channels of a program that mixes scales
    BH: int  # rows of a tile, or where it is a slab of a cell in it, rounded up to a power of two
    BW: int  # columns, likewise
    CELL_H: int  # rows and columns that programs of a cell read at once
    CELL_W: int
    SCALES: tuple[int, ...]
    S: int  # max(SCALES)
    L: int  # lcm(SCALES)
    LB: int  # L rounded up to a power of two
    EVEN: bool  # whether it is known that L divides H and W
    NEXT: bool  # whether it is known that every bin that begins in another cell does so in the one before
    AGAIN: bool  # read x and the gradient again, instead of keeping them in registers
    ALIGN: int  # what strides in a sample are in units of
    SAMPLE_ALIGN: int  # what strides of samples are in units of
    X_UNIT: int
    Y_UNIT: int
    G_UNIT: int
    COSINE: bool
    NORM: int
    EPS: float
    GAIN: float
    MIN: float
    FLAT: float  # FLATNESS times the epsilon of sums

    def of_mixing(self) -> Constants:
        """What does not matter where only scales are mixed left out, so that there is one kernel."""
        return self._replace(BH=0, BW=0, CELL_H=0, CELL_W=0, ALIGN=1, SAMPLE_ALIGN=1, X_UNIT=0, Y_UNIT=0, G_UNIT=0)


def _power_of_2(n: int) -> int:
    """The power of two from ``n`` on; Triton's own takes 4 us."""
    return 1 << (n - 1).bit_length()


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _strides(t: Tensor) -> list[int]:
    """Strides of (N, C, H, W), 0 where there is one element only: PyTorch leaves those arbitrary."""
    return [stride if size > 1 else 0 for size, stride in zip(t.shape, t.stride())]


def _mixing(channels: int, options: Options) -> int:
    """Elements of the table in the mixing of scales of a whole group."""
    return _power_of_2(channels // options.groups) * _power_of_2(math.lcm(*options.scales)) ** 3


def too_fine(channels: int, options: Options) -> str | None:
    """Why kernels cannot hold the cells of these scales, or None where they can."""
    elements = _mixing(channels, options)
    if elements <= MIX_LIMIT:
        return None
    return (
        f'scales={options.scales} have {math.lcm(*options.scales)} cells a side in common, too many for the Triton '
        f'kernels with {channels // options.groups} channels a group: {elements} elements, the limit is {MIX_LIMIT}'
    )


def _next(size: int, cells: int) -> bool:
    """Whether every bin that begins in another cell does so in the one before it, as nearly always."""
    return all(cell_of(bin_start(b, size, cells), size, cells) >= b - 1 for b in range(cells))


def launch_plan(tensors: tuple[Tensor, ...], options: Options) -> Plan:
    """How kernels are launched for these (N, C, H, W) tensors of one shape, the first of which is x."""
    _, channels, height, width = tensors[0].shape
    per_group, cells = channels // options.groups, math.lcm(*options.scales)
    block_c, block_l = _power_of_2(per_group), _power_of_2(cells)
    cell_h = _ceil(height, cells)
    side = _power_of_2(max(cell_h, _ceil(width, cells)))
    whole = block_c * (block_l * side) ** 2 <= WHOLE_LIMIT and _mixing(channels, options) <= WHOLE_MIX_LIMIT
    align, units = _alignment(tensors, per_group)
    if whole:
        fixed: tuple[int, ...] = ()
        if height == width:
            fixed = (height, *(stride for t in tensors for stride in _strides(t)[1:]))
        even = height % cells == 0 and width % cells == 0
        sample_align = align
        if fixed:
            align, sample_align = 1, _divisor([_strides(t)[0] for t in tensors], _vector(tensors))
        return Plan(True, fixed, even, side, side, 1, align, sample_align, units)
    groups = 1
    if units[0] == UNIT_CHANNEL:
        groups = max(1, min(TILE_BYTES // (block_c * tensors[0].element_size()), _power_of_2(options.groups)))
    # Large maps have the same tile, whatever their size.
    rows = TILE_ROWS if 2 * cell_h > TILE_ROWS // 2 else _power_of_2(cell_h)
    columns = min(_power_of_2(width), max(1, TILE_ELEMENTS // (TILE_ROWS * groups * block_c)))
    return Plan(False, (), False, rows, columns, groups, align, align, units)


def _vector(tensors: tuple[Tensor, ...]) -> int:
    """Elements of 16 bytes."""
    return max(1, 16 // max(t.element_size() for t in tensors))


def _divisor(strides: list[int], largest: int) -> int:
    """The largest power of two up to ``largest`` that divides them."""
    while any(stride % largest for stride in strides):
        largest //= 2
    return largest


def _alignment(tensors: tuple[Tensor, ...], per_group: int) -> tuple[int, tuple[int, ...]]:
    """What divides strides other than 1, so that threads may load vectors, and which stride is 1."""
    align, units = _vector(tensors), []
    for t in tensors:
        strides = _strides(t)
        if strides[3] == 1 or (t.shape[3] == 1 and strides[1] != 1):
            unit, others = UNIT_COLUMN, [*strides[:3], t.shape[3]]
        elif strides[1] == 1 or t.shape[1] == 1:
            unit, others = UNIT_CHANNEL, [strides[0], *strides[2:], per_group]
        else:
            unit, others = UNIT_NONE, strides
        units.append(unit)
        align = _divisor(others, align)
        # Widths of images are divisible by this or that; two values for them, so that few kernels are compiled.
        if unit != UNIT_CHANNEL:
            align = 4 if align >= 4 else 1
    return align, tuple(units)


def constants(plan: Plan, x: Tensor, options: Options) -> Constants:
    """What kernels are compiled for."""
    per_group, cells = x.shape[1] // options.groups, math.lcm(*options.scales)
    block_c, block_l = _power_of_2(per_group), _power_of_2(cells)
    units = (*plan.units, UNIT_NONE)[:3]
    return Constants(
        CG=per_group,
        CB=block_c,
        GB=plan.groups,
        CF=min(_power_of_2(x.shape[1]), max(1, MIX_ELEMENTS // block_l**3)),
        BH=plan.rows,
        BW=plan.columns,
        CELL_H=max(1, CELL_ELEMENTS // (CELL_COLUMNS * block_c * plan.groups)),
        CELL_W=CELL_COLUMNS,
        SCALES=tuple(options.scales),
        S=max(options.scales),
        L=cells,
        LB=block_l,
        EVEN=plan.even,
        NEXT=bool(plan.fixed) and all(_next(size, cells) for size in x.shape[2:]),
        AGAIN=plan.whole and block_c * (block_l * plan.rows) ** 2 > MAX_WARPS * 32 * BACKWARD_PER_THREAD,
        ALIGN=plan.align,
        SAMPLE_ALIGN=plan.sample_align,
        X_UNIT=units[0],
        Y_UNIT=units[1],
        G_UNIT=units[2],
        COSINE=options.similarity == 'cosine',
        NORM=NORMALIZE[options.normalize],
        EPS=float(options.eps),
        GAIN=float(options.gain),
        MIN=MIN_NORM,
        FLAT=FLATNESS * torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps,
    )


def numbers(plan: Plan, made: Constants, tensors: tuple[Tensor, ...], options: Options) -> dict[str, int]:
    """What kernels are given when they run, by name; strides are those of x, y and the gradient of y, in this order."""
    samples, channels, height, width = tensors[0].shape
    cell_h = _ceil(height, made.L)
    tiles_h, tiles_w = _ceil(cell_h, plan.rows), _ceil(width, plan.columns)
    wanted = _ceil(CELL_PROGRAMS, max(1, samples * _ceil(options.groups, plan.groups) * made.L**2))
    rows = max(_ceil(cell_h, wanted), min(cell_h, made.CELL_H))
    values = dict(
        samples=samples,
        groups=options.groups,
        channels=channels,
        height=height,
        width=width,
        tiles_h=tiles_h,
        tiles_w=tiles_w,
        tiles=made.L * tiles_h * tiles_w,
        rows=rows,
        parts=_ceil(cell_h, rows),
    )
    divisors = plan.sample_align, plan.align, plan.align, plan.align
    for t, unit, names in zip(tensors, plan.units, (X_STRIDES, Y_STRIDES, G_STRIDES)):
        strides = _strides(t)
        if unit == UNIT_CHANNEL:
            strides[1] = 0  # the kernel knows it
        elif unit == UNIT_COLUMN:
            strides[3] = 0
        values.update(zip(names, (stride // n for stride, n in zip(strides, divisors))))
    return values


def warps(made: Constants, whole: bool, per_thread: int) -> int:
    """Warps of a program, for so many elements of its tile a thread."""
    elements = made.CB * made.GB * made.BH * made.BW * (made.LB**2 if whole else 1)
    return min(MAX_WARPS, max(1, elements // (32 * per_thread)))
