"""Checks of a config and its data before a GPU hour is spent.

A method adds its own check with `register_check` in a module that its package imports.
"""

from . import (  # noqa: F401  (register)
    checks_data,
    checks_grids,
    checks_model,
    checks_objects,
    checks_schedule,
)
from .context import Context, DatasetFacts
from .diagnose import diagnose
from .findings import Finding, Severity, format_findings, register_check

__all__ = [
    "Context",
    "DatasetFacts",
    "Finding",
    "Severity",
    "diagnose",
    "format_findings",
    "register_check",
]
