"""Sphinx: ``sphinx-build -W --keep-going -b html docs docs/_build/html``, with what docs/requirements.txt names.

The pages need no network, neither to be built nor to be read: formulas are MathML.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / '_ext')]

import mmccd  # noqa: E402  before anything of mmdet, which autodoc imports

project = 'mmccd'
author = 'the mmccd contributors'
version = release = mmccd.__version__
html_title = f'mmccd {version}'

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton', 'mathml', 'notebooks']
exclude_patterns = ['_build', '_ext', 'requirements.txt', 'runs']
myst_enable_extensions = ['attrs_block', 'colon_fence', 'dollarmath']
myst_heading_anchors = 3
# Files of the repository that pages link to (configs, tests, tools) are copied beside them.
html_math_renderer = 'mathml'
html_theme = 'furo'
# With STIX Two Math, which ziamath ships: not every system has a font for formulas.
html_static_path = ['_static', str(Path(find_spec('ziamath').origin).parent / 'fonts')]
html_css_files = ['custom.css']
html_copy_source = False
html_show_copyright = False
copybutton_selector = 'div:not(.output) > div.highlight > pre'
copybutton_prompt_text = r'>>> |\.\.\. '
copybutton_prompt_is_regexp = True

add_module_names = False
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # the docstrings have the types, and what they mean
napoleon_numpy_docstring = False
