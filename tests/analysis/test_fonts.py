"""Names in any script are drawn: with a font that has their letters, or as their code points, never as boxes."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from mmccd.analysis import fonts
from mmccd.analysis.boxes import draw_boxes
from mmccd.analysis.canvas import Canvas

SCRIPTS = {'Latin': 'Äpfel', 'Greek': 'γάτα', 'Cyrillic': 'кот', 'Arabic': 'قطة', 'Chinese': '猫', 'emoji': '🐈'}
# What no font has: a private code point.
NOWHERE = chr(0x1000F0)


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """The notes; letters that an earlier test named are named again."""
    notes = []
    monkeypatch.setattr(fonts, '_SAID', set())
    monkeypatch.setattr(fonts, 'print_log', lambda text, logger, level: notes.append(text))
    return notes


def has(family: str, letter: str) -> bool:
    entries = [e for e in fonts.fontManager.ttflist if e.name == family]
    return any(ord(letter) in fonts._letters_of(e.fname) for e in entries)


@pytest.mark.parametrize('name', SCRIPTS.values(), ids=SCRIPTS)
def test_every_letter_has_a_font_or_a_note(silent, name):
    text, families = fonts.drawable(name)
    assert all(c.isascii() or any(has(f, c) for f in families) for c in text)
    if text == name:
        assert silent == []
    else:
        assert ' '.join(f'U+{ord(c):04X}' for c in name) == text
        assert [n.split(':')[0] for n in silent] == [f'no font of this machine can draw {", ".join(sorted(set(name)))}']
    fonts.drawable(name)
    assert len(silent) <= 1  # once


def test_a_font_that_has_the_letter_is_found(monkeypatch):
    """Of the fonts that there are, without the first: as on a machine with a font for Chinese beside the default."""
    sans = frozenset(map(ord, 'abc'))
    other = next(e for e in fonts.fontManager.ttflist if e.name != fonts._default()[0])
    monkeypatch.setattr(fonts, '_letters_of', lambda path: frozenset({ord('猫')}) if path == other.fname else sans)
    monkeypatch.setattr(fonts, '_default', lambda: ('DejaVu Sans', sans))
    fonts.families_for.cache_clear()
    assert fonts.drawable('a猫') == ('a猫', ['DejaVu Sans', other.name])
    with matplotlib.rc_context():
        fonts.use_font_for(['a', '猫'])
        assert matplotlib.rcParams['font.sans-serif'][0] in {e.name for e in fonts.fontManager.ttflist}
    fonts.families_for.cache_clear()


def test_names_for_other_programs_drawings():
    """Of MMDetection and MMPretrain, which know one font: code points for what it lacks, and no formulas."""
    with matplotlib.rc_context():
        matplotlib.rcParams['text.parse_math'] = True
        assert fonts.use_font_for(['cat', 'US$ and A$']) == {}
        assert matplotlib.rcParams['text.parse_math'] is False
        mono = matplotlib.rcParams['font.monospace']
        assert fonts.use_font_for(['naïve']) == {}
        assert matplotlib.rcParams['font.monospace'] == [fonts._default()[0], *mono]  # MMPretrain's kind
        assert fonts.use_font_for(['cat', f'a {NOWHERE}']) == {f'a {NOWHERE}': f'a U+{ord(NOWHERE):04X}'}


def test_a_name_is_no_formula():
    """Over an image: two dollar signs are drawn, and what is between them raises nothing."""
    image, box = np.zeros((60, 200, 3), np.uint8), [[10, 30, 50, 55]]
    with matplotlib.rc_context({'text.parse_math': True}):
        plain = draw_boxes(image, box, ['$a_2$'])
        assert not np.array_equal(plain, draw_boxes(image, box, ['a2']))
        draw_boxes(image, box, [r'$\nothing{$'])


def test_drawings_use_it(monkeypatch, silent):
    """In figures and over images: a name that no font has is drawn as what the note is about, and not as a box."""
    assert fonts.drawable(NOWHERE)[0] == f'U+{ord(NOWHERE):04X}'
    drawn = []
    canvas = Canvas(2, 2)
    monkeypatch.setattr(canvas.figure, 'text', lambda x, y, text, **options: drawn.append((text, options['family'])))
    canvas.text(0, 0, f'x{NOWHERE}')
    assert drawn == [(f'xU+{ord(NOWHERE):04X}', [fonts._default()[0]])]
    image = np.zeros((60, 200, 3), np.uint8)
    box = [[10, 30, 50, 55]]
    same = draw_boxes(image, box, [NOWHERE]), draw_boxes(image, box, [f'U+{ord(NOWHERE):04X}'])
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], draw_boxes(image, box, ['']))
    assert len(silent) == 1
