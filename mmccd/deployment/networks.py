"""The exported networks: from an RGB image, float32 from 0 to 255, to named outputs.

They consist of the model's modules, but for what PyTorch's exporter cannot trace in MMDetection and MMPretrain: the
data preprocessor, which takes lists, and the choice of boxes (:mod:`mmccd.deployment.detectors`), which needs the
metadata of an image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from torch import Tensor, nn


class Preparation(nn.Module):
    """The data preprocessor of a model: from RGB images (N, 3, H, W) to the input of its backbone.

    Args:
        preprocessor (nn.Module): mmengine's ``ImgDataPreprocessor`` or one made from it, or MMPretrain's
            ``ClsDataPreprocessor``; they get BGR images, as the pipelines load them.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        self.takes_rgb = bool(getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'to_rgb', False)))
        self.normalizes = preprocessor._enable_normalize
        if self.normalizes:
            self.register_buffer('mean', preprocessor.mean)
            self.register_buffer('std', preprocessor.std)
        self.divisor = preprocessor.pad_size_divisor
        self.pad_value = preprocessor.pad_value

    def fill(self) -> list[float]:
        """RGB value that pads an image as the preprocessor pads behind the normalisation."""
        if not self.normalizes:
            return [float(self.pad_value)] * 3
        value = (self.pad_value * self.std + self.mean).flatten().expand(3).tolist()
        return value if self.takes_rgb else value[::-1]

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.takes_rgb else image[:, [2, 1, 0]]
        if self.normalizes:
            x = (x - self.mean) / self.std
        if self.divisor > 1:
            height, width = x.shape[-2:]
            x = F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value)
        return x


class Network(nn.Module):
    """A model behind its :class:`Preparation`.

    Attributes:
        outputs (dict[str, dict[int, str]]): Names of the outputs: their axes that are not fixed, with a name each.
        batched (bool): Whether it takes several images at once.
    """

    outputs: dict[str, dict[int, str]]
    batched = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.prepare = Preparation(model.data_preprocessor)
        self.model = model

    @torch.no_grad()
    def expected(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for an RGB image (H, W, 3), uint8, computed by the libraries, preprocessor included."""
        bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
        size = image.shape[:2]
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        data = self.model.data_preprocessor(dict(inputs=[bgr], data_samples=self._samples(sample)), False)
        return {name: v.cpu().numpy() for name, v in zip(self.outputs, self._expected(**data))}

    def _samples(self, sample: DetDataSample) -> list[DetDataSample] | None:
        return [sample]

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample] | None) -> tuple[Tensor, ...]:
        """The outputs for what the preprocessor gives."""
        raise NotImplementedError


class Classifier(Network):
    """Logits (N, classes), and their softmax if ``scores``."""

    def __init__(self, model: nn.Module, scores: bool) -> None:
        super().__init__(model)
        self.scores = scores
        self.outputs = {name: {0: 'n'} for name in ('logits', 'scores')[: 1 + scores]}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(self.prepare(image), mode='tensor')
        return (logits, logits.softmax(1)) if self.scores else (logits,)

    def _samples(self, sample: DetDataSample) -> None:
        return None

    def _expected(self, inputs: Tensor, data_samples: None) -> tuple[Tensor, ...]:
        logits = self.model(inputs, mode='tensor')
        return (logits, self.model(inputs, mode='predict')[0].pred_score[None]) if self.scores else (logits,)


def _levels(**counts: int) -> dict[str, dict[int, str]]:
    return {f'{name}_{i}': {0: 'n', 2: f'h_{i}', 3: f'w_{i}'} for name, n in counts.items() for i in range(n)}


class RawRetina(Network):
    """Class logits ``cls_i`` (N, anchors * classes, h, w) and box deltas ``box_i`` (N, anchors * 4, h, w) by level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        levels = model.bbox_head.prior_generator.num_levels
        self.outputs = _levels(cls=levels, box=levels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self._expected(self.prepare(image), None)

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample] | None) -> tuple[Tensor, ...]:
        scores, deltas = self.model(inputs, mode='tensor')
        return (*scores, *deltas)


class RawRPN(Network):
    """Outputs of the first of two stages: ``feature_i`` (N, C, h, w), ``rpn_cls_i`` and ``rpn_box_i`` by level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        levels = model.rpn_head.prior_generator.num_levels
        self.outputs = _levels(feature=levels, rpn_cls=levels, rpn_box=levels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self._expected(self.prepare(image), None)

    def _expected(self, inputs: Tensor, data_samples: list[DetDataSample] | None) -> tuple[Tensor, ...]:
        features = self.model.extract_feat(inputs)
        scores, deltas = self.model.rpn_head(features)
        return (*features, *scores, *deltas)
