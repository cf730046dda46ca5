"""A training run in a process of its own that dies at a chosen moment, as of a power cut."""

from __future__ import annotations

import functools
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import instancezoo.config  # noqa: F401  (imported once, by the server that all runs fork from)
from instancezoo.checkpoint import ZooCheckpointer
from instancezoo.engine import Trainer, hooks
from instancezoo.engine.step import StepTrainer

REPOSITORY = Path(__file__).resolve().parents[2]
PHASES: dict[str, tuple[Any, str]] = {
    "training": (StepTrainer, "run_step"),
    "evaluation": (Trainer, "_evaluate"),
    "saving": (ZooCheckpointer, "save_untagged"),
}


@dataclass(frozen=True)
class Kill:
    """The process dies `delay` seconds after the start of the `count`-th call of a phase."""

    phase: str
    count: int
    delay: float


def run(arguments: list[str], log: Path, kill: Kill | None, durations: Path | None) -> None:
    """Run train_net.py; for a forked process.

    Args:
        arguments: of train_net.py.
        log: file for what it prints.
        kill: when it dies; None if it may end.
        durations: file for the lines "phase seconds" of each call; None for none.
    """
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    for phase, (owner, name) in PHASES.items():
        inner = getattr(owner, name)
        if kill is not None and kill.phase == phase:
            setattr(owner, name, _die_within(inner, kill))
        if durations is not None:
            setattr(owner, name, _measure(inner, phase, durations))
    # Differs between the evaluations, where the accuracy is 0 after so few iterations
    hooks._find_metric = lambda metrics, name: metrics["validation_loss_rpn_cls"]
    sys.argv = ["train_net.py", *arguments]
    runpy.run_path(str(REPOSITORY / "train_net.py"), run_name="__main__")


def _die_within(inner: Callable[..., Any], kill: Kill) -> Callable[..., Any]:
    calls = iter(range(1, 1000))

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == kill.count:  # the default of SIGALRM ends the process at once
            signal.setitimer(signal.ITIMER_REAL, max(kill.delay, 1e-6))
        return inner(*args, **kwargs)

    return call


def _measure(inner: Callable[..., Any], phase: str, durations: Path) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = inner(*args, **kwargs)
        with durations.open("a") as file:
            file.write(f"{phase} {time.perf_counter() - start}\n")
        return result

    return call
