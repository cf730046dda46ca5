"""Finds the key that makes a config fail, by putting keys back one by one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from torch import nn

from instancezoo.config_types import list_values
from instancezoo.data.mappers import build_mapper
from instancezoo.doctor.memory import count_parameters, measure_free_memory
from instancezoo.engine.optimizer import build_optimizer
from instancezoo.errors import ConfigError, ZooError, first_line

Trial = Callable[[Any], None]
_BYTES_PER_PARAMETER = 4
_MAX_KEYS = 12  # that a message names
_MAX_SECONDS = 15.0


def check_builds(cfg: Any, origins: Sequence[Any]) -> None:
    """Build everything that a config describes, without memory for weights.

    Args:
        cfg: the whole config.
        origins: configs that its values may be put back to, the nearest first: that of the file
            alone, the defaults.

    Raises:
        ZooError: of the part that refuses a value.
        ConfigError: a part fails in another way; the message names the key that makes it fail.
    """
    try:
        build_parts(cfg)
    except ZooError:
        raise
    except Exception as error:  # whatever a part makes of a bad value
        if isinstance(error, MemoryError) or not _builds_only_with_values(cfg):
            raise explain_failure(cfg, error, origins, build_parts) from error


def build_parts(cfg: Any) -> None:
    """Build mappers, optimizer, schedule and, on the meta device, the model. Raises anything."""
    cfg = strip_weights(cfg, "meta")
    for is_train in (True, False):
        build_mapper(cfg, is_train)
    build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))
    with torch.device("meta"):
        model = build_model(cfg)
    size = count_parameters(model)[0] * _BYTES_PER_PARAMETER
    free = measure_free_memory("cpu")
    if free is not None and size > free:
        raise MemoryError(f"its weights need {size / 2**30:.1f} GiB, {free / 2**30:.1f} are free")


def explain_failure(
    cfg: Any, error: Exception, origins: Sequence[Any], trial: Trial
) -> ConfigError:
    """Make an error that names the keys that a failure comes from.

    Args:
        cfg: the config that fails.
        error: what it fails with.
        origins: as in `check_builds`.
        trial: raises for a config that fails.
    """
    reason = f"{type(error).__name__}: {first_line(error)}"
    deadline, names = time.monotonic() + _MAX_SECONDS, []
    for origin in origins:
        for key, value, before in _list_changes(cfg, origin):
            names.append(key)
            if time.monotonic() < deadline and _works(_put_back(cfg, key, before), trial):
                return ConfigError(
                    f"{key} is {value!r}: nothing can be built or trained with it ({reason}); with "
                    f"{before!r} it works"
                )
    listed = ", ".join(dict.fromkeys(names[:_MAX_KEYS])) or "none"
    return ConfigError(
        f"nothing can be built or trained with this config ({reason}); the keys that were changed: "
        f"{listed}"
    )


def _list_changes(cfg: Any, origin: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (full key, value, value in another config) for each key that differs."""
    before = dict(list_values(origin))
    for key, value in list_values(cfg):
        if key in before and value != before[key]:
            yield key, value, before[key]


def _put_back(cfg: Any, key: str, value: Any) -> Any:
    changed = cfg.clone()
    changed.defrost()
    *groups, leaf = key.split(".")
    reduce(getattr, groups, changed)[leaf] = copy.deepcopy(value)
    return changed


def _works(cfg: Any, trial: Trial) -> bool:
    try:
        trial(cfg)
    except Exception:  # as above
        return False
    return True


def _builds_only_with_values(cfg: Any) -> bool:
    """Return True for a model that computes with its weights while it is built."""
    try:
        build_model(strip_weights(cfg, "cpu"))
    except Exception:  # as above
        return False
    return True


def strip_weights(cfg: Any, device: str) -> Any:
    """Return a copy for a device, without files of weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.WEIGHTS = device, "", ""
    return cfg
