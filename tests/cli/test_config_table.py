"""``make configs``: what is in configs/ is what the table makes."""

from __future__ import annotations

import shutil

import pytest
from mmengine.config import Config

import mmccd
from mmccd.cli import config_table
from mmccd.cli.config_rows import Attention, Schedule
from mmccd.cli.config_table import MARK, files, leaves, write
from mmccd.errors import UserError


@pytest.fixture
def copy(root, tmp_path):
    """A copy of configs/ that may be changed."""
    return shutil.copytree(root / 'configs', tmp_path / 'configs', ignore=shutil.ignore_patterns('__pycache__'))


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*.*') if p.is_file()}


def test_the_table_changes_nothing(root, copy):
    """Byte for byte; what it says that it writes, it writes from scratch as well."""
    assert write(copy) == {}
    assert contents(copy) == contents(root / 'configs')
    made = [name for name, content in contents(copy).items() if content.startswith(MARK.encode())]
    assert sorted(made) == sorted(files(copy))
    for name in made:
        (copy / name).unlink()
    assert write(copy) == dict.fromkeys(made, 'created')
    assert contents(copy) == contents(root / 'configs')


def test_few_are_written_by_hand():
    by_hand = set(mmccd.list_configs()) - set(leaves())
    assert by_hand == {
        'r50_8xb32_in1k',
        'r18_digits',
        'retinanet_r18_fpn_digits',
        'r18_fashion',
        'r18_solar',
        'retinanet_r18_fpn_fashion',
        'r18-w32_fashion',
        'retinanet_r18-w32_fpn_fashion',
        'retinanet_r18_fpn_trees',
        'retinanet_ccd_r50_fpn_fsdp-1x_coco',
        'cascade_rcnn_ccd_r18_fpn_digits',
    }


def test_a_change_is_put_right(copy):
    (copy / 'se_r18_digits.py').write_text(MARK + 'model = dict()\n')
    (copy / 'ccd-old_r50_8xb32_in1k.py').write_text(MARK + 'model = dict()\n')  # the table had it once
    (copy / 'mine_r18_digits.py').write_text("_base_ = './r18_digits.py'\n")
    (copy / 'ge_r18_digits.py').unlink()
    assert write(copy) == {
        'ccd-old_r50_8xb32_in1k.py': 'deleted',
        'ge_r18_digits.py': 'created',
        'metafile.yml': 'changed',
        'se_r18_digits.py': 'changed',
    }
    assert not (copy / 'ccd-old_r50_8xb32_in1k.py').exists()
    assert 'SE' in Config.fromfile(copy / 'se_r18_digits.py').model.backbone.attention.type
    assert '  - Name: mine_r18_digits\n    In Collection: ResNet\n' in (copy / 'metafile.yml').read_text()
    assert write(copy) == {}


def test_what_make_configs_prints(copy, monkeypatch, capsys):
    monkeypatch.setattr(config_table, '__file__', str(copy.parent / 'mmccd/cli/config_table.py'))
    config_table.main()
    assert capsys.readouterr().out == f'{copy}: nothing to change\n'
    (copy / 'ge_r18_digits.py').unlink()
    (copy / 'se_r18_digits.py').write_text(MARK)
    (copy / 'ccd-old_r50_8xb32_in1k.py').write_text(MARK)
    config_table.main()
    assert capsys.readouterr().out == (
        'ccd-old_r50_8xb32_in1k.py: deleted\nge_r18_digits.py: created\nse_r18_digits.py: changed\n'
    )


def test_one_row_is_one_attention(copy, monkeypatch):
    """Its base, its config, its collection and its entry; with another row of COMPARED the detectors, too."""
    row = Attention('xyz', 'XYZ', 'A Paper', 'https://example.org/xyz')
    monkeypatch.setattr(config_table, 'ATTENTIONS', (*config_table.ATTENTIONS, row))
    assert write(copy) == {
        '_base_/attention/xyz.py': 'created',
        'metafile.yml': 'changed',
        'xyz_r50_8xb32_in1k.py': 'created',
        'xyz_r18_fashion.py': 'created',
        'xyz_r18_solar.py': 'created',
    }
    assert Config.fromfile(copy / 'xyz_r50_8xb32_in1k.py').model.backbone.attention == dict(type='mmccd.XYZ')
    text = (copy / 'metafile.yml').read_text()
    assert '  - Name: XYZ\n    Paper:\n      Title: "A Paper"\n      URL: https://example.org/xyz\n' in text
    assert '  - Name: xyz_r50_8xb32_in1k\n    In Collection: XYZ\n' in text
    schedules = {'1x': Schedule('coco_1x', dict(retinanet=('xyz',)))}
    monkeypatch.setattr(config_table, 'SCHEDULES', config_table.SCHEDULES | schedules)
    write(copy)
    backbone = Config.fromfile(copy / 'retinanet_xyz_r50_fpn_1x_coco.py').model.backbone
    assert backbone.attention == dict(type='mmccd.XYZ')
    assert backbone.init_cfg.checkpoint == 'checkpoints/xyz_r50_in1k.pth'


def test_nothing_written_by_hand_is_replaced(copy):
    (copy / 'se_r18_digits.py').write_text('model = dict()\n')
    with pytest.raises(UserError, match='se_r18_digits'):
        write(copy)
    assert (copy / 'se_r18_digits.py').read_text() == 'model = dict()\n'
