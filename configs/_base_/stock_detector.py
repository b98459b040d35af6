# What a recipe of MMDetection gets here; the leaves put it in its places. What is trained, and how, stays.
custom_imports = dict(imports=['mmccd'], allow_failed_imports=False)

stock_hooks = dict(
    checkpoint=dict(type='mmccd.CheckpointHook'),
    interrupt=dict(type='mmccd.InterruptHook'),
    finite=dict(type='mmccd.CheckFiniteHook'),
    skipped_images=dict(type='mmccd.SkippedImagesHook'),
)
stock_train = dict(type='mmccd.CocoDataset', max_broken=0.01)
stock_test = dict(type='mmccd.CocoDataset')
stock_backbone = dict(type='mmccd.AttentionResNet', init_cfg=dict(type='mmccd.PretrainedBackbone'))
