"""Formulas as MathML, which browsers draw without a script, a font or a network."""

from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def to_mathml(node: nodes.math | nodes.math_block, display: str) -> str:
    latex = node.astext()
    if r'\\' in latex and r'\begin' not in latex:  # as Sphinx does for MathJax
        latex = rf'\begin{{split}}{latex}\end{{split}}'
    try:
        mathml = convert(latex, display=display)
        ElementTree.fromstring(mathml)
    except Exception as e:  # latex2mathml raises errors of many types
        logger.warning('formula cannot be converted: %s: %s', e, latex, location=node)
        raise nodes.SkipNode from e
    return mathml


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(to_mathml(node, 'inline'))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math-block">{to_mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer('mathml', (visit_inline, None), (visit_block, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
