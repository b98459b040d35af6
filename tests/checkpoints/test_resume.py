"""Which checkpoint ``--resume`` takes, and what it says about the others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmccd.checkpoints import read, resume
from mmccd.checkpoints.files import write_with_checksum
from mmccd.checkpoints.resume import (
    TEMPLATES,
    checkpoint_folder,
    checkpoint_templates,
    how_to_continue,
    newest_checkpoint,
    set_resume,
)
from mmccd.errors import UserError


def write(folder: Path, name: str, iteration: int, **more: object) -> Path:
    path = folder / name
    torch.save(dict(dict(meta=dict(epoch=1, iter=iteration), state_dict={}, message_hub={}), **more), path)
    content = path.read_bytes()
    write_with_checksum(str(path), content)
    return path


@pytest.fixture
def cfg(tmp_path) -> Config:
    return Config(dict(work_dir=str(tmp_path), default_hooks=dict(checkpoint=dict(type='mmccd.CheckpointHook'))))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_numbers_count_not_names_or_times(tmp_path):
    """Epoch 10 is newer than 9, whatever the clock says."""
    for epoch in (10, 9, 8):
        write(tmp_path, f'epoch_{epoch}.pth', epoch * 5)
    os.utime(tmp_path / 'epoch_8.pth')
    write(tmp_path, 'best_score_epoch_11.pth', 55)
    write(tmp_path, 'epoch_12-0123abcd.pth', 60)
    assert newest_checkpoint(str(tmp_path)) == (str(tmp_path / 'epoch_10.pth'), {})


@pytest.mark.parametrize(('iteration', 'name'), [(12, 'interrupted.pth'), (9, 'epoch_2.pth')])
def test_iterations_decide_between_kinds(tmp_path, iteration, name):
    write(tmp_path, 'epoch_2.pth', 10)
    write(tmp_path, 'iter_8.pth', 8)
    write(tmp_path, 'interrupted.pth', iteration)
    assert newest_checkpoint(str(tmp_path)) == (str(tmp_path / name), {})


def test_what_an_interrupted_training_says(cfg, tmp_path):
    assert how_to_continue(cfg) == f'there is no checkpoint in {tmp_path} yet'
    write(tmp_path, 'best_score_epoch_1.pth', 5)
    assert how_to_continue(cfg) == f'there is no checkpoint in {tmp_path} yet'
    write(tmp_path, 'epoch_1.pth', 5)
    assert how_to_continue(cfg) == f'with --resume, the same command continues from the newest checkpoint in {tmp_path}'
    cfg.default_hooks.checkpoint.out_dir = 's3://bucket'
    assert how_to_continue(cfg) == 'with --resume, the same command continues from the newest checkpoint'


def test_nothing_there(tmp_path):
    assert newest_checkpoint(str(tmp_path / 'gone')) == (None, {})
    assert newest_checkpoint(str(tmp_path)) == (None, {})


@pytest.mark.parametrize('with_checksum', [True, False])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.9, 0.999])
def test_cut_short(tmp_path, share, with_checksum):
    """Without a checksum, loading tells."""
    write(tmp_path, 'epoch_1.pth', 5)
    path = write(tmp_path, 'epoch_2.pth', 10)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    if not with_checksum:
        (tmp_path / '.epoch_2.pth.sha256').unlink()
    found, skipped = newest_checkpoint(str(tmp_path))
    assert found == str(tmp_path / 'epoch_1.pth')
    assert list(skipped) == [str(path)]
    by_loading = 'cut short?' if share else 'it is empty'
    assert ('differs from .epoch_2.pth.sha256' if with_checksum else by_loading) in skipped[str(path)]


def test_every_flipped_bit_is_found(tmp_path):
    write(tmp_path, 'epoch_1.pth', 5)
    path = write(tmp_path, 'epoch_2.pth', 10)
    flip(path)
    found, skipped = newest_checkpoint(str(tmp_path))
    assert found == str(tmp_path / 'epoch_1.pth')
    assert skipped[str(path)].startswith(f'{path} is not what was written')


def test_no_checksum_is_no_fault(tmp_path):
    """Older runs have none; a crash may leave none, or an empty one."""
    write(tmp_path, 'epoch_1.pth', 5)
    path = write(tmp_path, 'epoch_2.pth', 10)
    checksum = tmp_path / '.epoch_2.pth.sha256'
    assert checksum.read_text().split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    for content in ('', None):
        checksum.write_text(content) if content is not None else checksum.unlink()
        assert newest_checkpoint(str(tmp_path)) == (str(path), {})


def test_weights_alone_are_nothing_to_resume_from(tmp_path):
    write(tmp_path, 'epoch_1.pth', 5)
    torch.save(dict(state_dict={}), tmp_path / 'epoch_2.pth')
    found, skipped = newest_checkpoint(str(tmp_path))
    assert found == str(tmp_path / 'epoch_1.pth')
    assert 'is no checkpoint to resume from' in skipped[str(tmp_path / 'epoch_2.pth')]


def test_set_resume_says_what_it_does(cfg, tmp_path, capsys):
    for epoch in (1, 2):
        path = write(tmp_path, f'epoch_{epoch}.pth', 5 * epoch)
    flip(path)
    chosen = str(tmp_path / 'epoch_1.pth')
    assert set_resume(cfg, 'auto').source == chosen
    assert (cfg.resume, cfg.load_from) == (True, chosen)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'--resume: skipped {path} is not what was written')
    assert lines[1:] == [f'--resume: continuing from {chosen}']


def test_one_process_speaks(cfg, tmp_path, capsys, monkeypatch):
    write(tmp_path, 'epoch_1.pth', 5)
    monkeypatch.setenv('RANK', '1')
    set_resume(cfg, 'auto')
    assert capsys.readouterr().out == ''


def test_beginning(cfg, tmp_path, capsys):
    """Nothing there: training begins from scratch, with what the config loads; a requeued job may be that early."""
    cfg.load_from = 'start.pth'
    assert set_resume(cfg, 'auto') is None
    assert (cfg.resume, cfg.load_from) == (False, 'start.pth')
    assert capsys.readouterr().out == f'--resume: no checkpoint in {tmp_path}, training starts from scratch\n'


def test_all_are_damaged(cfg, tmp_path):
    """Training from scratch would write over them."""
    flip(write(tmp_path, 'epoch_1.pth', 5))
    with pytest.raises(UserError, match=r'no checkpoint in .* can be loaded:\n  .*epoch_1\.pth .*\nMove them away'):
        set_resume(cfg, 'auto')


def test_path(cfg, tmp_path):
    path = str(write(tmp_path, 'mine.pth', 5))
    assert set_resume(cfg, path).source == path
    assert (cfg.resume, cfg.load_from) == (True, path)
    with pytest.raises(UserError, match='does not exist'):
        set_resume(cfg, str(tmp_path / 'gone.pth'))


def test_where_checkpoints_are(cfg):
    """As mmengine's hook has it: in the work folder, or in its namesake under ``out_dir``."""
    assert checkpoint_folder(cfg) == cfg.work_dir
    assert checkpoint_templates(cfg) == TEMPLATES
    cfg.work_dir = 'a/run/'
    cfg.default_hooks.checkpoint.update(out_dir='/big', filename_tmpl='step{}.pth')
    assert checkpoint_folder(cfg) == '/big/run'
    assert checkpoint_templates(cfg) == (*TEMPLATES, 'step{}.pth')
    cfg.default_hooks.checkpoint.out_dir = 's3://bucket'
    assert checkpoint_folder(cfg) is None
    assert set_resume(cfg, 'auto') is None
    assert (cfg.resume, cfg.load_from) == (True, None)


