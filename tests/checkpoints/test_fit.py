"""The one report of what a checkpoint has and a model wants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmccd.checkpoints.fit import compare, count, fitting_state, load_whole_checkpoint, tensors_of, without_prefix
from mmccd.errors import UserError


def zeros(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name.replace('__', '.'): torch.zeros(shape) for name, shape in shapes.items()}


def test_everything_is_named():
    target = zeros(same=(1,), layer1__0__ccd__scale=(64,), layer1__0__conv1__weight=(2, 2), head__fc__bias=(3,))
    state = zeros(same=(1,), layer1__0__ccd__scale=(32,), layer1__0__se_layer__bias=(1,), head__fc__bias=(3, 1))
    found = compare(state, target)
    assert list(found.tensors) == ['same']
    assert found.problems() == [
        '1 missing key (layer1: 1): layer1.0.conv1.weight',
        '1 unexpected key (se_layer: 1): layer1.0.se_layer.bias',
        'size mismatch of 2 tensors: layer1.0.ccd.scale (32,) in the checkpoint, (64,) in the model (groups=32 and '
        'groups=64), head.fc.bias (3, 1) in the checkpoint, (3,) in the model',
    ]
    assert compare(target, target).problems() == []


def test_what_is_allowed():
    target, state = zeros(a__ccd__x=(1,), b=(1,), ccdx=(1,)), zeros(layer4__x=(1,))
    found = compare(state, target).without(missing=['ccd'], unexpected=['layer4'])
    assert (found.missing, found.unexpected) == (['b', 'ccdx'], [])  # by whole components


def test_long_lists_are_cut():
    [line] = compare({}, {f'fc.{i}': torch.zeros(1) for i in range(10)}).problems()
    assert line == '10 missing keys (fc: 10): ' + ', '.join(f'fc.{i}' for i in range(8)) + ' and 2 more'


def test_kinds_of_tensors():
    keys = ['backbone.layer1.0.ccd.scale', 'layer2.1.downsample.0.weight', 'backbone.conv1.weight', 'head.fc.bias']
    assert count(keys) == 'ccd: 1, layer2: 1, conv1: 1, head: 1'
    assert count(['layer1.0.conv2.branches.0.x', 'layer1.0.y'], ['branches']) == 'branches: 1, layer1: 1'


@pytest.mark.parametrize('wrapper', ['', 'module.'])
def test_prefixes(wrapper):
    """A whole model's, and a backbone's in a whole model: heads are then nobody's business."""
    a, b = torch.zeros(1), torch.zeros(2)
    state = {f'{wrapper}backbone.a': a, f'{wrapper}head.b': b}
    assert without_prefix(state, ['backbone.a', 'head.b']) == {'backbone.a': a, 'head.b': b}
    assert without_prefix(state, ['a', 'c'], part='backbone') == {'a': a}
    assert without_prefix({f'{wrapper}a': a, f'{wrapper}fc.b': b}, ['a'], part='backbone') == {'a': a, 'fc.b': b}


def test_a_model_with_a_part_called_module():
    state = {'module.a': torch.zeros(1), 'b': torch.zeros(1)}
    assert without_prefix(state, ['module.a', 'b']) == state
    # Of a mixture, what has no prefix keeps its name, and is unexpected.
    assert set(without_prefix(state, ['a', 'c'])) == {'a', 'b'}


@pytest.mark.parametrize('content', [None, 'text', {}, {'state_dict': {}}, {'state_dict': [1]}, {'epoch': 3}, [1]])
def test_no_tensors(content):
    with pytest.raises(ValueError, match=r'^x\.pth has no state dict of tensors'):
        tensors_of(content, 'x.pth')
    with pytest.raises(UserError, match=r'^x\.pth has no state dict'):
        fitting_state(content, nn.Linear(1, 1), 'x.pth')


def test_loading_is_all_or_nothing(tmp_path):
    """Returns the meta data; a model that the checkpoint does not fit stays as it was."""
    trained, model, other = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 4)
    state = {f'module.{k}': v for k, v in trained.state_dict().items()}
    torch.save(dict(meta=dict(epoch=2), state_dict=state), tmp_path / 'x.pth')
    assert load_whole_checkpoint(tmp_path / 'x.pth', model) == dict(epoch=2)
    assert torch.equal(model.weight, trained.weight)
    before = other.weight.clone()
    with pytest.raises(UserError, match=r'size mismatch of 2 tensors: weight \(2, 3\) in the checkpoint, \(4, 3\) in'):
        load_whole_checkpoint(tmp_path / 'x.pth', other)
    assert torch.equal(other.weight, before)
    torch.save(trained.state_dict(), tmp_path / 'bare.pth')
    assert load_whole_checkpoint(tmp_path / 'bare.pth', model) == {}
    with pytest.raises(UserError, match=r'checkpoint .*gone\.pth.* does not exist'):
        load_whole_checkpoint(tmp_path / 'gone.pth', model)
