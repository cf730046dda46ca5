"""Errors that the user can mend: commands show their message alone, without a traceback."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


class ZooError(ValueError):
    """Bad input. The message names the file, key or id, and the remedy."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(ZooError, KeyError):
    """A config key or value that cannot be right."""


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
