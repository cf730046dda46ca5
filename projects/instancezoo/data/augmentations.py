"""Augmentations by name: INPUT.AUGMENTATIONS, and the registry that later ones join."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.common.registry import Registry

from instancezoo.errors import ConfigError, describe_limits, is_number, suggest

KEY = "INPUT.AUGMENTATIONS"

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = """Detectron2 `Augmentation` classes, by their names in
INPUT.AUGMENTATIONS.

The arguments in the config are those of the constructor, which raises `ValueError` for a bad value.
An optional class method `read_config(cfg) -> dict` takes defaults of arguments from other keys.
"""


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Build the augmentations of INPUT.AUGMENTATIONS, in their order.

    Each entry is a name, or a mapping of one name to its arguments.

    Raises:
        ConfigError: an unknown name or argument, or a bad value.
    """
    return [_build(entry, cfg) for entry in cfg.INPUT.AUGMENTATIONS]


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return an argument as float. Raises `ValueError` if it is no number in [low, high]."""
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be {describe_limits(low, high)}")
    return float(value)


def check_range(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    """Return an argument of two ascending numbers in [low, high]. Raises `ValueError`."""
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(map(is_number, value))
    if not is_pair or not low <= value[0] <= value[1] <= high:
        limits = describe_limits(low, high)
        raise ValueError(f"{name} is {value!r}; it must be two ascending numbers, each {limits}")
    return float(value[0]), float(value[1])


def _build(entry: Any, cfg: CfgNode) -> T.Augmentation:
    name, arguments = _read_entry(entry)
    registered = dict(AUGMENTATION_REGISTRY)
    if name not in registered:
        known = ", ".join(sorted(registered))
        raise ConfigError(
            f"{KEY} has the entry {entry!r}, but no augmentation has that name"
            f"{suggest(str(name), registered)}; known: {known}"
        )
    augmentation = registered[name]
    known_arguments = inspect.signature(augmentation).parameters
    for argument in arguments:
        if argument not in known_arguments:
            raise ConfigError(
                f"{KEY} has the entry {entry!r}, but {name} has no argument {argument!r}; it "
                f"takes: {', '.join(known_arguments) or 'none'}"
            )
    defaults = augmentation.read_config(cfg) if hasattr(augmentation, "read_config") else {}
    try:
        return augmentation(**{**defaults, **arguments})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{KEY} has the entry {entry!r}: {error}") from error


def _read_entry(entry: Any) -> tuple[Any, dict[Any, Any]]:
    """Split an entry into name and arguments."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if arguments is None or isinstance(arguments, dict):
            return name, arguments or {}
    raise ConfigError(
        f"{KEY} has the entry {entry!r}; it must be a name, or one name with its arguments, such "
        "as 'ExpandCanvas: {max_ratio: 2.0}'"
    )
