"""Errors that the user can mend: commands show their message alone, without a traceback."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any


class ZooError(ValueError):
    """Bad input. The message names the file, key or id, and the remedy."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(ZooError, KeyError):
    """A config key or value that cannot be right."""


def suggest(wanted: str, known: Iterable[str], *, cutoff: float = 0.6, most: int = 1) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'?", or "" if none is near.

    Args:
        wanted: the name as the user wrote it.
        known: names that exist.
        cutoff: smallest similarity, in [0, 1], of a suggestion.
        most: number of names at most.
    """
    nearest = difflib.get_close_matches(wanted, list(known), n=most, cutoff=cutoff)
    names = " or ".join(f"'{name}'" for name in nearest)
    return f"; did you mean {names}?" if nearest else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its class if it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise `ConfigError` for a value of `key` (with its sections) that is none of `choices`."""
    names = list(choices)
    if value not in names:
        raise ConfigError(f"{key} is '{value}'; it must be one of: {', '.join(names)}")


def check_numbers(section: str, node: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise `ConfigError` for a key of `node` whose number is outside of its limits.

    Args:
        section: where `node` stands, for the message.
        node: of a config.
        limits: lowest and highest value of each key, both included; `math.inf` for none.
    """
    for key, (low, high) in limits.items():
        if not low <= node[key] <= high:
            range_ = f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise ConfigError(f"{section}.{key} is {node[key]}; it must be {range_}")
