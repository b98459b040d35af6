"""The notebook runs, and its outputs are those that are stored in it."""

import importlib.util

import pytest


def texts(cell):
    """Text output of a cell, printed or its value."""
    return [
        out.text if out.output_type == 'stream' else out.data['text/plain']
        for out in cell.outputs
        if out.output_type == 'stream' or 'image/png' not in out.data
    ]


@pytest.mark.long
def test_the_tour(root):
    pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    nbformat = pytest.importorskip('nbformat')
    spec = importlib.util.spec_from_file_location('run_notebooks', root / 'docs' / 'notebooks' / 'run.py')
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)

    path = root / 'docs' / 'notebooks' / 'ccd_tour.ipynb'
    stored, new = nbformat.read(path, as_version=4), run.execute(path)
    assert [cell.source for cell in new.cells] == [cell.source for cell in stored.cells]
    code = [(a, b) for a, b in zip(stored.cells, new.cells) if a.cell_type == 'code']
    images = 0
    for before, after in code:
        assert texts(after) == texts(before)
        drawn = [out for out in after.outputs if 'image/png' in out.get('data', {})]
        assert not drawn or after.metadata.alt  # a text for readers who see no images
        images += len(drawn)
    assert images == 2
    printed = '\n'.join(text for _, after in code for text in texts(after))
    assert 'initial gate: 0.731' in printed
    assert "did you mean 'groups'?" in printed
    assert 'ccd_r50       25,559,080   4.122' in printed
