"""What the sections of a page have in common: its options, the device, and the images that are stored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from mmengine.registry import init_default_scope
from torch import nn

from mmccd.analysis.complexity import build_on_meta

from .run import Run


@dataclass
class Options:
    """Contents of a report.

    Attributes:
        images (int): Images in each gallery; 0 leaves them out, and the attention maps.
        gates (int): Images whose attention maps are drawn.
        seconds (float): About how long the speed is measured, for all runs of a task together; 0 leaves it out.
        limit (int | None): Images to predict where no predictions are stored; None: the whole test set.
        bench (str | None): Folder of an attention bench, whose tables are shown for the networks of the runs.
    """

    images: int = 6
    gates: int = 2
    seconds: float = 10.0
    limit: int | None = None
    bench: str | None = None


@dataclass
class Context:
    """A page in the making.

    Attributes:
        index (dict[str, int]): Number of each run by its name: its colour and line style.
        device (torch.device): For all that goes through a model.
        options (Options): Contents of the page.
        sources (dict[str, str]): Where the predictions of a run are from, by its name.
        images (list[dict]): Images that several panels show, each stored once in the page.
    """

    index: dict[str, int]
    device: torch.device
    options: Options
    sources: dict[str, str] = field(default_factory=dict)
    images: list[dict] = field(default_factory=list)
    _meta: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, runs: Sequence[Run], device: torch.device, options: Options) -> Context:
        return cls({run.name: i for i, run in enumerate(runs)}, device, options)

    def on_meta(self, run: Run) -> nn.Module:
        """The model of a run without weights, for its structure and its counts."""
        if run.name not in self._meta:
            init_default_scope(run.cfg.get('default_scope', 'mmengine'))
            self._meta[run.name] = build_on_meta(run.cfg)
        return self._meta[run.name]
