"""What README, CONTRIBUTING and the pages of docs/ name is there."""

import argparse
import ast
import re
import urllib.parse

import pytest
import torch

PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'benchmarks/README.md',
    *(
        f'docs/{name}.md'
        for name in (
            'index',
            'installation',
            'quick_start',
            'imagenet_coco',
            'own_data',
            'visualization',
            'deployment',
            'results',
            'mathematics',
            'benchmarks',
            'fidelity',
            'faq',
            'distributed',
            'reliability',
            'write_an_attention',
            'api',
            'cuda',
            'contributing',
            'changelog',
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


def made_by_reader(text):
    """Stems of the files that a page has its reader write: their path on a line, then their code."""
    return [
        name.rpartition('/')[2].removesuffix('.py') for name in re.findall(r'^`(\S+\.py)`:\n\n```', text, re.MULTILINE)
    ]


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
    if page.name == 'CHANGELOG.md':  # names what was moved
        return
    text = page.read_text()
    made = made_by_reader(text)
    for name in PATH.findall(text):
        for path in expand(name):
            known = (root / path).exists() or any(stem in path for stem in made)
            assert known, f'{page.name} names {path}'


def test_python(page):
    """Python compiles."""
    for language, code in FENCE.findall(page.read_text()):
        if language == 'python':
            row = code.startswith(' ')  # of a table
            ast.parse(f'{{{code}}}' if row else code)


def commands(text):
    """(tool, what follows) of the shell commands of a page that start a tool of ours."""
    for language, code in FENCE.findall(text):
        for line in code.replace('\\\n', ' ').splitlines() if language == 'shell' else ():
            found = re.match(r'(?:[A-Z_]+=\S* )*(?:python )?(tools/\S+)(.*)', line.split(' #')[0])
            if found:
                yield found[1], found[2].split()


def test_commands_have_options_that_their_tool_knows(page, root):
    common = ''.join(path.read_text() for path in (root / 'mmccd' / 'cli').glob('*.py'))
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
    from mmccd.models.build import build_model

    text = page.read_text()
    own = (
        {f'mmccd.{name}' for name in re.findall(r'^class (\w+)', text, re.MULTILINE)} if made_by_reader(text) else set()
    )
    for _, words in commands(text):
        if '--cfg-options' not in words or any(word.rpartition('=')[2] in own for word in words):
            continue
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
        given, rest = parser.parse_known_args(words)
        config = next(word for word in rest if word.startswith('configs/'))
        build_model(load_config(str(root / config), given.cfg_options))


def test_configs_in_pages_are_configs(page, root, tmp_path):
    """Code that begins with ``_base_`` is a config: it loads, and its model can be built."""
    from mmccd.configs import load_config
    from mmccd.models.build import build_model

    for language, code in FENCE.findall(page.read_text()):
        if language == 'python' and code.startswith('_base_'):
            path = tmp_path / 'config.py'
            path.write_text(re.sub(r"'\./(?:configs/)?", f"'{root}/configs/", code))
            build_model(load_config(str(path)))


def prose(text):
    """A page without its code."""
    return re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)


# Words that a reader would have to guess, in place of the field's: image, rank, again, fix, dataset, continue, ...
WORDS = re.compile(r'\b(?:pictures?|whoever|anew|mend(?:s|ed|ing)?|data[ -]sets?)\b', re.IGNORECASE)
WORDS_OF_CODE = re.compile(rf'{WORDS.pattern}|\b(?:go(?:es)? on|cannot be had|no number)\b', re.IGNORECASE)
# Former names, which still work.
EXCEPTIONS = re.compile(r"'--pictures'|its name is 'picture'")


def test_words(page, root):
    """Those of the field, so that no reader has to guess. The changelog names what was renamed."""
    if page.name == 'CHANGELOG.md':
        return
    found = WORDS.findall(prose(page.read_text()))
    assert not found, f'{page.relative_to(root)}: {found}'


def test_words_of_the_code(root):
    """The same in comments, docstrings, messages and names, also where a sentence is broken into lines."""
    found = []
    for path in sorted(p for folder in ('mmccd', 'tools') for p in (root / folder).rglob('*')):
        if path.suffix in ('.py', '.sh') and '.mim' not in path.parts:
            text = EXCEPTIONS.sub('', path.read_text())
            # The end of a line, with the quotes and comment signs around it, is a space.
            text = re.sub(r'[\'"]?\n\s*(?:#\s*|f?[\'"])?', ' ', text)
            text = re.sub(r' +', ' ', text.replace('_', ' '))
            found += [f'{path.relative_to(root)}: {m[0]}' for m in WORDS_OF_CODE.finditer(text)]
    assert not found, '\n'.join(found)


def test_readme_is_short(root):
    """Everything else has a page."""
    assert len((root / 'README.md').read_text().splitlines()) <= 180


def test_no_paragraph_is_a_lone_word(page):
    """A line that a tool has broken off."""
    assert not re.findall(r'\n\n(\w{1,12})\n\n', prose(page.read_text()))


def work_folders(text):
    """Files below work_dirs/ that a page's commands read, and the folders that its commands or ``make demo`` write."""
    shell = '\n'.join(code for language, code in FENCE.findall(text) if language in ('shell', 'python'))
    return set(re.findall(r'work_dirs/(?!demo\b)(\w+_digits)/epoch_\d+\.pth', shell))


def test_demo_checkpoints_are_where_the_demo_writes_them(page):
    """``make demo`` writes into work_dirs/demo; a training of a page itself would have to be on it."""
    text = page.read_text()
    for config in work_folders(text):
        trained = re.search(rf'tools/(?:train\.py|dist_train\.sh) configs/{config}\.py(?!.*--work-dir)', text)
        assert trained, f'{page.name}: nothing on the page writes work_dirs/{config}'


def test_stock_config_of_the_readme_keeps_pretrained_weights(root, tmp_path):
    """Its first outputs are the plain network's, and the new gates of the frozen stage are trained."""
    from mmdet.models import ResNet
    from mmengine.registry import init_default_scope

    from mmccd.configs import load_config
    from mmccd.registry import MODELS

    [code] = [c for language, c in FENCE.findall((root / 'README.md').read_text()) if c.startswith('_base_')]
    weights = tmp_path / 'resnet50.pth'
    plain = ResNet(50)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(dict(plain.state_dict(), **{'fc.weight': torch.ones(1000, 2048), 'fc.bias': torch.ones(1000)}), weights)
    path = tmp_path / 'config.py'
    assert 'torchvision://resnet50' in code
    path.write_text(code.replace('torchvision://resnet50', str(weights)))
    cfg = load_config(str(path))
    init_default_scope(cfg.default_scope)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()

    x = torch.randn(2, 3, 64, 64)
    backbone.eval()
    plain.eval()
    for found, expected in zip(backbone(x), plain(x)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    backbone.train()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert {name for name in trained if name.startswith('layer1.')} == {
        f'layer1.{i}.ccd.{name}' for i in range(3) for name in ('scale', 'bias')
    }
    assert len([name for name in trained if '.ccd.' in name]) == 32


def test_the_table_of_attentions_has_their_options(root):
    """With defaults, and the place in checkpoints."""
    import inspect

    from mmccd.models.layers import attention_types

    rows = re.findall(r'^\| `mmccd\.(\w+)` \| (.+) \| (.+) \|$', (root / 'docs' / 'api.md').read_text(), re.MULTILINE)
    assert {name for name, *_ in rows} == set(attention_types())
    given = ('in_channels', 'out_channels', 'stride', 'dilation', 'conv_cfg', 'norm_cfg', 'init_cfg')  # by the backbone
    for name, options, key in rows:
        layer = attention_types()[name]
        expected = {n: p.default for n, p in inspect.signature(layer).parameters.items() if n not in given}
        found = re.findall(r'`(\w+)` \(((?:[^()]|\([^()]*\))*)\)', options)
        assert {n for n, _ in found} == set(expected), name
        for option, text in found:
            assert re.match(re.escape(repr(expected[option])) + r'(?:$|[,:])', text), (name, option, text)
        assert name == 'SK' or key == f'`{layer._abbr_}`'


def test_figures_are_small(root):
    for path in (root / 'docs' / 'images').iterdir():
        assert path.stat().st_size < 600_000, path
