# Written by `make configs` (mmccd/cli/config_table.py).
attention = dict(type='mmccd.SGE')
