"""Checks of a config and its data before a GPU hour is spent.

Here are the framework and what concerns every method; `diagnose.py`, above the methods, adds their
own checks from their records.
"""

from . import checks_data, checks_model, checks_objects, checks_schedule  # noqa: F401  (register)
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
