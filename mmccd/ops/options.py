"""The options of CCD as one value, checked once: what the operator, the layer and every backend hand on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, NamedTuple

SIMILARITIES = ('dot', 'cosine')
NORMALIZERS = ('zscore', 'minmax', None)
# Two constants that the definition and every backend share.
# A map is flat if its deviation or range is at most this times the dtype's epsilon times its mean. A constant map's
# similarity varies by some tens of ulp through the poolings' rounding; real maps vary by far more.
FLATNESS = 64.0
# Smallest norm that the cosine divides by.
MIN_NORM = 1e-8


class Options(NamedTuple):
    """Options of the operator, in the order in which :func:`mmccd.ops.ccd` takes them. :func:`make_options` checks.

    A plain tuple, because torch.compile, torch.export and torch.fx know tuples, and tables are looked up by it.

    Attributes:
        groups (int): Number of groups of neighbouring channels, at least 1.
        scales (tuple[int, ...]): Grid sizes of the poolings, each at least 1.
        similarity (str): ``'dot'`` or ``'cosine'``, over the channels of a group.
        normalize (str | None): ``'zscore'``, ``'minmax'`` or None, over the positions of a group.
        eps (float): Added to the deviation, above 0; 1e-7 is the original's.
        gain (float): Factor of the gate; 1 is the original's.
    """

    groups: int
    scales: tuple[int, ...] = (1, 2, 4)
    similarity: str = 'dot'
    normalize: str | None = 'zscore'
    eps: float = 1e-7
    gain: float = 1.0

    def check_channels(self, channels: int) -> None:
        """Raise ValueError unless ``groups`` divides ``channels``."""
        if channels % self.groups:
            raise ValueError(
                f'groups must divide the number of channels: {channels} channels, got groups={self.groups}'
            )


def make_options(*options: Any, **named: Any) -> Options:
    """:class:`Options`, checked; what was checked before comes from a cache.

    Args:
        options, named: As of :class:`Options`; ``scales`` may be any sequence.

    Raises:
        TypeError, ValueError: If an argument breaks a rule of :class:`Options`.

    Example:
        >>> make_options(64, scales=[1, 2]).scales
        (1, 2)
    """
    made = Options(*options, **named)
    if isinstance(made.scales, (tuple, list)):
        made = made._replace(scales=tuple(made.scales))
        try:
            # With the types: (1, 2) and (True, 2.0) are equal, and one of them is wrong.
            return _checked_before(made, (*map(type, made), *map(type, made.scales)))
        except TypeError as e:
            if 'unhashable' not in str(e):
                raise
    return _checked(made)


@lru_cache(maxsize=1024)
def _checked_before(options: Options, _: tuple[type, ...]) -> Options:
    return _checked(options)


def _checked(options: Options) -> Options:
    groups, scales, similarity, normalize, eps, gain = options
    if isinstance(groups, bool) or not isinstance(groups, Integral):
        raise TypeError(f'groups must be an int, got {groups!r}')
    if groups < 1:
        raise ValueError(f'groups must be at least 1, got {groups}')
    if isinstance(scales, (str, bytes)) or not isinstance(scales, Sequence):
        raise TypeError(f'scales must be a sequence of ints, got {scales!r}')
    if not scales:
        raise ValueError('scales must name at least one grid size, got an empty sequence')
    for s in scales:
        if isinstance(s, bool) or not isinstance(s, Integral):
            raise TypeError(f'scales must be ints, got {s!r} in scales={tuple(scales)}')
        if s < 1:
            raise ValueError(f'every scale must be at least 1, got {s} in scales={tuple(scales)}')
    if similarity not in SIMILARITIES:
        raise ValueError(f'similarity must be one of {SIMILARITIES}, got {similarity!r}')
    if normalize not in NORMALIZERS:
        raise ValueError(f'normalize must be one of {NORMALIZERS}, got {normalize!r}')
    for name, value in (('eps', eps), ('gain', gain)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f'{name} must be a number, got {value!r}')
    if not eps > 0:
        raise ValueError(f'eps must be above 0, got {eps}')
    return options._replace(scales=tuple(int(s) for s in scales))


def check_ccd_options(*options: Any, channels: int | None = None, **named: Any) -> tuple[int, ...]:
    """Raise TypeError or ValueError for options that CCD cannot have; return ``scales`` as a tuple.

    Args:
        options, named: As of :class:`Options`.
        channels (int | None): Number of channels, which ``groups`` must divide. Default: not checked.
    """
    made = make_options(*options, **named)
    if channels is not None:
        made.check_channels(channels)
    return made.scales
