"""Errors that the user can mend: commands show their message alone, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable


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
