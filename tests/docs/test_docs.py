"""What README, CONTRIBUTING and the pages of docs/ name is there."""

import argparse
import ast
import functools
import re
import runpy
import shlex
import signal
import sys
import urllib.parse
from unittest import mock

import pytest
import torch

from mmccd.cli.parser import RenamedOption

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
            'model_zoo',
            'datasets',
            'own_data',
            'logging',
            'visualization',
            'deployment',
            'results',
            'mathematics',
            'benchmarks',
            'fidelity',
            'faq',
            'distributed',
            'reliability',
            'any_detector',
            'any_network',
            'padding',
            'detector_matrix',
            'write_an_attention',
            'attention_audit',
            'attention_bench',
            'check_attention',
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


def prose(text):
    """A page without its code."""
    return re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)


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


PROGRAM = re.compile(r'(?:^|[\s(])(?:python )?((?:tools|benchmarks|docs)/[\w/]+\.(?:py|sh))((?:\s.*)?)$')


def inline_code(text):
    """What stands in backticks, its lines joined."""
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose(text))]


def commands(text):
    """(program, its arguments) of the commands of a page, in shell code and within lines, that start one of ours."""
    lines = inline_code(text)
    for language, code in FENCE.findall(text):
        lines += code.replace('\\\n', ' ').splitlines() if language == 'shell' else ()
    for line in lines:
        found = PROGRAM.search(re.split(r' #| {4,}\(| \[', line)[0])
        if found:
            yield found[1], shlex.split(found[2])


class Parses(BaseException):
    """Carries the parser of a program that is about to parse its arguments."""


@functools.cache
def parser_of(path):
    """The ``argparse`` parser that a program makes for itself; None if it parses no arguments."""

    def parse_args(self, *args, **kwargs):
        raise Parses(self)

    before = signal.getsignal(signal.SIGTERM)  # the demos' handler
    try:
        with (
            mock.patch.object(argparse.ArgumentParser, 'parse_args', parse_args),
            mock.patch.object(sys, 'path', [str(path.parent), *sys.path]),
            mock.patch.object(sys, 'argv', [str(path)]),
        ):
            runpy.run_path(str(path), run_name='__main__')
    except Parses as found:
        return found.args[0]
    finally:
        signal.signal(signal.SIGTERM, before)
    return None


def options_of(path):
    """What ``--help`` of a program shows, without former names."""
    parsers = [parser_of(path)]
    for parser in parsers:  # those of its commands as well
        commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parsers += [p for a in commands for p in a.choices.values()]
    actions = [a for p in parsers for a in p._actions if a.help != argparse.SUPPRESS]
    return {
        name
        for a in actions
        for name in a.option_strings
        if not (isinstance(a, RenamedOption) and name != a.option_strings[0])
    }


def behind_launcher(program, words):
    """(tool, its arguments) that a launcher script starts."""
    if not program.endswith('.sh'):
        return program, words
    tool, own = ('test', 2) if '_test' in program else ('train', 1)  # positional arguments of the tool
    if 'slurm' in program:
        words = words[2:]  # PARTITION JOB_NAME
    else:
        words = [*words[:own], *words[own + 1 :]]  # GPUS
    return f'tools/{tool}.py', words


def check_command(root, program, words, where):
    """The command parses, by the program's own parser, and abbreviates nothing; options alone need nothing beside."""
    if not words:
        return  # named, not called
    program, words = behind_launcher(program, words)
    path = root / program
    for word in words:
        if word.startswith('--'):
            assert word.split('=')[0] in options_of(path), f'{where}: {program} has no {word}'
    with mock.patch.object(argparse.ArgumentParser, 'error', _unparsed):
        try:
            parser_of(path).parse_args(words)
        except ValueError as e:
            if words and words[0].startswith('--') and 'are required' in str(e):
                return
            raise AssertionError(f'{where}: {program} {shlex.join(words)}: {e}') from None


def _unparsed(parser, message):
    raise ValueError(message)


@pytest.mark.parametrize(
    ('command', 'reason'),
    [
        ('tools/train.py c.py --tta', 'has no --tta'),  # test.py's
        ('tools/train.py c.py --resum', 'has no --resum'),
        ('tools/train.py c.py d.py', 'unrecognized arguments: d.py'),
        ('tools/train.py --work-dir w', None),
        ('tools/dist_test.sh c.py c.pth 8 --out-item pictures', "invalid choice: 'pictures'"),
        ('tools/dist_train.sh c.py 8 --resume', None),
        ('tools/slurm_train.sh gpu job', 'required: config'),
        ('tools/checks/check_dataset.py c.py --sets val', 'has no --sets'),  # a former name
    ],
)
def test_how_commands_are_checked(root, command, reason):
    program, *words = command.split()
    if reason is None:
        check_command(root, program, words, 'page')
        return
    with pytest.raises(AssertionError, match=re.escape(reason)):
        check_command(root, program, words, 'page')


