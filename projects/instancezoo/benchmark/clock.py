"""A clock for nested stages, and how it is put around modules, methods and functions from outside.

Models know nothing of it: what is wrapped is put back afterwards.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

# A stage, or what gives one from the call's arguments.
Name = str | Callable[..., str]


class StageClock:
    """Seconds of each stage without those of the stages inside it, so that they add up.

    Args:
        device: on a GPU, each stage waits for the work it has started.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []

    def enter(self, name: str) -> None:
        """Begin a stage; the one that is running stands still meanwhile."""
        now = self._read()
        self._add(now)
        self.seconds.setdefault(name, 0.0)  # stages are listed as they begin
        self._open.append((name, now))

    def leave(self) -> None:
        """End the stage that began last."""
        now = self._read()
        self._add(now)
        self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], now)

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

    def _add(self, now: float) -> None:
        if self._open:
            name, since = self._open[-1]
            self.seconds[name] += now - since

    def _read(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def time_modules(clock: StageClock, modules: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Time modules whenever they are called.

    Args:
        clock: counts.
        modules: stage, module.
    """
    with ExitStack() as hooks:
        for name, module in modules:
            before = functools.partial(_enter, clock, name)
            after = functools.partial(_leave, clock)
            for handle in (
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after, always_call=True),
            ):
                hooks.callback(handle.remove)
        yield


@contextmanager
def time_methods(clock: StageClock, methods: list[tuple[Any, str, Name]]) -> Iterator[None]:
    """Time methods of single objects.

    Args:
        clock: counts.
        methods: object, name of the method, stage.
    """
    with ExitStack() as changes:
        for holder, attribute, name in methods:
            setattr(holder, attribute, clock.wrap(getattr(holder, attribute), name))
            changes.callback(delattr, holder, attribute)  # the class's own shows again
        yield


@contextmanager
def time_functions(clock: StageClock, functions: list[tuple[Any, Name]]) -> Iterator[None]:
    """Time functions wherever a module has imported them by name.

    Args:
        clock: counts.
        functions: function, stage.
    """
    timed = {function: clock.wrap(function, name) for function, name in functions}
    with ExitStack() as changes:
        for module in list(sys.modules.values()):
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if callable(value) and _find(timed, value) is not None:
                    setattr(module, attribute, timed[value])
                    changes.callback(setattr, module, attribute, value)
        yield


def _find(timed: dict[Any, Any], value: Any) -> Any:
    try:
        return timed.get(value)
    except TypeError:  # not hashable
        return None


def _enter(clock: StageClock, name: str, *_: Any) -> None:
    clock.enter(name)


def _leave(clock: StageClock, *_: Any) -> None:
    clock.leave()
