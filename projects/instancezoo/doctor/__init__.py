"""Checks of a config and its data before training starts.

This package holds the framework and the checks for every method; `diagnose.py`, above the methods,
adds the checks of their records.
"""

from . import (  # noqa: F401  (register)
    checks_data,
    checks_model,
    checks_objects,
    checks_pixels,
    checks_schedule,
)
from .context import Context, DatasetFacts
from .findings import Check, Finding, Severity, format_findings, register_check

__all__ = [
    "Check",
    "Context",
    "DatasetFacts",
    "Finding",
    "Severity",
    "format_findings",
    "register_check",
]