def test_commands_are_those_of_their_tool(page, root):
    for program, words in commands(page.read_text()):
        check_command(root, program, words, page.name)


def test_examples_of_help_are_those_of_their_tool(root):
    """The commands that ``--help`` shows."""
    count = 0
    for path in sorted((root / 'tools').rglob('*.py')):
        if 'misc' in path.parts or path.name == 'dist_run.py':  # forwarders, and torchrun
            continue
        epilog = (parser_of(path).epilog or '').replace('\\\n', ' ')
        for program, words in commands(f'```shell\n{epilog}\n```\n'):
            check_command(root, program, words, f'{path.name} --help')
            count += 1
    assert count > 30


def sections(text):
    """A page in pieces that begin with a heading of the second level or with the page."""
    return re.split(r'^## ', text, flags=re.MULTILINE)


def test_options_within_lines_are_those_of_a_tool_beside_them(page, root):
    """An option alone, such as ``--resume``, is one of a tool that its section names; of train.py if it names none."""
    if page.name in ('CHANGELOG.md', 'CONTRIBUTING.md'):  # of former tools, of ruff
        return
    tools = {path.name: path.relative_to(root).as_posix() for path in (root / 'tools').rglob('*.*')}
    for section in sections(page.read_text()):
        paths = re.findall(r'(?<![\w/])(?:tools|benchmarks)/[\w/]+\.(?:py|sh)', section)
        paths += [tools[name] for name in re.findall(r'(?<![\w/])\w+\.(?:py|sh)', section) if name in tools]
        named = {behind_launcher(p, [])[0] for p in paths}
        named = {p for p in named if parser_of(root / p)}
        known = {'--help'}.union(*(options_of(root / p) for p in named or ['tools/train.py']))
        for code in inline_code(section):
            if code.startswith('--'):
                assert code.split()[0] in known, f'{page.name}: none of {sorted(named)} has {code}'


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


# Words that a reader would have to guess, in place of the field's: image, rank, again, fix, dataset, continue, ...
WORDS = re.compile(r'\b(?:pictures?|whoever|anew|mend(?:s|ed|ing)?|data[ -]sets?|stand-ins?)\b', re.IGNORECASE)
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
    """Results, which need tables, and how to begin; everything else has a page."""
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
    for name, options, key in rows:
        layer = attention_types()[name]
        given = ('in_channels', 'conv_cfg', 'norm_cfg', 'init_cfg')  # by the backbone
        if layer.replaces_conv:
            given += ('out_channels', 'stride', 'dilation')
        expected = {n: p.default for n, p in inspect.signature(layer).parameters.items() if n not in given}
        found = re.findall(r'`(\w+)` \(((?:[^()]|\([^()]*\))*)\)', options)
        assert {n for n, _ in found} == set(expected), name
        for option, text in found:
            assert re.match(re.escape(repr(expected[option])) + r'(?:$|[,:])', text), (name, option, text)
        assert name == 'SK' or key == f'`{layer._abbr_}`'


def test_the_list_of_attentions(root):
    """Parameters in a ResNet-50, and whether a layer can start as the identity."""
    import inspect

    from mmccd.models import AttentionResNet
    from mmccd.models.layers import attention_types

    text = (root / 'docs' / 'write_an_attention.md').read_text()
    rows = re.findall(r'^\| `mmccd\.(\w+)` \| (.+) \| (.+) \| ([\d,]+) \| (.+) \|$', text, re.MULTILINE)
    assert {name for name, *_ in rows} == set(attention_types())

    def count(**options):
        with torch.device('meta'):
            return sum(p.numel() for p in AttentionResNet(50, **options).parameters())

    plain = count()
    for name, paper, _, parameters, identity in rows:
        assert count(attention=dict(type=f'mmccd.{name}')) - plain == int(parameters.replace(',', '')), name
        assert 'https://' in paper or name == 'CCD'
        can = 'identity_init' in inspect.signature(attention_types()[name]).parameters
        assert identity == ('`identity_init`' if can else 'always' if name == 'GC' else 'no'), name


def test_figures_are_small(root):
    for path in (root / 'docs' / 'images').iterdir():
        assert path.stat().st_size < 600_000, path
