"""The evaluation hook: which figure marks the best weights."""

import math
from types import SimpleNamespace

import pytest

from instancezoo.engine.hooks import Evaluate

BOXES = {"bbox": {"AP": 3.0, "AP50": 6.0}}
BOTH = {**BOXES, "segm": {"AP": 2.0, "AP50": math.nan}}


@pytest.mark.parametrize(
    "results,metric,saved",
    [
        (BOTH, "segm/AP", [2.0]),
        (BOTH, "bbox/AP50", [6.0]),
        (BOXES, "segm/AP", [3.0]),  # a model without masks
        (BOXES, "segm/AP50", [6.0]),
        ({"first": BOXES, "second": BOXES}, "second/segm/AP", [3.0]),
        ({"first": BOXES, "second": BOTH}, "segm/AP", [2.0]),
        (BOTH, "segm/AP50", []),  # no object
        (BOTH, "segm/AP-cell", []),
        ({}, "segm/AP", []),
        (BOTH, "", []),
    ],
)
def test_best_metric(results, metric, saved):
    values = []
    evaluations = SimpleNamespace(
        save_best=lambda value, done: values.append(value), finish=lambda done: None
    )
    hook = Evaluate(0, lambda is_last: results, metric, evaluations)
    storage = SimpleNamespace(put_scalars=lambda **scalars: None)
    hook.trainer = SimpleNamespace(iter=0, max_iter=1, storage=storage)
    hook.after_step()
    assert values == saved
