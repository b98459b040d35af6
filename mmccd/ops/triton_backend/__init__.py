r"""CCD in Triton: for CUDA, and on the CPU in Triton's interpreter (``TRITON_INTERPRET=1`` set before the first call).

``launch`` has what a backend is asked for, ``plan`` decides how kernels are launched and what they are compiled for,
``launches`` does so once for tensors that are alike. Kernels are in ``kernels_whole``, ``kernels_split_forward`` and
``kernels_split_backward``, on the functions of ``kernels_shared`` and ``kernels_mixing``. Triton is imported by the
kernels alone, at the first call.

A slab is what one group of one sample holds, C/G channels by H x W pixels; slabs are independent of each other. With x
and u the slab and its upsampled context, P the adaptive poolings with their mean (:math:`ctx = P x`), sums over c over
the slab's channels, and sums over i over its pixels:

.. math::
    d_i &= \sum_c x_{ci} u_{ci} \ \text{or its cosine},
    \qquad \hat d = (d - shift) \cdot factor, \qquad y = x \cdot gain\,\sigma(scale\,\hat d + bias) \\
    a_i &= gain\,\sigma'(scale\,\hat d_i + bias) \sum_c \bar y_{ci} x_{ci},
    \qquad \overline{bias} = \sum_i a_i, \qquad \overline{scale} = \sum_i a_i \hat d_i \\
    \bar d_i &= \alpha\,scale\,a_i - \beta\,m_i - \gamma\,m'_i \\
    \overline{ctx}_{c,cell} &= \sum_{i \in cell} \bar d_i \frac{\partial d_i}{\partial u_{ci}},
    \qquad \bar x = \bar y \cdot gain\,\sigma + \bar d\,\frac{\partial d}{\partial x} + P^T\,\overline{ctx}

========== ============== =================== ===================================
normalize  shift          factor              m, m'
========== ============== =================== ===================================
zscore     mean           1 / (std + eps)     1, :math:`\hat d`
minmax     min            1 / (max - min)     1 at the minima, 1 at the maxima
None       0              1                   none
========== ============== =================== ===================================

========== ====== ======================================= ======================================
normalize  alpha  beta                                    gamma
========== ====== ======================================= ======================================
zscore     factor scale bias' factor / HW                 scale scale' / (std (HW - 1))
minmax     factor scale (bias' - scale') factor / #minima scale scale' factor / #maxima
None       1      0                                       0
========== ====== ======================================= ======================================

where bias' and scale' are that slab's shares of the two gradients. A flat map has factor, beta and gamma 0: the forward
decides, the backward reads the decision.

**Fused.** Kernels take x through the affine before it, as they load it, and add the residual and rectify before they
store y; backward they do the same with the gradients. That is what PyTorch's norm, addition and ReLU would give: in the
interpreter to the bit, while on a card the compiler rounds the product with the gate and the addition once, unless y is
in half precision. Gradients of weight and shift are sums in float64, in half precision in float32. The residual, or in
backward y, has to lie in memory as y does; else PyTorch adds. d is kept for min-max alone, whose extremes must be met
to the bit.

**Cells.** The image is cut into L x L cells, L the least common multiple of the scales (the finest grid, where the
others divide it); cell k has the pixels from ceil(k H / L) on. On a cell the context is one number, and its gradient
one sum, so nothing is selected or looked up pixel by pixel. Bin k of an L x L adaptive pooling is cell k and, where L
does not divide H, the last row before it, which bin k - 1 has too; bins of the other scales are unions of these. So
pools are four sums of every cell: of the cell, of that row, of that column, of their corner. Back, a cell's last row
gets what the next bins give it.

**Two ways.** *Whole*: one program reads a slab once, keeps it in registers and writes it once, forward and backward.
Tiles are (LB, rows, LB, C/G, columns), some rows and columns of every cell; in this order, because Triton spreads
threads over the contiguous dimension, and then from the first dimension on, and sums over channels should stay within a
thread. *Split*, for larger slabs: a stage that needs a sum over the slab ends its kernel. x is read three times: sums
of cells, d's statistics, y; and x and the gradient twice: sums, gradient. Two passes do backward, since
:math:`\overline{ctx}` is linear in alpha, beta and gamma: the sums of :math:`a_i`, :math:`m_i` and :math:`m'_i` times
the derivative are taken before these are known. Kernels that sum over cells have a program for some rows of a cell, and
need no masks; the others have tiles that cross cells, and begin where vectors do. In channels_last a tile has several
groups, so that what is next to each other in memory is read together. Partial sums lie in memory and are added in a
fixed order; there are no atomics, so results repeat to the bit. There is no contiguous copy of anything: kernels go by
strides.

**Compilations.** Where a program has a slab and the map is square, as in classification, its size and strides are
compiled in: addresses, areas of bins and borders become constants, a quarter to half of the instructions. Everything
else that depends on the image's size is a run-time argument, never specialised on, except for facts with few values
each: which stride is one (``UNIT``), and a power of two that divides the others (``ALIGN``), without which no load
could be a vector. :class:`plan.Plan` is all of it, and has few values for one layer, however many sizes it sees.

**Launches.** Triton finds a compiled kernel by all its arguments, in more time than most kernels take. So launches are
kept by shape, strides, dtypes, addresses modulo 16 bytes and options, each with the kernel that Triton found.
"""
