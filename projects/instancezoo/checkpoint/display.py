"""Texts of a file in messages: short, and without characters that change the screen."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 5


def show_text(text: str, most: int = 120) -> str:
    """Write a text on one line: control characters are escaped, a long one is cut.

    Args:
        text: any text.
        most: number of characters that are shown.
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return line if len(line) <= most else f"{line[:most]}..."


def show_names(names: Sequence[str]) -> str:
    """Write the first names of a list, and the number of further ones."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(show_text, names[:_SHOWN])) + more
