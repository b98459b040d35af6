"""Tests of tools/model_converters/publish_model.py."""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub

from mmccd.checkpoints.files import verify_checksum
from mmccd.checkpoints.read import read_checkpoint

TOOL = 'model_converters/publish_model.py'


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """A checkpoint as mmengine's runner writes it: weights, meta, optimizer, schedule, histories."""
    monkeypatch.chdir(tmp_path)
    hub = MessageHub('published')
    for loss in (2.0, 1.0):
        hub.update_scalar('train/loss', loss)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    torch.save(
        dict(
            meta=dict(epoch=1, iter=5, cfg='lr = 1', dataset_meta=dict(classes=('a', 'b'))),
            state_dict=OrderedDict(net.state_dict()),
            optimizer=optimizer.state_dict(),
            param_schedulers=[dict(last_step=5)],
            message_hub=hub.state_dict(),
        ),
        'epoch_1.pth',
    )
    return tmp_path / 'epoch_1.pth'


def test_weights_and_meta_alone(call_tool, trained):
    assert call_tool(TOOL, trained, 'new/folder/x.pth') == (0, '')
    before, after = torch.load(trained, weights_only=False), torch.load('new/folder/x.pth', weights_only=True)
    assert set(after) == {'meta', 'state_dict'}
    assert after['meta'] == before['meta']
    assert list(after['state_dict']) == list(before['state_dict'])
    for key, value in before['state_dict'].items():
        assert after['state_dict'][key].dtype == value.dtype
        assert torch.equal(after['state_dict'][key], value)
    assert sorted(os.listdir('new/folder')) == ['.x.pth.sha256', 'x.pth']
    assert Path('new/folder/x.pth').stat().st_size < trained.stat().st_size


def test_printed_hash(load_tool, trained, capsys):
    assert load_tool(TOOL).publish(str(trained), 'x.pth') == 'x.pth'
    digest = hashlib.sha256(Path('x.pth').read_bytes()).hexdigest()
    assert re.fullmatch(rf'x\.pth: \d+\.\d MiB, SHA-256 {digest}\n', capsys.readouterr().out)


def test_hash_in_the_name(call_tool, trained):
    assert call_tool(TOOL, trained, 'out/ccd.r50.pth', '--add-hash') == (0, '')
    checksum, written = sorted(Path('out').iterdir())
    assert checksum.name == f'.{written.name}.sha256'
    digest = hashlib.sha256(written.read_bytes()).hexdigest()
    assert written.name == f'ccd.r50-{digest[:8]}.pth'


def test_published_again_it_stays_the_same(load_tool, trained):
    publish = load_tool(TOOL).publish
    publish(str(trained), 'a.pth')
    publish('a.pth', 'a.pth')  # onto itself
    before, after = torch.load(trained, weights_only=False)['state_dict'], torch.load('a.pth')['state_dict']
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())


class Trap:
    def __reduce__(self):
        return os.system, ('touch sprung',)


@pytest.mark.parametrize(
    ('content', 'rule'),
    [
        (None, "in_file 'bad.pth' does not exist"),
        (b'no checkpoint', 'bad.pth is not a checkpoint'),
        (b'', 'bad.pth cannot be read as a checkpoint'),
        ({'conv.weight': torch.zeros(1)}, 'bad.pth has no state_dict: it is no checkpoint of a training'),
        ([1, 2], 'bad.pth has no state_dict: it is no checkpoint of a training'),
        (dict(state_dict={}, meta=Trap()), 'bad.pth is not a checkpoint of tensors and plain data'),
    ],
)
def test_refusals_write_nothing(call_tool, tmp_path, monkeypatch, content, rule):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path('bad.pth').write_bytes(content)
    elif content is not None:
        torch.save(content, 'bad.pth')
    before = os.listdir()
    code, stderr = call_tool(TOOL, 'bad.pth', 'out/x.pth')
    assert code == 2
    assert stderr.startswith(f'error: {rule}')
    assert 'Traceback' not in stderr
    assert os.listdir() == before


def test_older_file_stays_when_nothing_is_published(call_tool, trained):
    assert call_tool(TOOL, trained, 'x.pth')[0] == 0
    before = Path('x.pth').read_bytes()
    trained.write_bytes(trained.read_bytes()[:1000])
    assert call_tool(TOOL, trained, 'x.pth')[0] == 2
    assert Path('x.pth').read_bytes() == before


def test_interrupted_writing_leaves_nothing_half_done(load_tool, trained, monkeypatch):
    """A full disk, say: no file under the name, and none beside it."""
    tool = load_tool(TOOL)
    tool.publish(str(trained), 'x.pth')
    before = Path('x.pth').read_bytes()

    def fail(fd):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space left'):
        tool.publish(str(trained), 'x.pth')
    assert Path('x.pth').read_bytes() == before
    assert sorted(os.listdir()) == ['.x.pth.sha256', 'epoch_1.pth', 'x.pth']
    assert verify_checksum('x.pth')


@pytest.mark.parametrize('checksum', ['.x.pth.sha256', 'x.pth.sha256'])
def test_the_checksum_of_an_older_file_goes_with_it(call_tool, trained, checksum):
    """What stands beside the new file is its own, or every tool would refuse it; version 0.1 had another name."""
    Path('x.pth').write_bytes(b'old')
    Path(checksum).write_text(f'{hashlib.sha256(b"old").hexdigest()}  x.pth\n')
    assert call_tool(TOOL, trained, 'x.pth') == (0, '')
    assert verify_checksum('x.pth')
    assert 'state_dict' in read_checkpoint('x.pth')
    assert sorted(os.listdir()) == ['.x.pth.sha256', 'epoch_1.pth', 'x.pth']
