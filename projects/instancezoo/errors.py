"""Errors that the user can mend: commands show their message alone, without a traceback."""

from __future__ import annotations


class ZooError(ValueError):
    """Bad input. The message names the file, key or id, and the remedy."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(ZooError, KeyError):
    """A config key or value that cannot be right."""
