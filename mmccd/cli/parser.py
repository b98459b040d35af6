"""The parser of all tools. Only the standard library and ``mmccd.env`` are imported, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
from typing import Any

from mmccd.env import warn_renamed


def tool_parser(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help shows a tool's docstring and its examples as they are written."""
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


class RenamedOption(argparse.Action):
    """Stores an option that has former names, after its own; those work, and say so once.

    Example:
        >>> parser = tool_parser('A tool.')
        >>> _ = parser.add_argument('--images', '--pictures', action=RenamedOption)
        >>> parser.parse_args(['--images', 'a']).images
        'a'
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        now = self.option_strings[0]
        if option_string is not None and option_string != now:
            warn_renamed(option_string, now)
        setattr(namespace, self.dest, values)
