"""Score thresholds under which an untrained model finds about as much as one wants."""

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
        num_detections: lowest number to find, if the model can find as many at all.

    Returns:
        The model in inference mode, and the score threshold that was set.

    Raises:
        ZooError: no method declares how a score threshold is set in the model.
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

    count(1.0)
    with _keep_constant_parts(model, batch, method.constant_parts):
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
        # The exact number may be the model's limit, with far more candidates above the threshold.
        if wanted < found <= _TOLERANCE * wanted:
            break
    return low


@contextmanager
def _keep_constant_parts(
    model: nn.Module, batch: list[dict[str, Any]], names: Sequence[str]
) -> Iterator[None]:
    """Run the model once; inside the context its slow parts repeat their outputs of that run.

    Args:
        model: in inference mode.
        batch: one image.
        names: of those parts; their outputs do not depend on the score threshold.
    """
    outputs: dict[nn.Module, Any] = {}

    def keep(part: nn.Module, _: Any, output: Any) -> None:
        outputs[part] = output

    parts = [model.get_submodule(name) for name in names]
    hooks = [part.register_forward_hook(keep) for part in parts]
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
