"""Notebooks as pages: their Markdown, code and stored outputs. Nothing is executed; a test does that."""

import nbformat
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


def code(text: str) -> str:
    return f'````{{code-block}} python\n{text}\n````'


def output(cell: nbformat.NotebookNode, out: nbformat.NotebookNode) -> str:
    if 'image/png' in out.get('data', {}):
        # A notebook's image has no alternative text, so its cell has it: for readers who see no images.
        return f'![{cell.metadata.alt}](data:image/png;base64,{out.data["image/png"].strip()})'
    text = out.text if out.output_type == 'stream' else out.data['text/plain']
    return f'````{{code-block}} text\n:class: output\n\n{text.rstrip()}\n````'


def to_markdown(notebook: nbformat.NotebookNode) -> str:
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == 'markdown':
            parts.append(cell.source)
        elif cell.source:
            parts += [code(cell.source), *(output(cell, out) for out in cell.outputs)]
    return '\n\n'.join(parts)


class NotebookParser(MystParser):
    supported = ('ipynb',)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        super().parse(to_markdown(nbformat.reads(inputstring, as_version=4)), document)


def setup(app: Sphinx) -> dict:
    app.add_source_suffix('.ipynb', 'ipynb')
    app.add_source_parser(NotebookParser)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
