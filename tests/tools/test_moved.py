"""Tools under the paths that they had before."""

import pytest

MOVED = {
    'make_config.py': 'make_config.py',
    **{name: f'checks/{name}' for name in ('check_dataset.py', 'check_env.py', 'check_pretrained.py')},
    **{name: f'demo/{name}' for name in ('demo.py', 'demo_trees.py')},
}


def test_these_are_all(root):
    assert {p.name for p in (root / 'tools' / 'misc').glob('*.*')} == set(MOVED)


@pytest.mark.parametrize('name', MOVED)
def test_the_old_path_is_the_new_one(call_tool, capsys, name):
    """The same help and the same end; one line beside them says where the tool is."""
    notice = f'tools/misc/{name} is tools/{MOVED[name]} now\n'
    outputs = []
    for path in (f'misc/{name}', MOVED[name]):
        for arguments in (('--help',), ('--no-such-option', '7')):
            code, err = call_tool(path, *arguments)
            outputs.append((code, capsys.readouterr().out, err))
    (old_help, old_error), (new_help, new_error) = outputs[:2], outputs[2:]
    assert new_help[0] == 0
    assert new_help[1].startswith(f'usage: {name}')
    assert new_error[0] == 2
    assert 'error: ' in new_error[2]
    assert old_help == (*new_help[:2], notice + new_help[2])
    assert old_error == (*new_error[:2], notice + new_error[2])


def test_exit_code_and_arguments(call_tool, toy_coco, monkeypatch):
    monkeypatch.chdir(toy_coco)
    code, err = call_tool('misc/make_config.py', '--train', 'nothing', '--val', 'val')
    assert code == 2
    assert "error: --train: 'nothing' must be a folder" in err


@pytest.mark.long
def test_as_a_process(run_tool, toy_coco):
    """Finds an unreadable image from worker processes too, and ends with the tool's own 1."""
    (toy_coco / 'train' / '2.jpg').write_bytes(b'')
    options = ['train.json', '--workers', 0, '--out', 'own.py', '--force', '--base', 'retinanet_ccd_r18_fpn_digits']
    run_tool('misc/make_config.py', '--train', 'train', *options, '--val', 'val', 'val.json', cwd=toy_coco)
    done = run_tool('misc/check_dataset.py', 'own.py', '--workers', 2, cwd=toy_coco, expect=1)
    assert 'image-broken' in done.stdout
    assert done.stderr.splitlines()[0] == 'tools/misc/check_dataset.py is tools/checks/check_dataset.py now'
