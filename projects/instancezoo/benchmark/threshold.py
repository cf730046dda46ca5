"""Score thresholds with which an untrained model finds a given number of instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn

from instancezoo.errors import ZooError
from instancezoo.method import find_method
from instancezoo.methods import METHODS
from instancezoo.testing import keep_everything

_MAX_HALVINGS = 24
_NUM_REFINEMENTS = 14
# Found instances per wanted one that are near enough.
_TOLERANCE = 1.1


def build_untrained(
    cfg: Any, batch: list[dict[str, Any]], num_detections: int
) -> tuple[nn.Module, float]:
    """A model with random weights that finds about `num_detections` instances in an image.

    Args:
        cfg: a full config; unchanged.
        batch: one image.
        num_detections: minimum number of instances, if the model can find that many.

    Returns:
        The model in inference mode, and the score threshold that was set.

    Raises:
        ZooError: no method has a record for the meta-architecture.
    """
    method = find_method(METHODS, cfg)
    if method is None:
        raise ZooError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no score threshold that "
            "can be tuned: give --weights"
        )
    cfg = cfg.clone()
    cfg.defrost()
    model = build_model(keep_everything(cfg)).eval()

    def count(threshold: float) -> int:
        method.set_score_thresh(model, threshold)
        with torch.no_grad():
            return len(model(batch)[0]["instances"])

    with _compute_once(model, method.constant_parts):
        threshold = _search(count, num_detections)
    method.set_score_thresh(model, threshold)
    return model, threshold


def _search(count: Callable[[float], int], wanted: int) -> float:
    """A threshold with which at least `wanted` are found, but few more."""
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
        # The exact number may be the model's limit, with far more candidates above the threshold.
        if wanted < found <= _TOLERANCE * wanted:
            break
    return low


@contextmanager
def _compute_once(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside the context, the named parts of a model compute once and then repeat their output."""

    def repeat_first(forward: Callable[..., Any]) -> Callable[..., Any]:
        outputs: list[Any] = []

        def repeat(*args: Any, **kwargs: Any) -> Any:
            if not outputs:
                outputs.append(forward(*args, **kwargs))
            return outputs[0]

        return repeat

    parts = [model.get_submodule(name) for name in names]
    for part in parts:
        part.forward = repeat_first(part.forward)
    try:
        yield
    finally:
        for part in parts:
            del part.forward
