"""Images of the predictions of a test, one file for each image."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from mmccd.data.decode import decode_file
from mmccd.data.image_files import names_apart
from mmccd.registry import HOOKS

WRITTEN = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')  # images of other formats are drawn as PNG


class _ShowHook(Hook):
    """Names of the files: the images' own, with their folders if the dataset has a name twice; and of the classes."""

    def __init__(self, show: bool, out_dir: str | None, texts: Sequence[Sequence[str]]) -> None:
        self.show, self.out_dir = show, out_dir
        self.texts: dict[str, str] = dict(texts)
        self._names: Mapping[str, str] = {}
        self._visualizer: Any = Visualizer.get_current_instance()
        if show:
            self._visualizer._vis_backends = {}

    def before_test(self, runner: Runner) -> None:
        """Find out which names recur, and draw the texts of classes in the place of their names."""
        meta = self._visualizer.dataset_meta if self.texts else None
        if meta and meta.get('classes'):
            classes = tuple(self.texts.get(name, name) for name in meta['classes'])
            self._visualizer.dataset_meta = {**meta, 'classes': classes}
        dataset = runner.test_dataloader.dataset
        if self.out_dir is not None and hasattr(dataset, 'get_data_info'):
            infos = (dataset.get_data_info(i) for i in range(len(dataset)))
            self._names = names_apart([i['img_path'] for i in infos if isinstance(i.get('img_path'), str)])

    def name(self, path: str) -> str:
        """What the drawing of an image is called."""
        return self._names.get(path, osp.basename(path))


@HOOKS.register_module()
class ShowBoxesHook(_ShowHook):
    """MMDetection's ``DetVisualizationHook`` for tests, which keeps images of equal names in their folders.

    The image is read as everywhere here (:mod:`mmccd.data.decode`).

    Args:
        draw (bool): Whether to draw at all. Default: False.
        interval (int): Of validation, which this hook does not draw. Default: 50.
        score_thr (float): Minimum score of a box. Default: 0.3.
        show (bool): Whether to show each in a window. Default: False.
        wait_time (float): Seconds for which a window shows one. Default: 0.
        test_out_dir (str | None): Folder below ``WORK_DIR/<time>``; None writes none.
        backend_args (dict | None): How mmengine reads images. Default: by their paths.
        texts (Sequence[Sequence[str]]): (name, text) of classes whose names no font can draw. Default: none.
    """

    def __init__(
        self,
        draw: bool = False,
        interval: int = 50,
        score_thr: float = 0.3,
        show: bool = False,
        wait_time: float = 0.0,
        test_out_dir: str | None = None,
        backend_args: dict | None = None,
        texts: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__(show, test_out_dir, texts)
        self.draw, self.score_thr, self.wait_time, self.backend_args = draw, score_thr, wait_time, backend_args
        self._drawn = 0

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Draw the boxes of a batch."""
        for sample in (outputs or ()) if self.draw else ():
            self._drawn += 1
            out_file = None
            if self.out_dir is not None:
                name = self.name(sample.img_path)
                name += '' if name.lower().endswith(WRITTEN) else '.png'
                out_file = osp.join(runner.work_dir, runner.timestamp, self.out_dir, name)
            self._visualizer.add_datasample(
                osp.basename(sample.img_path) if self.show else 'test_img',
                decode_file(sample.img_path, self.backend_args),
                data_sample=sample,
                show=self.show,
                wait_time=self.wait_time,
                pred_score_thr=self.score_thr,
                out_file=out_file,
                step=self._drawn,
            )


@HOOKS.register_module()
class ShowClassesHook(_ShowHook):
    """MMPretrain's ``VisualizationHook`` for tests, which keeps images of equal names in their folders.

    Draws what the network sees, with the colours of the image: MMPretrain's hook exchanges red and blue.

    Args:
        enable (bool): Whether to draw at all. Default: False.
        interval (int): Draw one image of so many. Default: 5000.
        show (bool): Whether to show each in a window. Default: False.
        out_dir (str | None): The folder; None writes none.
        texts (Sequence[Sequence[str]]): (name, text) of classes whose names no font can draw. Default: none.
        **options: For the visualizer's ``visualize_cls``.
    """

    def __init__(
        self,
        enable: bool = False,
        interval: int = 5000,
        show: bool = False,
        out_dir: str | None = None,
        texts: Sequence[Sequence[str]] = (),
        **options: Any,
    ) -> None:
        super().__init__(show, out_dir, texts)
        self.enable, self.interval, self.options = enable, interval, options
        self._number = 0

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Draw the classes of a batch."""
        for i, sample in enumerate((outputs or ()) if self.enable else ()):
            number, self._number = self._number, self._number + 1
            if number % self.interval:
                continue
            path = sample.get('img_path') or str(number)
            seen = data_batch['inputs'][i]
            if isinstance(seen, torch.Tensor):
                image = seen.permute(1, 2, 0).cpu().numpy()[..., ::-1].astype(np.uint8)
            else:  # several views of it, for test-time augmentation
                image = decode_file(path)
            self._visualizer.visualize_cls(
                np.ascontiguousarray(image),
                sample,
                show=self.show,
                out_file=self.out_dir and osp.join(self.out_dir, f'{self.name(path)}_0.png'),
                name=osp.basename(path),
                **self.options,
            )
