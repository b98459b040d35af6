attention = dict(type='mmccd.CCD')
