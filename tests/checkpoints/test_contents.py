"""A model's tensors in the files of many programs."""

from __future__ import annotations

import pytest
import torch

from mmccd.checkpoints.contents import entry_of, tensors_of, without_prefix, without_wrappers

A, B, C = torch.zeros(1), torch.ones(2), torch.full((3,), 2.0)
MODEL = {'backbone.conv.weight': A, 'head.fc.bias': B}


def under(prefix: str, state: dict = MODEL) -> dict:
    return {prefix + key: value for key, value in state.items()}


FILES = {
    'bare': MODEL,
    'mmengine': dict(state_dict=MODEL, meta={}, optimizer=dict(param_groups=[])),
    'mmengine with an average': dict(state_dict=MODEL, ema_state_dict={**under('module.', dict.fromkeys(MODEL, C))}),
    'timm and Detectron2': dict(model=MODEL, epoch=3),
    'tutorial': dict(model_state_dict=MODEL, optimizer_state_dict=dict(state={})),
    'DeepSpeed': dict(module=MODEL, global_step=3),
    'Lightning': {'state_dict': under('model.'), 'pytorch-lightning_version': '2.5', 'callbacks': {}},
    'DistributedDataParallel': dict(state_dict=under('module.')),
    'torch.compile': dict(state_dict=under('_orig_mod.')),
    'torch.compile in DistributedDataParallel': under('module._orig_mod.'),
    'a part compiled': {'backbone._orig_mod.conv.weight': A, 'head.fc.bias': B},
    'FSDP': {'_fsdp_wrapped_module.backbone._fsdp_wrapped_module.conv.weight': A, 'head.fc.bias': B},
    'compiled inside Lightning': dict(state_dict=under('model._orig_mod.')),
    'AveragedModel': {**under('module.'), 'n_averaged': torch.tensor(3)},
    "mmengine's average alone": dict(ema_state_dict={**under('module.'), 'steps': torch.tensor(3)}),
    "timm's average alone": dict(state_dict_ema=MODEL, arch='resnet50'),
    'nested': dict(model=dict(state_dict=under('module.'))),
    'a name of its own': dict(detector=MODEL, epoch=1),
    'any wrapper': under('wrapped.net.'),
}


@pytest.mark.parametrize('content', FILES.values(), ids=FILES)
def test_files_of_many_programs(content):
    """The same tensors under the model's names; nothing is missing or unexpected."""
    found = without_prefix(tensors_of(content), MODEL)
    assert list(found) == list(MODEL)
    assert all(found[key] is MODEL[key] for key in MODEL)


BACKBONES = {
    'whole model': MODEL,
    'wrapped': under('module.'),
    'Lightning': under('model.'),
    'alone': {'conv.weight': A},
    'alone, wrapped': {'module.conv.weight': A},
    'torchvision detector': {'backbone.body.conv.weight': A, 'rpn.head.bias': B},
    'another name': {'encoder.conv.weight': A, 'projector.weight': B},
    'beside a second one': {'backbone.conv.weight': A, 'teacher.conv.weight': C},
}


@pytest.mark.parametrize('state', BACKBONES.values(), ids=BACKBONES)
def test_backbone_in_a_file(state):
    found = without_prefix(state, ['conv.weight'], part='backbone')
    assert list(found) == ['conv.weight']
    assert found['conv.weight'] is A


def test_several_models_in_one_file():
    """Which is meant is not guessed."""
    both = {'encoder_q.conv.weight': A, 'encoder_k.conv.weight': B}
    with pytest.raises(ValueError, match=r'under encoder_k\. and under encoder_q\.: save those that are meant'):
        without_prefix(both, ['conv.weight'], part='backbone')
    # Of a whole model, the other one is unexpected.
    assert set(without_prefix({'student.a': A, 'teacher.a': B}, ['a'])) == {'a', 'teacher.a'}
    with pytest.raises(ValueError, match=r'x\.pth has no state dict of tensors that is .*: it has generator, critic;'):
        entry_of(dict(generator={'a': A}, critic={'a': B}), 'x.pth')


@pytest.mark.parametrize(
    ('content', 'has'),
    [(None, ''), ([1], ''), ({}, ''), (dict(epoch=3, optimizer=dict(lr=1)), ': it has epoch, optimizer')],
)
def test_no_tensors(content, has):
    with pytest.raises(ValueError, match=rf'^x\.pth has no state dict of tensors{has}$'):
        tensors_of(content, 'x.pth')


def test_wrappers_where_no_model_is_known():
    assert without_wrappers(under('module.model.')) == MODEL
    assert without_wrappers({**under('module.'), 'x': A}) == {**under('module.'), 'x': A}
    assert without_wrappers(under('backbone.')) == under('backbone.')
