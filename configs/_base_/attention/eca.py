attention = dict(type='mmccd.ECA')
