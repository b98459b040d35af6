attention = dict(type='mmccd.CBAM')
