"""Packages that only some methods or settings need."""

from __future__ import annotations

import importlib
from typing import Any

from instancezoo.errors import ZooError


class MissingPackageError(ZooError, ModuleNotFoundError):
    """An optional package is not installed; the message gives the command that installs it."""


def import_optional(module: str, distribution: str, wanted_by: str) -> Any:
    """Import a module of a package that may be missing.

    Args:
        module: dotted name.
        distribution: what pip installs it from.
        wanted_by: key and value that need it, for the message.

    Raises:
        MissingPackageError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{wanted_by} needs a package that is not installed: pip install {distribution}"
        ) from error
