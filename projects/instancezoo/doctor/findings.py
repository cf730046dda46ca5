"""What a check says, and the list of the checks that concern every method."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .context import Context

Check = Callable[[Context], "Iterable[Finding]"]
# name -> check, in the order in which they are shown
CHECKS: dict[str, Check] = {}


class Severity(enum.Enum):
    """How much a finding matters; only an error makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        severity: whether it is in order.
        message: what was found, with the number.
        remedy: what to change; empty if all is well.
        check: name of the check, filled in by `run_checks`.
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
    """A finding with which training fails or is worth nothing."""
    return Finding(Severity.ERROR, message, remedy)


def register_check(name: str) -> Callable[[Check], Check]:
    """Decorator that adds a function `Context -> findings` to the checks for every method.

    Args:
        name: one or two words, shown in front of its findings.

    Raises:
        KeyError: the name is taken.
    """

    def add(check: Check) -> Check:
        if name in CHECKS:
            raise KeyError(f"a check named '{name}' is registered already")
        CHECKS[name] = check
        return check

    return add


def run_checks(context: Context, checks: Mapping[str, Check]) -> list[Finding]:
    """Run checks, given by the names that their findings take."""
    return [
        dataclasses.replace(finding, check=name)
        for name, check in checks.items()
        for finding in check(context)
    ]


def format_findings(findings: Iterable[Finding]) -> str:
    """A text with one paragraph for each finding and a count at the end."""
    findings = list(findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity.value:<8}{finding.check}: {finding.message}")
        if finding.remedy:
            lines.append(f"{'':<8}-> {finding.remedy}")
    counts = {s: sum(f.severity is s for f in findings) for s in Severity}
    lines.append(
        f"{counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings, "
        f"{counts[Severity.OK]} in order"
    )
    return "\n".join(lines)
