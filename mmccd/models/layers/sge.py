"""SGE: Spatial Group-wise Enhance (arXiv:1905.09646, 2019), as an mmcv plugin layer.

CCD with the context of the whole map alone: each position of a group of channels is compared with the group's average
over space, and that similarity, normalised over space, gates the group. So its keys are CCD's, and one's checkpoint
loads into the other. As in the paper, the deviation is enlarged by 1e-5 (CCD: 1e-7), scale starts at 0 and bias at 1.

Deviations: the deviation has N - 1 in it, as in the authors' code; the paper writes N. ``identity_init`` is added, and
statistics of half-precision features are taken in float32. A map of one pixel, where the original gives NaN, has the
similarity 0.
"""

from __future__ import annotations

from mmccd.registry import MODELS

from .ccd import CCD


@MODELS.register_module()
class SGE(CCD):
    """Spatial gate of each group of channels, by the similarity of every position to the group's average.

    Args:
        in_channels (int): Channels of the input.
        groups (int): Groups of neighbouring channels that share a gate; divides ``in_channels``. Default: 64.
        eps (float): Added to the deviation. Default: 1e-5.
        identity_init (bool): Divide the gate by its initial value, so that the layer is the identity at first. Part of
            the model, so test with the same setting. Default: False.
        init_cfg (dict | list[dict] | None): Initialisation that replaces scale 0 and bias 1. Default: None.

    Raises:
        TypeError, ValueError: If an argument breaks a rule above.

    Example:
        >>> from mmccd.models import SGE
        >>> sum(p.numel() for p in SGE(256).parameters())  # scale and bias of 64 groups
        128
    """

    _abbr_ = 'ccd'  # names in checkpoints: a config with this attention has had them as CCD's

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        eps: float = 1e-5,
        identity_init: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_channels, groups, scales=(1,), eps=eps, identity_init=identity_init, init_cfg=init_cfg)
