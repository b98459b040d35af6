"""What README, CONTRIBUTING and the pages of docs/ name is there."""

import argparse
import ast
import re
import textwrap
import urllib.parse

import pytest

PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    'benchmarks/README.md',
    *(
        f'docs/{name}.md'
        for name in (
            'index',
            'quick_start',
            'imagenet_coco',
            'own_data',
            'visualization',
            'deployment',
            'mathematics',
            'benchmarks',
            'fidelity',
            'faq',
            'distributed',
            'reliability',
            'write_an_attention',
            'api',
            'contributing',
        )
    ),
]
LINK = re.compile(r'\[[^]]*\]\(([^)\s]+)\)')
DIRECTIVE = re.compile(r'^(?:```|:::)\{(?:include|literalinclude|image|figure)\} (\S+)', re.MULTILINE)
PATH = re.compile(r'(?<![\w/.*-])(?:\./)?((?:configs|tools|tests|mmccd|benchmarks|docs|docker)/[\w./{},-]*[\w}/])')
FENCE = re.compile(r'^```(\w+)\n(.*?)^```', re.MULTILINE | re.DOTALL)


@pytest.fixture(params=PAGES)
def page(request, root):
    return root / request.param


def anchors(text):
    """Anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r'^#+ (.+)$', re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', t.lower()).replace(' ', '-') for t in titles}


def expand(path):
    """Names that a shell makes of ``a_{b,c}``."""
    found = re.search(r'\{([^{}]*)\}', path)
    if not found:
        return [path]
    return [name for part in found[1].split(',') for name in expand(path[: found.start()] + part + path[found.end() :])]


def test_every_page_is_looked_at(root):
    assert {f'docs/{p.name}' for p in (root / 'docs').glob('*.md')} <= set(PAGES)


def test_links_and_anchors(page):
    text = page.read_text()
    for target in LINK.findall(text) + DIRECTIVE.findall(text):
        if re.match(r'(https?|mailto):', target):
            continue
        path, _, anchor = urllib.parse.unquote(target).partition('#')
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f'{page.name} links to {target}'
        if anchor and linked.suffix == '.md':
            assert anchor in anchors(linked.read_text()), f'{page.name} links to {target}'


def test_paths(page, root):
    for name in PATH.findall(page.read_text()):
        for path in expand(name):
            assert (root / path).exists(), f'{page.name} names {path}'


def test_python(page):
    """Python compiles."""
    for language, code in FENCE.findall(page.read_text()):
        if language == 'python':
            ast.parse(textwrap.dedent(code))


def commands(text):
    """(tool, what follows) of the shell commands of a page that start a tool of ours."""
    for language, code in FENCE.findall(text):
        for line in code.replace('\\\n', ' ').splitlines() if language == 'shell' else ():
            found = re.match(r'(?:[A-Z_]+=\S* )*(?:python )?(tools/\S+)(.*)', line.split(' #')[0])
            if found:
                yield found[1], found[2].split()


def test_commands_have_options_that_their_tool_knows(page, root):
    common = (root / 'mmccd' / 'utils' / 'launch.py').read_text()
    for tool, words in commands(page.read_text()):
        if tool.endswith('.sh'):
            tool = f'tools/{"test" if "_test" in tool else "train"}.py'
        source = (root / tool).read_text()
        for option in words:
            if option.startswith('--'):
                assert f"'{option}'" in source or f"'{option}'" in common, f'{page.name}: {tool} has no {option}'


def test_cfg_options_fit_their_config(page, root):
    """Entries that the config has, values that its model takes."""
    from mmccd.cli.arguments import OptionsAction
    from mmccd.configs import load_config
    from mmccd.models.build import check_model

    for _, words in commands(page.read_text()):
        if '--cfg-options' not in words:
            continue
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
        given, rest = parser.parse_known_args(words)
        config = next(word for word in rest if word.startswith('configs/'))
        check_model(load_config(str(root / config), given.cfg_options))


def test_configs_in_pages_are_configs(page, root, tmp_path):
    """Code that begins with ``_base_`` is a config: it loads, and its model can be built."""
    from mmccd.configs import load_config
    from mmccd.models.build import check_model

    for language, code in FENCE.findall(page.read_text()):
        if language == 'python' and code.startswith('_base_'):
            path = tmp_path / 'config.py'
            path.write_text(re.sub(r"'\./(?:configs/)?", f"'{root}/configs/", code))
            check_model(load_config(str(path)))


def test_figures_are_small(root):
    for path in (root / 'docs' / 'images').iterdir():
        assert path.stat().st_size < 600_000, path
