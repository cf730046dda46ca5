"""The clock of nested stages: own times add up, and everything is put back."""

import itertools
import sys
import time
import types

import pytest
import torch
from torch import nn

from instancezoo.benchmark.clock import StageClock, time_functions, time_methods


@pytest.fixture
def clock(monkeypatch):
    """Every look at the time finds it one second later."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    return StageClock(torch.device("cpu"))


def test_a_stage_has_the_time_that_the_stages_inside_it_leave(clock):
    clock.enter("outer")  # 0
    clock.enter("inner")  # 1
    clock.leave()  # 2
    clock.enter("inner")  # 3
    clock.enter("innermost")  # 4
    clock.leave()  # 5
    clock.leave()  # 6
    clock.leave()  # 7
    assert clock.seconds == {"outer": 3, "inner": 3, "innermost": 1}
    assert sum(clock.seconds.values()) == 7


def test_a_stage_that_fails_ends(clock):
    def fail():
        raise ValueError("no")

    clock.enter("outer")
    with pytest.raises(ValueError, match="no"):
        clock.wrap(fail, "inner")()
    clock.leave()
    assert clock.seconds == {"outer": 2, "inner": 1}


def test_modules_and_methods_are_put_back(clock):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    modules = {"all": model, "linear": model[0], "relu": model[1], "again": model[1]}
    with time_methods(clock, [(module, "forward", name) for name, module in modules.items()]):
        model(torch.zeros(1, 2))
    assert list(clock.seconds) == ["all", "linear", "again", "relu"]
    before = dict(clock.seconds)
    model(torch.zeros(1, 2))
    assert clock.seconds == before
    assert all("forward" not in vars(module) for module in modules.values())


def test_functions_are_timed_wherever_they_were_imported(clock):
    def double(number, *, kind):
        return 2 * number

    first, second = types.ModuleType("zoo_first"), types.ModuleType("zoo_second")
    first.double, second.renamed = double, double
    sys.modules |= {"zoo_first": first, "zoo_second": second}
    with time_functions(clock, [(double, lambda number, kind: f"double {kind}")]):
        assert first.double(2, kind="a") == 4
        assert second.renamed(3, kind="b") == 6
    assert clock.seconds == {"double a": 1, "double b": 1}
    assert first.double is double and second.renamed is double
    del sys.modules["zoo_first"], sys.modules["zoo_second"]
