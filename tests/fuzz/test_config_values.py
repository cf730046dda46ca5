"""Odd values of every key work, or end in an error that names the key.

FUZZ_CASES sets the number of values; `make fuzz` checks 2,000.
"""

import logging
import math
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from instancezoo import model_zoo
from instancezoo.config import get_cfg, load_cfg
from instancezoo.config_types import list_values
from instancezoo.data.mappers import build_mapper
from instancezoo.engine.loader import build_train_loader
from instancezoo.engine.optimizer import build_optimizer
from instancezoo.errors import ZooError
from instancezoo.testing import list_tiny_configs, make_input
from instancezoo.trial import explain_failures

NUM_CASES = int(os.environ.get("FUZZ_CASES", "40"))
MAX_SECONDS, MAX_BYTES = 20, 2 * 2**30
# Not part of a training here, or text that means a place.
SKIPPED = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.TIMM.WEIGHTS", "VERSION")
# Keys with a sound value beside which another one is unsound: that one may be named.
RELATED = {"TOP_LEVELS": "IN_FEATURES", "OUT_FEATURES": "IN_FEATURES"}
NUMBERS: list[Any] = [
    *(None, math.nan, math.inf, -math.inf, "abc", "", True, 0, -1, 1, -0.5, 0.5, 1.5, 7, 10**9),
    *(2**31, 10**30, 10**400, 1e308, -1e308, 1e-300, [], [1], {"A": 1}),
]
TEXTS: list[Any] = [None, 0, -1, 1.5, math.nan, [], ["abc"], True, "", "abc", "a b", "GN", "BN"]
FLAGS: list[Any] = [None, 0, 2, "abc", "True", math.nan, [], [True], True, False]


@pytest.mark.parametrize("block", range(4))
def test_odd_values(block: int, few_shapes: str) -> None:
    logging.disable(logging.WARNING)
    failures = []
    try:
        for seed in range(block, NUM_CASES, 4):
            name, key, value = make_case(random.Random(seed))
            if problem := find_problem(name, key, value, few_shapes):
                failures.append(f"seed {seed}: {name} {key} {value!r}: {problem}")
                print(failures[-1], flush=True)
    finally:
        logging.disable(logging.NOTSET)
    assert not failures, "\n".join(failures)


def make_case(rng: random.Random) -> tuple[str, str, Any]:
    """A tiny config, a key and a value."""
    name = rng.choice(list_tiny_configs())
    values = dict(list_values(model_zoo.get_config(name)))
    keys = [key for key in values if key not in SKIPPED]
    if rng.random() < 0.6:  # groups that the config changes are surely read
        untouched = dict(list_values(get_cfg()))
        groups = {group(key) for key in keys if values[key] != untouched[key]}
        keys = [key for key in keys if group(key) in groups]
    key = rng.choice(keys)
    return name, key, make_value(rng, values[key])


def group(key: str) -> str:
    return key.rpartition(".")[0]


def make_value(rng: random.Random, value: Any) -> Any:
    """An odd value in place of a good one."""
    if isinstance(value, bool):
        return rng.choice(FLAGS)
    if isinstance(value, str):
        return rng.choice(TEXTS)
    if not isinstance(value, list | tuple):
        return rng.choice(NUMBERS)
    action = rng.choice(["whole", "item", "item", "item", "short", "long", "empty", "nested"])
    elements = list(value)
    if action == "whole":
        return rng.choice([*NUMBERS, *TEXTS])
    if action == "item" and elements:
        place = rng.randrange(len(elements))
        elements[place] = make_value(rng, elements[place])
    elif action == "short":
        del elements[rng.randrange(len(elements) + 1) :]
    elif action == "long":
        elements += elements or [rng.choice([*NUMBERS, *TEXTS])]
    elif action == "nested":
        elements = [elements]
    else:
        elements = []
    return type(value)(elements)


def find_problem(name: str, key: str, value: Any, dataset: str) -> str:
    """Train and predict with one value. Returns what is wrong, or ""."""
    peak = measure_peak()
    try:
        with limited_time():
            run(name, key, value, dataset)
    except ZooError as error:
        leaf = key.rpartition(".")[2]
        names = [leaf, RELATED.get(leaf, leaf)]
        if key.startswith("DATASETS."):
            names.append("data set")
        if not any(name in str(error) for name in names):
            return f"does not name the key: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:400]
    # The highest peak of the process so far may be that of another test.
    grown = measure_peak() - peak
    return "" if grown < MAX_BYTES else f"{grown / 2**30:.1f} GiB more"


def measure_peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(name: str, key: str, value: Any, dataset: str) -> None:
    """All that a training builds, one step and one prediction."""
    sets = ["DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,), "MODEL.DEVICE", "cpu"]
    overrides = [*sets, "MODEL.TIMM.WEIGHTS", "", key, value]
    file = model_zoo.get_config_file(name)
    cfg = load_cfg(file, overrides)
    with explain_failures(cfg, file):
        torch.manual_seed(0)
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model)
        build_lr_scheduler(cfg, optimizer)
        for is_train in (True, False):
            mapper = build_mapper(cfg, is_train)
        build_train_loader(cfg, mapper, seed=1)
        batch = [make_input(64, 64, [[8, 8, 40, 48], [30, 20, 60, 60]])]
        batch[0]["image"] = batch[0]["image"].float()[:1].repeat(len(cfg.MODEL.PIXEL_MEAN), 1, 1)
        with EventStorage():
            losses = model.train()(batch * 2)
        for loss_name, loss in losses.items():
            assert torch.isfinite(loss), f"{loss_name} is {loss}"
        sum(losses.values()).backward()
        optimizer.step()
        with torch.no_grad():
            model.eval()(batch)


@contextmanager
def limited_time() -> Iterator[None]:
    """Stop what takes more processor time than it may; a busy machine takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"still runs after {MAX_SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
