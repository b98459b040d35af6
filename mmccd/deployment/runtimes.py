"""What else runs an exported file: OpenVINO, and onnxruntime with 8-bit integers. For comparison, without a limit."""

from __future__ import annotations

import logging
import os.path as osp
import tempfile
from collections.abc import Callable, Iterable

import numpy as np

RUNTIMES = ('openvino', 'int8')
# Layers with weights. The matrices that pool CCD's grids stay in float32: they cost little, and have entries like 1/49.
QUANTIZED = ('Conv', 'Gemm')

Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]


def onnxruntime_run(content: bytes, outputs: Iterable[str]) -> Run:
    """A function from an RGB image (H, W, 3), uint8, to the outputs, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    names = list(outputs)
    return lambda image: dict(zip(names, session.run(names, _feed(image))))


def openvino_run(content: bytes, outputs: Iterable[str]) -> Run:
    """The same by OpenVINO on the CPU, in float32.

    Raises:
        ImportError: Without openvino.
        RuntimeError: If OpenVINO cannot take the graph.
    """
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = osp.join(folder, 'model.onnx')
        with open(path, 'wb') as f:
            f.write(content)
        compiled = core.compile_model(core.read_model(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    names = list(outputs)

    def run(image: np.ndarray) -> Outputs:
        results = compiled(_feed(image))
        return {name: results[compiled.output(name)] for name in names}

    return run


def quantize(content: bytes, images: Iterable[np.ndarray]) -> bytes:
    """The same network with convolutions and linear layers in 8-bit integers, a scale for each channel.

    Args:
        content (bytes): An ONNX file of :func:`mmccd.deployment.export_onnx`.
        images (Iterable[np.ndarray]): RGB images (H, W, 3), uint8, that show which values occur. Images like those of
            the application give better scales than noise.

    Returns:
        bytes: An ONNX file. onnxruntime runs it on any CPU; 8-bit instructions make it faster than float32.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([_feed(image) for image in images])

        def get_next(self) -> dict | None:
            return next(self.left, None)

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to preprocess, which needs sizes that are fixed
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = osp.join(folder, 'float.onnx'), osp.join(folder, 'int8.onnx')
            with open(before, 'wb') as f:
                f.write(content)
            quantization.quantize_static(
                before, after, Reader(), op_types_to_quantize=list(QUANTIZED), per_channel=True
            )
            with open(after, 'rb') as f:
                return f.read()
    finally:
        logging.root.setLevel(level)


def _feed(image: np.ndarray) -> Outputs:
    return dict(image=image.transpose(2, 0, 1)[None].astype(np.float32))
