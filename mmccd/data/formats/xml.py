"""XML files of labelling tools, in whatever encoding their first line names.

Python's parser knows no encoding of several bytes but UTF-8 and UTF-16; tools on Chinese systems write GBK.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

_ENCODING = re.compile(rb'\s*<\?xml[^>]*?encoding\s*=\s*["\']([\w.:-]+)')


def read_xml(path: str) -> ElementTree.Element:
    """The first element of a file, with all that is in it.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no XML, or of an encoding that nobody knows.
    """
    with open(path, 'rb') as f:
        content = f.read()
    try:
        return ElementTree.fromstring(content)
    except (LookupError, ValueError, ElementTree.ParseError) as e:
        reason = str(e)
    named = _ENCODING.match(content)
    # UTF-8, too: .NET names UTF-16 in files of any encoding.
    for encoding in (named[1].decode(), 'utf-8-sig') if named else ():
        try:
            return ElementTree.fromstring(content.decode(encoding))
        except (LookupError, ValueError, ElementTree.ParseError):
            pass
    raise ValueError(reason)


def first_tag(path: str) -> str:
    """The tag of a file's first element; empty if it is no XML. Mostly, the beginning of the file alone is read."""
    try:
        for _, element in ElementTree.iterparse(path, ('start',)):
            return element.tag
    except (LookupError, ValueError, ElementTree.ParseError):
        try:
            return read_xml(path).tag
        except (OSError, ValueError):
            pass
    except OSError:
        pass
    return ''
