"""Registries of mmccd: children of mmengine's roots under the scope ``mmccd``.

A config names its entries with the scope, ``type='mmccd.CCD'``, which resolves from the scopes mmdet, mmpretrain
and mmengine alike and cannot collide with a class of the same name there. mmengine imports this module by itself
when it meets the prefix and hides an ImportError while it does so: keep it free of heavy imports. The modules that
hold the classes are imported on first use (``locations``).
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISBACKENDS as MMENGINE_VISBACKENDS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmccd', locations=['mmccd.models', 'mmccd.compat.mmdet_v06'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=MMENGINE_WEIGHT_INITIALIZERS, scope='mmccd', locations=['mmccd.models']
)
TASK_UTILS = Registry('task util', parent=MMENGINE_TASK_UTILS, scope='mmccd', locations=['mmccd.compat.mmdet_v06'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmccd', locations=['mmccd.data.coco_metric'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmccd', locations=['mmccd.engine', 'mmccd.engine.json_logs'])
VISBACKENDS = Registry('vis backend', parent=MMENGINE_VISBACKENDS, scope='mmccd', locations=['mmccd.engine.json_logs'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmccd', locations=['mmccd.data.datasets'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmccd', locations=['mmccd.data.transforms'])
STRATEGIES = Registry('strategy', parent=MMENGINE_STRATEGIES, scope='mmccd', locations=['mmccd.engine.strategies'])
