# The plateau's, ended by ten validations in a row that raise the top-1 by less than 0.1 points. A schedule by epochs
# stands still before each of its steps, which is no reason to end.
_base_ = './in1k_100e_plateau.py'
custom_hooks = [
    dict(type='EarlyStoppingHook', monitor='accuracy/top1', rule='greater', min_delta=0.1, patience=10),
]
