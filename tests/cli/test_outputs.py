"""Files and folders that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmccd.cli.demo import demo_arguments, open_work_dir
from mmccd.cli.made_data import DataFolder
from mmccd.cli.outputs import check_file, check_folder, make_folder_of
from mmccd.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('file').write_text('')
    Path('folder').mkdir()


def test_what_can_be_written():
    """Nothing is made on the way."""
    for path in ('new', 'folder', 'folder/new/deep', 'folder/', '.'):
        check_folder(path, '--x')
    for path in ('new', 'file', 'folder/new', 'new/deep/file.json'):
        check_file(path, '--x')
    assert sorted(os.listdir()) == ['file', 'folder']
    make_folder_of('new/deep/file.json')
    make_folder_of('file')
    assert os.listdir('new/deep') == []


@pytest.mark.parametrize(
    ('check', 'path', 'rule'),
    [
        (check_folder, 'file', '--x file: file is no folder'),
        (check_folder, 'file/below/it', '--x file/below/it: file is no folder'),
        (check_file, 'folder', '--x folder is a folder: name a file'),
        (check_file, 'file/below', '--x file/below: file is no folder'),
    ],
)
def test_what_cannot(check, path, rule):
    with pytest.raises(UserError) as e:
        check(path, '--x')
    assert str(e.value) == rule


def test_without_permission(monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # as root, everything is permitted
    with pytest.raises(UserError, match=r'^--x folder: folder cannot be written into$'):
        check_folder('folder', '--x')


def test_demos_and_converters():
    """They make their folders by themselves."""
    with pytest.raises(UserError, match=r'^--work-dir file: file is no folder$'):
        open_work_dir(demo_arguments('', 'w').parse_args(['--work-dir', 'file']), '.')
    with pytest.raises(UserError, match=r'^--out file: file is no folder$'):
        DataFolder(Path('file/data'), 'tool', '1', 'manifest.json').make({}, False, lambda folder, parameters: {})
