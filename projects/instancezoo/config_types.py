"""The kind of value that each key takes, by its default: no table of keys is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from instancezoo.config_values import explain_type
from instancezoo.errors import ConfigError, is_number

# Values of the kind that a key takes whose default does not show it.
_EXAMPLES: dict[str, Any] = {
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    **{f"DATASETS.{name}": ("shapes_tiny_train",) for name in ("TRAIN", "TEST")},
    **{f"DATASETS.PROPOSAL_FILES_{phase}": ("file.pkl",) for phase in ("TRAIN", "TEST")},
    "MODEL.FPN.IN_FEATURES": ["res2"],
    **{f"INPUT.FIXED_{name}": (512, 512) for name in ("SIZE", "HEIGHTS_TRAIN")},
    "TEST.KEYPOINT_OKS_SIGMAS": [0.026],
}
# Keys that mean something with an infinite value: the norm is then the largest gradient.
_MAY_BE_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)
_LARGEST = torch.finfo(torch.float32).max
_LARGEST_WHOLE = torch.iinfo(torch.int64).max


def list_values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) for every key of a config that is no group of keys."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from list_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def list_items(value: Any) -> Iterator[Any]:
    """Yield what a value consists of: the elements of lists at any depth, or the value itself."""
    if isinstance(value, list | tuple):
        for element in value:
            yield from list_items(element)
    else:
        yield value


def check_types(cfg: Any, defaults: Any, prefix: str = "") -> None:
    """Raise `ConfigError` for a value of another kind than the default's, also inside lists.

    Numbers must be finite, and whole where the default is; None is refused where the default is
    not None. Keys without a default are not checked.

    Args:
        cfg: a config, or a group of keys in it.
        defaults: the same of the defaults.
        prefix: full key of the group with a dot, for the message.
    """
    for name, value in cfg.items():
        key, default = f"{prefix}{name}", defaults.get(name)
        if name not in defaults or (type(value) is type(default) and value == default):
            continue
        if isinstance(default, dict) and isinstance(value, dict):
            check_types(value, default, f"{key}.")
        elif default is None and (value is None or key not in _EXAMPLES):
            continue
        else:
            _check_value(key, value, _EXAMPLES.get(key, default))


def _check_value(key: str, value: Any, example: Any) -> None:
    is_list = isinstance(example, list | tuple)
    if is_list != isinstance(value, list | tuple) or not (is_list or _is_like(value, example)):
        raise ConfigError(explain_type(key, value, example))
    element = next(list_items(example), None)
    if is_list and element in example and any(isinstance(item, list | tuple) for item in value):
        raise ConfigError(f"{explain_type(key, value, example)}, without lists in it")
    if is_list and element is not None and isinstance(element, int) and not _is_flag(element):
        element = float(element)  # sizes may be fractions
    for item in list_items(value):
        if element is not None and not _is_like(item, element):
            raise ConfigError(
                f"{explain_type(key, value, example)}; {item!r} does not belong there"
            )
        if isinstance(item, int | float) and not _is_in_range(key, item):
            raise ConfigError(
                f"{key} is {value!r}; numbers must be finite, fractions at most {_LARGEST:.1e}, "
                f"whole numbers at most {_LARGEST_WHOLE}"
            )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_like(value: Any, example: Any) -> bool:
    """Return True if a value that is no list is of the kind of an example."""
    if isinstance(example, float):
        return isinstance(value, int | float) and not _is_flag(value)
    return type(value) is type(example) or (isinstance(example, str) and isinstance(value, str))


def _is_in_range(key: str, value: float) -> bool:
    if isinstance(value, int):
        return abs(value) <= _LARGEST_WHOLE
    return key in _MAY_BE_INFINITE or (is_number(value) and abs(value) <= _LARGEST)
