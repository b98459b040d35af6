"""infer_onnx.py: names in any script, and results that are JSON."""

from __future__ import annotations

import json
import math
import warnings

import pytest

TOOL = 'deployment/infer_onnx.py'


def test_letters_that_a_font_has_and_lacks(load_tool):
    """Found in another font of the machine, or drawn as code points with a note: never a box."""
    tool = load_tool(TOOL)
    default = tool.ImageFont.load_default(16)
    assert tool.lacks(default, set('cat x')) == set()
    assert tool.lacks(default, {'猫'}) == {'猫'}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        font, names = tool.font_for(['cat', '猫 cat'], 16)
    if tool.lacks(font, {'猫'}):
        assert names == ['cat', 'U+732B  cat']
        assert [str(w.message) for w in said] == ['no font here can draw 猫: code points are drawn']
    else:
        assert (names, said) == (['cat', '猫 cat'], [])


def test_names_in_latin_keep_the_default_font(load_tool, monkeypatch):
    tool = load_tool(TOOL)
    font = tool.ImageFont.load_default(16)
    monkeypatch.setattr(tool.ImageFont, 'load_default', lambda size: font)
    monkeypatch.setattr(tool.ImageFont, 'truetype', pytest.fail)
    assert tool.font_for(['cat', 'dining table'], 16) == (font, ['cat', 'dining table'])


def test_another_font_is_taken(load_tool, monkeypatch):
    """The first in the list that has more of the letters."""
    tool = load_tool(TOOL)
    fonts = {'NotoSansCJK-Regular.ttc': tool.ImageFont.load_default(20)}

    def truetype(name: str, size: int):
        if name not in fonts:
            raise OSError(name)
        return fonts[name]

    default = tool.ImageFont.load_default(16)
    monkeypatch.setattr(tool.ImageFont, 'truetype', truetype)
    monkeypatch.setattr(tool.ImageFont, 'load_default', lambda size: default)
    monkeypatch.setattr(tool, 'lacks', lambda font, letters: set() if font in fonts.values() else letters)
    font, names = tool.font_for(['猫'], 16)
    assert (font, names) == (fonts['NotoSansCJK-Regular.ttc'], ['猫'])


def test_results_without_numbers(load_tool):
    tool = load_tool(TOOL)
    results = tool.finite([dict(score=math.nan, box=[1.0, math.inf], name='nan')])
    assert json.dumps(results, allow_nan=False) == '[{"score": null, "box": [1.0, null], "name": "nan"}]'
