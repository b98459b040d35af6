attention = dict(type='mmccd.SK')
