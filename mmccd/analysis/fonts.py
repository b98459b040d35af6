"""Fonts for names in any script: one of this machine's that has the letters, or their code points, and a note.

Matplotlib draws an empty box for a letter that its font lacks. From version 3.11 on it joins and orders Arabic letters.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from mmengine.logging import print_log

_MOST = 3  # fonts for one text
_SAID: set[str] = set()  # letters that a note has named


@cache
def _letters_of(path: str) -> frozenset[int]:
    """Code points that a font has; none for fonts of coloured pixels, which Matplotlib cannot draw."""
    try:
        font = FT2Font(path)
        if 'lastresort' in font.family_name.lower().replace(' ', ''):  # boxes with the name of the script, for all
            return frozenset()
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError, UnicodeError):
        return frozenset()


def _is_drawn(letter: str) -> bool:
    """Whether a letter needs a glyph: spaces, controls and selectors of variants do not."""
    return unicodedata.category(letter) not in ('Cc', 'Cf', 'Zs', 'Zl', 'Zp') and not 0xFE00 <= ord(letter) <= 0xFE0F


@cache
def _default() -> tuple[str, frozenset[int]]:
    path = fontManager.findfont(FontProperties(family=['sans-serif']))
    name = next((entry.name for entry in fontManager.ttflist if entry.fname == path), 'sans-serif')
    return name, _letters_of(path)


@lru_cache(maxsize=256)
def families_for(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of the fonts that have these letters, the default one first, and the letters that none has."""
    name, known = _default()
    left = {c for c in letters if ord(c) not in known and _is_drawn(c)}
    families = [name]
    while left and len(families) <= _MOST:
        # Upright fonts of ordinary weight first; of those, the one with most of the letters.
        found = max(
            fontManager.ttflist,
            key=lambda entry: (
                sum(ord(c) in _letters_of(entry.fname) for c in left),
                entry.style == 'normal',
                entry.weight in (400, 'normal', 'regular', 'book'),
                'Sans' in entry.name,
            ),
            default=None,
        )
        drawn = {c for c in left if found is not None and ord(c) in _letters_of(found.fname)}
        if not drawn:
            break
        families.append(found.name)
        left -= drawn
    return tuple(families), frozenset(left)


def drawable(text: str) -> tuple[str, list[str]]:
    """A text as it can be drawn, and the fonts for it; letters that no font has become their code points.

    Example:
        >>> drawable('cat')[0]
        'cat'
    """
    families, missing = families_for(frozenset(text))
    if missing:
        _say(missing)
        text = _code_points(text, missing)
    return text, list(families)


def use_font_for(names: Iterable[str]) -> dict[str, str]:
    """Let whatever draws with Matplotlib from now on use the font that has most of the letters of all names.

    It draws a name with two dollar signs as it is then, and not as a formula.

    Returns:
        dict[str, str]: For names that this font cannot draw, the text to draw: with code points for its letters.
    """
    names = list(names)
    matplotlib.rcParams['text.parse_math'] = False
    letters = frozenset(c for name in names for c in name)
    families, missing = families_for(letters)
    if all(map(str.isascii, names)):
        return {}
    if len(families) == 1 and not missing:
        _prefer(families[0])
        return {}
    wanted = {ord(c) for c in letters if _is_drawn(c)}
    best = max(
        fontManager.ttflist, key=lambda e: (len(wanted & _letters_of(e.fname)), e.style == 'normal'), default=None
    )
    if best is not None:
        _prefer(best.name)
        missing = frozenset(chr(c) for c in wanted - _letters_of(best.fname))
    if missing:
        _say(missing)
    return {name: _code_points(name, missing) for name in names if not missing.isdisjoint(name)}


def _prefer(family: str) -> None:
    """Before other fonts, in the place of those of fixed width, too, which MMPretrain takes."""
    for kind in ('font.sans-serif', 'font.monospace'):
        matplotlib.rcParams[kind] = [family, *matplotlib.rcParams[kind]]


def _code_points(text: str, missing: frozenset[str]) -> str:
    return ''.join(f'U+{ord(c):04X} ' if c in missing else c for c in text).rstrip()


def _say(missing: frozenset[str]) -> None:
    """Once for a letter: what to install."""
    new = sorted(missing - _SAID)
    if not new:
        return
    _SAID.update(new)
    more = ', ...' if new[8:] else ''
    print_log(
        f'no font of this machine can draw {", ".join(new[:8])}{more}: install one that has these letters (Debian has '
        'fonts-noto-cjk for Chinese, Japanese and Korean, and fonts-noto-core for most others)',
        'current',
        logging.WARNING,
    )
