# 2,624 photographs of solar cells, 300 x 300 grey: tools/dataset_converters/make_solar.py
_base_ = './digits_cls.py'
data_root = 'data/solar/cls'
# Sorted, as labels of class folders are.
classes = ('defective', 'functional')

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=128, interpolation='area'),
    # A cell is a cell from all sides.
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=128, interpolation='area'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    dataset=dict(data_root=data_root, metainfo=dict(_delete_=True, classes=classes), pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=dict(_delete_=True, classes=classes), pipeline=test_pipeline)
)
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=32)
