"""Attentions as their papers define them, for ``--like``: plain PyTorch, to be read beside the paper, not for use.

They are independent of :mod:`mmccd.models.layers`, need no OpenMMLab, and know no mixed precision and no identity
initialisation. The tests hold both to each other.
"""

from __future__ import annotations

from mmccd.errors import UserError, suggest

from .base import Mutant, Reference
from .channel import BAM, CBAM, ECA, FCA, GC, GE, NAM, SE
from .spatial import CCD, LSK, SGE, CoordAttention, EMAttention, ShuffleAttention, SimAM, TripletAttention

REFERENCES: dict[str, type[Reference]] = {
    kind.__name__: kind
    for kind in (
        BAM,
        CBAM,
        CCD,
        CoordAttention,
        ECA,
        EMAttention,
        FCA,
        GC,
        GE,
        LSK,
        NAM,
        SE,
        SGE,
        ShuffleAttention,
        SimAM,
        TripletAttention,
    )
}

# Other names that they go by.
ALIASES = {
    'EMA': 'EMAttention',
    'FcaNet': 'FCA',
    'CoordAtt': 'CoordAttention',
    'CA': 'CoordAttention',
    'Triplet': 'TripletAttention',
    'SA': 'ShuffleAttention',
    'GCNet': 'GC',
    'GlobalContext': 'GC',
    'GatherExcite': 'GE',
    'SqueezeExcite': 'SE',
}

__all__ = ['REFERENCES', 'Mutant', 'Reference', 'find_reference']


def find_reference(name: str) -> type[Reference]:
    """The definition of a name, capitals aside. UserError with the list if there is none."""
    known = {key.lower(): kind for key, kind in REFERENCES.items()}
    known.update({alias.lower(): REFERENCES[key] for alias, key in ALIASES.items()})
    if name.lower() not in known:
        raise UserError(f'--like must be one of {", ".join(REFERENCES)}, got {name!r}{suggest(name, REFERENCES)}')
    return known[name.lower()]
