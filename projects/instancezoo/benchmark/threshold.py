"""Score thresholds under which an untrained model finds about as much as one wants."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn

from instancezoo.errors import ZooError
from instancezoo.testing import keep_everything, set_score_thresholds

# Stands for the score thresholds of a config until the model is built; no config has it.
_MARK = 0.4230769
# Parts of a model whose outputs need not be computed anew for each threshold, unless they hold it.
_CONSTANT_PARTS = ("backbone", "head", "proposal_generator")
_MAX_HALVINGS = 24
_NUM_REFINEMENTS = 14
# So many instances more than wanted are near enough.
_TOLERANCE = 1.1


def build_untrained(
    cfg: Any, batch: list[dict[str, Any]], num_detections: int
) -> tuple[nn.Module, float]:
    """A model with random weights that finds about so many instances in an image.

    Args:
        cfg: a full config; unchanged.
        batch: one image.
        num_detections: at least so many, if the model can find as many at all.

    Returns:
        The model in inference mode, and the score threshold that was set.

    Raises:
        ZooError: no threshold of the config is found in the model.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for node in set_score_thresholds(keep_everything(cfg), _MARK):
        if "UPDATE_THR" in node:  # what Matrix NMS leaves is not dropped: candidates are not more
            node["UPDATE_THR"] = -1.0
    model = build_model(cfg).eval()
    marks = list(_find_marks(model))
    if not marks:
        raise ZooError(
            f"{cfg.MODEL.META_ARCHITECTURE} has no score threshold to tune: give --weights"
        )

    def count(threshold: float) -> int:
        for _, set_threshold in marks:
            set_threshold(threshold)
        with torch.no_grad():
            return len(model(batch)[0]["instances"])

    count(1.0)
    with _keep_constant_parts(model, batch, {holder for holder, _ in marks}):
        threshold = _search(count, num_detections)
        count(threshold)
    return model, threshold


def _search(count: Callable[[float], int], wanted: int) -> float:
    """A threshold under which enough are found, but few more."""
    high = 1.0  # too few are found
    for _ in range(_MAX_HALVINGS):
        low = high / 2
        if count(low) >= wanted:
            break
        high = low
    else:
        return 0.0
    for _ in range(_NUM_REFINEMENTS):
        middle = (low + high) / 2
        found = count(middle)
        low, high = (low, middle) if found < wanted else (middle, high)
        # Just as many may be as many as the model hands out at most, of far more candidates.
        if wanted < found <= _TOLERANCE * wanted:
            break
    return low


def _find_marks(model: nn.Module) -> Iterator[tuple[nn.Module, Callable[[float], None]]]:
    """For each place where the model keeps a marked threshold, the module and what sets it."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and value == _MARK:
                yield module, functools.partial(setattr, module, name)
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = [f.name for f in dataclasses.fields(value)]
                marked = [f for f in fields if getattr(value, f) == _MARK]
                if marked:
                    yield module, functools.partial(_replace, module, name, marked)


def _replace(module: nn.Module, name: str, fields: list[str], value: float) -> None:
    settings: Any = getattr(module, name)
    setattr(module, name, dataclasses.replace(settings, **dict.fromkeys(fields, value)))


@contextmanager
def _keep_constant_parts(
    model: nn.Module, batch: list[dict[str, Any]], variable: set[nn.Module]
) -> Iterator[None]:
    """Run the model once; meanwhile its slow parts give out again what they gave then.

    Args:
        model: in inference mode.
        batch: one image.
        variable: what holds thresholds; parts with such modules are left alone.
    """
    outputs: dict[nn.Module, Any] = {}

    def keep(part: nn.Module, _: Any, output: Any) -> None:
        outputs[part] = output

    parts = [getattr(model, name, None) for name in _CONSTANT_PARTS]
    constant = [p for p in parts if isinstance(p, nn.Module) and not variable & set(p.modules())]
    hooks = [part.register_forward_hook(keep) for part in constant]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    for part, output in outputs.items():
        part.forward = lambda *_, kept=output, **__: kept  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in outputs:
            del part.forward  # type: ignore[method-assign]
