"""mmccd: Cascaded Context Dependency and its peers as a plugin for MMDetection and MMPretrain.

``import mmccd`` is all that a config or a script needs: it checks what is installed, puts the stand-in for mmcv's
compiled operators in place where they are missing (:mod:`mmccd.compat`), and from then on ``type='mmccd.CCD'`` and
the other names resolve in every OpenMMLab scope. It has to come before ``mmdet.models`` is imported.
"""
from .compat import mmcv_ops
from .utils.requirements import check_requirements
from .version import __version__

check_requirements()
mmcv_ops.install()

__all__ = ['__version__']