def test_every_file_is_opened_once_at_most(tmp_path, monkeypatch):
    """Of each name the newest; the others only where it is damaged. The older name is not read to its end."""
    for epoch in (1, 2, 3):
        path = write(tmp_path, f'epoch_{epoch}.pth', 10 * epoch)
    write(tmp_path, 'interrupted.pth', 25)
    flip(path)
    opened, verified = [], []

    class Counting(read.CheckpointFile):
        def __init__(self, path):
            opened.append(os.path.basename(path))
            super().__init__(path)

        def verify(self):
            verified.append(os.path.basename(self.path))
            super().verify()

    monkeypatch.setattr(resume, 'CheckpointFile', Counting)
    found, skipped = resume.find_newest(str(tmp_path))
    assert found.source == str(tmp_path / 'interrupted.pth')
    assert list(skipped) == [str(path)]
    assert opened == ['epoch_3.pth', 'interrupted.pth', 'epoch_2.pth']
    assert verified == ['epoch_3.pth', 'interrupted.pth']


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='the system does not list open files')
def test_no_file_stays_open(tmp_path):
    for name, iteration in (('epoch_1.pth', 5), ('epoch_2.pth', 10), ('interrupted.pth', 7)):
        write(tmp_path, name, iteration)
    flip(tmp_path / 'epoch_2.pth')
    torch.save(dict(state_dict={}), tmp_path / 'iter_3.pth')
    before = set(os.listdir('/proc/self/fd'))
    assert newest_checkpoint(str(tmp_path))[0] == str(tmp_path / 'interrupted.pth')
    assert set(os.listdir('/proc/self/fd')) == before
