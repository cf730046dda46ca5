"""Errors that the user can fix: commands show only their message, without a traceback."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any


class ZooError(ValueError):
    """Bad input. The message names the file, key or id, and the remedy."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(ZooError, KeyError):
    """An invalid config key or value."""


def suggest(wanted: str, known: Iterable[str], *, cutoff: float = 0.6, most: int = 1) -> str:
    """Suggest existing names: "; did you mean 'x'?", or "" if none is similar.

    Args:
        wanted: the name as the user wrote it.
        known: existing names.
        cutoff: smallest similarity of a suggestion, in [0, 1].
        most: largest number of suggestions.
    """
    nearest = difflib.get_close_matches(wanted, list(known), n=most, cutoff=cutoff)
    names = " or ".join(f"'{name}'" for name in nearest)
    return f"; did you mean {names}?" if nearest else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class without one."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def check_choice(key: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise `ConfigError` if the value of `key` (a full key) is none of `choices`."""
    names = list(choices)
    if value not in names:
        raise ConfigError(f"{key} is {value!r}; it must be one of: {', '.join(map(str, names))}")


def is_number(value: Any) -> bool:
    """Return True for a finite number; False for NaN, infinity, True and all that is no number."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def check_numbers(section: str, node: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise `ConfigError` if a value of `node` is no finite number or outside its limits.

    Args:
        section: full key of `node`, for the message.
        node: section of a config.
        limits: key -> (lowest, highest) allowed value; `math.inf` for no limit.
    """
    for key, (low, high) in limits.items():
        if not is_number(node[key]) or not low <= node[key] <= high:
            range_ = describe_limits(low, high)
            raise ConfigError(f"{section}.{key} is {node[key]!r}; it must be {range_}")


def describe_limits(low: float, high: float) -> str:
    """Word two limits: "0 or more", "between 0 and 1", or "a finite number" without any."""
    if math.isinf(low):
        return "a finite number"
    return f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
