"""The methods, as pytorch-grad-cam computes them, without the padding of the network's input."""

from __future__ import annotations

import numpy as np

from mmccd.errors import UserError

METHODS = {'gradcam': 'GradCAM', 'gradcam++': 'GradCAMPlusPlus', 'hirescam': 'HiResCAM', 'eigencam': 'EigenCAM'}


def load_cam_class(method: str) -> type:
    """The class of pytorch-grad-cam for a method, restricted to the visible part of the input of a :class:`.Network`.

    Raises:
        UserError: If the package is not installed.
    """
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.image import scale_cam_image
    except ImportError as e:
        raise UserError(
            f'class activation maps need pytorch-grad-cam, which cannot be imported ({e}): pip install grad-cam'
        ) from e

    class VisibleCam(getattr(pytorch_grad_cam, METHODS[method])):
        def compute_cam_per_layer(self, *args) -> list[np.ndarray]:
            self.target_layers = self.model.ran  # hooked once, they may have run several times
            # They run once for all targets; the gradients' hooks are on that run's tensors.
            recorded = self.activations_and_grads
            self.model.activations = recorded.activations = recorded.activations or self.model.activations
            h, w = self.model.visible
            # Scaled again without the padding, which otherwise may hold the extremes.
            return [scale_cam_image(cam[:, 0, :h, :w])[:, None] for cam in super().compute_cam_per_layer(*args)]

    if method != 'eigencam':
        return VisibleCam

    class VisibleEigenCam(VisibleCam):
        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth) -> np.ndarray:
            return np.stack([first_component(a) for a in activations])

    return VisibleEigenCam


def first_component(activations: np.ndarray) -> np.ndarray:
    """Projection of a map (C, H, W) on its first principal component, (H, W); its larger side is the positive one.

    As pytorch-grad-cam's, which would need a matrix of all places times all places, and whose sign is arbitrary.
    """
    channels = activations.reshape(len(activations), -1).astype(np.float64)
    channels = channels - channels.mean(1, keepdims=True)
    component = np.linalg.eigh(channels @ channels.T)[1][:, -1]
    projected = component @ channels
    if -projected.min() > projected.max():
        projected = -projected
    return projected.reshape(activations.shape[1:]).astype(np.float32)
