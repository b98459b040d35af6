attention = dict(type='mmccd.GC')
