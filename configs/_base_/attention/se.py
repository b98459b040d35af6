attention = dict(type='mmccd.SE')
