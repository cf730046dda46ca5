"""A clock for nested stages, and functions that put it around methods and functions from outside.

Models need no change; each method and function is restored afterwards.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# A stage, or a function of the call's arguments that returns it.
Name = str | Callable[..., str]
# Object, name of its method, stage.
TimedMethod = tuple[Any, str, Name]


class StageClock:
    """Seconds of each stage without those of the stages inside it, so that they add up.

    Args:
        device: on a GPU, each stage waits for the work it has started.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, name: str) -> None:
        """Begin a stage; the current one is paused."""
        self._count()
        self.seconds.setdefault(name, 0.0)  # stages are listed as they begin
        self._open.append(name)

    def leave(self) -> None:
        """End the stage that began last."""
        self._count()
        self._open.pop()

    def wrap(self, function: Callable[..., Any], name: Name) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(name if isinstance(name, str) else name(*args, **kwargs))
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed

    def _count(self) -> None:
        """Add the time since the last call to the current stage."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def time_methods(clock: StageClock, methods: Iterable[TimedMethod]) -> Iterator[None]:
    """Time methods of single objects; "forward" times the calls of a module."""
    with ExitStack() as changes:
        for holder, attribute, name in methods:
            setattr(holder, attribute, clock.wrap(getattr(holder, attribute), name))
            changes.callback(holder.__dict__.pop, attribute, None)  # uncovers the class's method
        yield


@contextmanager
def time_functions(clock: StageClock, functions: Iterable[tuple[Any, Name]]) -> Iterator[None]:
    """Time functions, given with their stages, wherever a module has imported them by name."""
    timed = {id(function): clock.wrap(function, name) for function, name in functions}
    with ExitStack() as changes:
        for module in list(sys.modules.values()):
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if id(value) in timed:
                    setattr(module, attribute, timed[id(value)])
                    changes.callback(setattr, module, attribute, value)
        yield
