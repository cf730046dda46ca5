"""Findings of checks, and the registry of the checks for every method."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from instancezoo.errors import first_line

from .context import Context

Check = Callable[[Context], "Iterable[Finding]"]
# Name -> check, in the order of the report.
CHECKS: dict[str, Check] = {}


class Severity(enum.Enum):
    """Severity of a finding; only an error makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Args:
        severity: OK, or how bad it is.
        message: what was found, with its number.
        remedy: what to change, with key and value; empty if all is well.
        check: name of the check, set by `run_checks`.
    """

    severity: Severity
    message: str
    remedy: str = ""
    check: str = ""


def ok(message: str) -> Finding:
    """A finding that is in order."""
    return Finding(Severity.OK, message)


def warning(message: str, remedy: str) -> Finding:
    """A finding that may cost accuracy or time."""
    return Finding(Severity.WARNING, message, remedy)


def error(message: str, remedy: str) -> Finding:
    """A finding with which training fails or is useless."""
    return Finding(Severity.ERROR, message, remedy)


def register_check(name: str) -> Callable[[Check], Check]:
    """Decorator that adds a function `Context -> findings` to the checks for every method.

    Args:
        name: one or two words, shown before its findings.

    Raises:
        KeyError: the name is taken.
    """

    def add(check: Check) -> Check:
        if name in CHECKS:
            raise KeyError(f"check '{name}' is registered already; choose another name")
        CHECKS[name] = check
        return check

    return add


def run_checks(context: Context, checks: Mapping[str, Check]) -> list[Finding]:
    """Run checks, given by name; their findings get these names. One that fails is an error."""
    found = []
    for name, check in checks.items():
        try:
            found += [dataclasses.replace(finding, check=name) for finding in check(context)]
        except Exception as problem:  # by a value that no check foresees: the others still help
            message = f"the check failed: {type(problem).__name__}: {first_line(problem)}"
            remedy = "correct the value that the message names; if it is right, report the check"
            finding = error(message, remedy)
            found.append(dataclasses.replace(finding, check=name))
    return found


def format_findings(findings: Iterable[Finding]) -> str:
    """A text with one paragraph for each finding and a count at the end."""
    lines, counts = [], Counter[Severity]()
    for finding in findings:
        counts[finding.severity] += 1
        lines.append(f"{finding.severity.value:<8}{finding.check}: {finding.message}")
        if finding.remedy:
            lines.append(f"{'':<8}-> {finding.remedy}")
    num_errors, num_warnings = counts[Severity.ERROR], counts[Severity.WARNING]
    lines.append(f"{num_errors} errors, {num_warnings} warnings, {counts[Severity.OK]} ok")
    return "\n".join(lines)
