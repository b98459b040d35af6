"""Whatever a file's state dict holds, the converter gives what fits the model, or a ValueError that says why."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import MODELS

from mmccd.checkpoints.convert import check_fits, config_candidates, convert, recognise, state_dict_of

ROOT = Path(__file__).parents[2]
NAMES = ['resnet50', 'ccd_resnet50', 'se_resnet50', 'sk_resnet50', 'det_retinanet_ccd_r50', 'det_cascade_rcnn_ccd_r50']


@cache
def original(name: str) -> dict:
    shapes = json.loads((ROOT / 'tests' / 'data' / 'golden' / f'{name}.json').read_text())['shapes']
    return {k: torch.empty(shape, device='meta') for k, shape in shapes.items()}


@cache
def target(config: str) -> dict:
    cfg = Config.fromfile(ROOT / 'configs' / config)
    with torch.device('meta'):
        return MODELS.build(dict(cfg.model, _scope_=cfg.default_scope)).state_dict()


def convert_or_refuse(checkpoint) -> str:
    """What the converter's tool does with a file; returns the refusal, or nothing."""
    try:
        state = state_dict_of(checkpoint)
        arch = recognise(state)
        state = convert(state, arch)
        config, options = config_candidates(arch)[0]
        if (ROOT / 'configs' / config).is_file() and not options:
            check_fits(state, target(config))
    except ValueError as e:
        assert str(e)
        return str(e)
    return ''


KEYS = st.sampled_from(sorted({k for name in NAMES for k in original(name)})) | st.text(max_size=8) | st.integers(0, 3)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 64, 81]), max_size=4)
TENSORS = SHAPES.map(lambda shape: torch.empty(shape, device='meta')) | SHAPES.map(
    lambda shape: torch.zeros(shape).to_sparse() if shape and 0 not in shape else torch.zeros(())
)
VALUES = TENSORS | st.none() | st.integers() | st.text(max_size=3) | st.just([1])
CHANGES = st.lists(
    st.tuples(st.sampled_from(['set', 'remove', 'rename', 'prefix']), KEYS, KEYS, VALUES), min_size=1, max_size=4
)


@pytest.mark.parametrize('name', NAMES)
def test_unchanged_they_convert(name):
    assert convert_or_refuse(original(name)) == ''


@given(st.sampled_from(NAMES), CHANGES)
@settings(max_examples=120, deadline=None)
# Scalars where the class order or the outputs of a box head are looked at.
@example('det_cascade_rcnn_ccd_r50', [('set', 'bbox_head.0.fc_reg.bias', '', torch.empty(()))])
@example('det_cascade_rcnn_ccd_r50', [('set', 'bbox_head.0.fc_cls.bias', '', torch.empty(()))])
@example('ccd_resnet50', [('set', 'layer1.0.pf.scale', '', torch.zeros(1, 64, 1).to_sparse())])
@example('resnet50', [('set', 'conv1.weight', '', torch.zeros(64, 3, 7, 7).to_sparse())])
def test_changed_state_dicts(name, changes):
    state = dict(original(name))
    for action, key, other, value in changes:
        if action == 'set':
            state[key] = value
        elif action == 'remove':
            state.pop(key, None)
        elif action == 'rename' and key in state:
            state[other] = state.pop(key)
        elif action == 'prefix':
            state = {f'module.{k}': v for k, v in state.items()}
    refusal = convert_or_refuse(dict(state_dict=state))
    if not refusal:  # then it had all the model needs, whatever the changes were
        arch = recognise(state_dict_of(state))
        check_fits(convert(state_dict_of(state), arch), target(config_candidates(arch)[0][0]))


@given(
    st.recursive(
        VALUES,
        lambda v: st.dictionaries(KEYS | st.just('state_dict'), v, max_size=4) | st.lists(v, max_size=3),
        max_leaves=6,
    )
)
@settings(max_examples=120, deadline=None)
def test_any_checkpoint(checkpoint):
    assert convert_or_refuse(checkpoint)


def test_dense_tensors_alone():
    with pytest.raises(ValueError, match=r'1 entries of its state dict are no dense tensors: a \(sparse_coo\)'):
        state_dict_of({'a': torch.zeros(2).to_sparse(), 'b': torch.zeros(1)})
    with pytest.raises(ValueError, match=r'bbox_head\.0\.fc_cls\.bias: must have at least one dimension'):
        state = dict(original('det_cascade_rcnn_ccd_r50'), **{'bbox_head.0.fc_cls.bias': torch.zeros(())})
        convert(state, recognise(state))
