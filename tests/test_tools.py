"""``python -m mmccd.tools``: which of MMDetection's tools there are, and how a wrong name ends."""

from __future__ import annotations

import sys

import pytest

from mmccd import UserError, tools


@pytest.fixture
def argv(monkeypatch):
    """What a tool that runs in this process changes goes back."""
    monkeypatch.setattr(sys, 'argv', list(sys.argv))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    return sys.argv


def test_list(capsys):
    tools.main(['--list'])
    listed = capsys.readouterr().out.splitlines()
    assert 'analysis_tools:' in listed and 'model_converters:' in listed
    names = {line.strip() for line in listed if line.startswith('  ')}
    assert names == set(tools.find_tools())
    issue = {'confusion_matrix', 'analyze_results', 'test_robustness', 'browse_dataset', 'analyze_logs', 'get_flops'}
    assert issue | {'benchmark', 'eval_metric', 'coco_error_analysis', 'print_config', 'fuse_results'} <= names


@pytest.mark.parametrize('name', ['confusion_matrix', 'confusion_matrix.py', 'analysis_tools/confusion_matrix'])
def test_names(name):
    path = tools.find_tool(name, tools.find_tools())
    assert path.parts[-2:] == ('analysis_tools', 'confusion_matrix.py') and path.is_file()


def test_two_tools_of_one_name():
    found = tools.find_tools()
    assert found['browse_dataset'].parent.name == 'analysis_tools'
    for name in [name for name in found if '/' in name]:
        assert found[name].stem in found and found[name] != found[found[name].stem]


@pytest.mark.parametrize(
    ('name', 'nearest'),
    [
        ('confusionmatrix', "'confusion_matrix'"),
        ('robustness', "'test_robustness'"),
        ('brows_dataset', "'browse_dataset'"),
    ],
)
def test_unknown_name(name, nearest):
    with pytest.raises(UserError, match=f"MMDetection has no tool '{name}'; did you mean .*{nearest}") as error:
        tools.main([name])
    assert '\n' not in str(error.value)


def test_name_like_no_other():
    with pytest.raises(UserError, match=r"MMDetection has no tool 'qqqqqqqq' \(--list shows all\)"):
        tools.main(['qqqqqqqq', '--help'])


def test_no_name(capsys):
    with pytest.raises(SystemExit) as end:
        tools.main([])
    assert end.value.code == 2 and 'the name of a tool is missing' in capsys.readouterr().err


def test_help_is_the_tools_own(argv, capsys):
    with pytest.raises(SystemExit) as end:
        tools.main(['analyze_logs', '--help'])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert 'Analyze Json Log' in shown and 'analyze_logs.py' in shown and 'plot_curve' in shown


def test_without_mmdet(monkeypatch):
    monkeypatch.setattr(tools.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='mmdet is not installed'):
        tools.find_tools()


def test_mmdet_without_its_tools(monkeypatch, tmp_path):
    spec = type('Spec', (), {'submodule_search_locations': [str(tmp_path / 'mmdet')]})
    monkeypatch.setattr(tools.importlib.util, 'find_spec', lambda name: spec)
    with pytest.raises(UserError, match=f'without its tools: neither {tmp_path}/mmdet/.mim/tools nor {tmp_path}/tools'):
        tools.find_tools()


def test_tools_of_a_checkout(monkeypatch, tmp_path):
    folder = tmp_path / 'tools' / 'analysis_tools'
    folder.mkdir(parents=True)
    (folder / 'one.py').write_text("if __name__ == '__main__':\n    print('it ran')\n")
    (folder / 'part.py').write_text('a module, not a tool')
    spec = type('Spec', (), {'submodule_search_locations': [str(tmp_path / 'mmdet')]})
    monkeypatch.setattr(tools.importlib.util, 'find_spec', lambda name: spec)
    assert tools.find_tools() == {'one': folder / 'one.py'}


def test_arguments_and_modules_of_the_tool(argv, monkeypatch, tmp_path, capsys):
    """It sees its own command line, and `tools` of its folder."""
    folder = tmp_path / 'tools' / 'analysis_tools'
    folder.mkdir(parents=True)
    (folder / 'one_x.py').write_text('VALUE = 7\n')
    (folder / 'one.py').write_text(
        "import sys\nif __name__ == '__main__':\n"
        '    from tools.analysis_tools.one_x import VALUE\n    print(VALUE, sys.argv[1:])\n'
    )
    monkeypatch.setattr(tools, 'find_tools', lambda: {'one': folder / 'one.py'})
    tools.main(['one', 'a', '--list', '-h'])
    for name in [name for name in sys.modules if name.split('.')[0] == 'tools']:
        del sys.modules[name]
    assert capsys.readouterr().out == "7 ['a', '--list', '-h']\n"
