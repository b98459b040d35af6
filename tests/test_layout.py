"""The layout: which folder may import which, and how long a file may be. Read off the syntax trees, nothing is run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

# Folders and files of mmccd from the bottom up. A row imports itself and what stands above it in this table, never a
# later row; names beside each other in a row are siblings, which do not import each other.
ROWS = (
    ('errors', 'env', 'registry', 'version', 'compat'),
    ('ops', 'configs', 'checkpoints'),
    ('models',),
    ('data',),
    ('apis',),
    ('engine', 'deployment', 'analysis'),
    ('cli',),
    ('tools',),  # MMDetection's, by `python -m mmccd.tools`
)
ROW_OF = {name: i for i, row in enumerate(ROWS) for name in row}
# Beyond the rows: the only siblings that may meet.
SIBLINGS = {('compat', 'errors'), ('compat', 'env'), ('compat', 'registry'), ('env', 'errors')}
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')
MAX_LINES = 450


class Import(NamedTuple):
    """An import statement: where it stands, and the module that it names."""

    path: str
    line: int
    module: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: imports {self.module}'


def modules(root: Path, folder: str = 'mmccd') -> list[Path]:
    return sorted(p for p in (root / folder).rglob('*.py') if '.mim' not in p.parts)


def imports_of(source: str, path: str) -> list[Import]:
    """All imports of a file, inside functions too, relative ones resolved, those for type checkers alone left out."""
    package = list(Path(path).parts[:-1])
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ('TYPE_CHECKING', 'typing.TYPE_CHECKING'):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = '.'.join([*base, *([node.module] if node.module else [])])
            # ``from mmccd import ops`` and ``from . import ops`` name modules by their aliases.
            names = [f'{start}.{alias.name}' for alias in node.names] if start == 'mmccd' else [start]
            found.extend(Import(path, node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ('import_module', 'importlib.import_module'):
            for name in [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]:
                found.append(Import(path, node.lineno, f'{".".join(package)}{name}' if name[0] == '.' else name))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def room(module: str) -> str | None:
    """The folder or file of mmccd that a module is in; None for other packages and for mmccd itself."""
    package, *rest = module.split('.')
    return rest[0] if package == 'mmccd' and rest and rest[0] in ROW_OF else None


def violation(found: Import, own: str) -> str | None:
    """What is wrong with an import of the room ``own``, or None."""
    other = room(found.module)
    if other is None or other == own or (own, other) in SIBLINGS:
        return None
    mine, theirs = ROW_OF[own], ROW_OF[other]
    if theirs < mine:
        return None
    why = 'siblings do not import each other' if theirs == mine else 'a later row'
    return f'{found}: row {mine + 1} ({own}) must not import row {theirs + 1} ({other}): {why}'


def violations(source: str, path: str) -> list[str]:
    own = Path(path).parts[1].removesuffix('.py')
    return [text for found in imports_of(source, path) if (text := violation(found, own))]


@pytest.mark.parametrize(
    ('path', 'source', 'expected'),
    [
        ('mmccd/ops/functional.py', 'from mmccd.models import CCD', 'functional.py:1: imports mmccd.models'),
        ('mmccd/ops/a/b.py', 'x = 1\nfrom ...cli import checks', 'b.py:2: imports mmccd.cli'),
        ('mmccd/models/build.py', 'def f():\n    import mmccd.apis', 'build.py:2: imports mmccd.apis'),
        ('mmccd/configs.py', 'from . import ops', 'row 2 (configs) must not import row 2 (ops)'),
        ('mmccd/engine/a.py', 'from ..analysis.cam import cam', 'siblings'),
        ('mmccd/errors.py', 'from mmccd import ops', 'row 1 (errors) must not import row 2 (ops)'),
        ('mmccd/compat/a.py', 'import importlib\nimportlib.import_module("mmccd.data")', 'row 4 (data)'),
        ('mmccd/data/a.py', 'if TYPE_CHECKING:\n    pass\nelse:\n    from mmccd import cli', 'row 7 (cli)'),
    ],
)
def test_the_rule_finds(path, source, expected):
    [text] = violations(source, path)
    assert expected in text


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        ('mmccd/cli/runner.py', 'from mmccd.apis import init_model\nfrom mmccd import __version__, errors'),
        ('mmccd/models/a.py', 'from mmccd.checkpoints.read import x\nfrom .layers.ccd import CCD'),
        ('mmccd/compat/mmcv_ops/a.py', 'from ...errors import suggest\nfrom ... import env'),
        ('mmccd/data/a.py', 'if TYPE_CHECKING:\n    from mmccd.cli import checks'),
        ('mmccd/ops/a.py', 'import torch\nimport os.path as osp'),
    ],
)
def test_the_rule_allows(path, source):
    assert violations(source, path) == []


def test_every_module_has_a_row(root):
    rooms = {p.relative_to(root / 'mmccd').parts[0].removesuffix('.py') for p in modules(root)} - {'__init__'}
    assert rooms == set(ROW_OF)


def test_imports_go_one_way(root):
    found = []
    for path in modules(root):
        name = str(path.relative_to(root))
        if name != 'mmccd/__init__.py':
            found += violations(path.read_text(), name)
    assert not found, '\n' + '\n'.join(found)


def test_the_package_itself_loads_the_first_row_alone(root):
    """Its ``__getattr__`` loads more when it is asked to; test_import.py looks at what a process has loaded."""
    tree = ast.parse((root / 'mmccd' / '__init__.py').read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    loaded = {room(found.module) for found in imports_of(ast.unparse(tree), 'mmccd/__init__.py')} - {None}
    assert loaded and loaded <= set(ROWS[0])


def test_operators_and_basis_import_no_openmmlab(root):
    """The operator is for any PyTorch model; what everything imports must not need everything."""
    found = []
    for path in modules(root):
        name = str(path.relative_to(root))
        if Path(name).parts[1].removesuffix('.py') in ('ops', 'errors', 'env', 'version'):
            found += [str(i) for i in imports_of(path.read_text(), name) if i.module.split('.')[0] in OPENMMLAB]
    assert not found, '\n' + '\n'.join(found)


def test_nothing_imports_tools(root):
    found = [
        str(i)
        for path in modules(root)
        for i in imports_of(path.read_text(), str(path.relative_to(root)))
        if i.module.split('.')[0] in ('tools', 'tests', 'benchmarks')
    ]
    assert not found, '\n' + '\n'.join(found)


def test_names_are_suggested_in_one_place(root):
    found = [
        str(i)
        for folder in ('mmccd', 'tools', 'benchmarks')
        for path in modules(root, folder)
        for i in imports_of(path.read_text(), str(path.relative_to(root)))
        if i.module == 'difflib' and i.path != 'mmccd/errors.py'
    ]
    assert not found, 'mmccd.errors.suggest does this:\n' + '\n'.join(found)


def test_files_are_of_one_idea(root):
    """Longer ones have two."""
    lines = {str(p.relative_to(root)): len(p.read_text().splitlines()) for p in modules(root)}
    assert not {name: n for name, n in lines.items() if n > MAX_LINES}


def test_no_folder_for_whatever_has_no_home(root):
    homeless = {'utils', 'util', 'misc', 'common', 'helpers'}
    names = {p.stem for p in modules(root)} | {p.name for p in (root / 'mmccd').rglob('*') if p.is_dir()}
    assert not names & homeless
