attention = dict(type='mmccd.GE')
