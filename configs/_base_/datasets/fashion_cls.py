# 70,000 photographs of clothes (Fashion-MNIST), 28 x 28 grey: tools/dataset_converters/make_fashion.py
_base_ = './digits_cls.py'
data_root = 'data/fashion/cls'
# Sorted, as labels of class folders are.
classes = ('ankle-boot', 'bag', 'coat', 'dress', 'pullover', 'sandal', 'shirt', 'sneaker', 't-shirt', 'trouser')

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.7, 1.0), aspect_ratio_range=(0.8, 1.25)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # Dark on light as well: the scenes that the detector will see have both.
    dict(type='Invert', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=dict(_delete_=True, classes=classes), pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=dict(_delete_=True, classes=classes)))
test_dataloader = val_dataloader
