"""`instancezoo doctor`: sizes of objects against the smallest segment."""

from types import SimpleNamespace

import numpy as np
import pytest

from instancezoo.doctor import Severity
from instancezoo.doctor.context import InputSize
from instancezoo.semiconv.doctor import check_smallest_segment
from instancezoo.testing import build_seeded_model, get_tiny_config

COLOURING, REFINED = "semiconv/semiconv_tiny", "semiconv/semiconv_mask_rcnn_tiny"


def _check(sides, name=COLOURING, min_size=8):
    """Findings for square boxes of these sides in pixels of the network input."""
    ends = np.array(sides, dtype=np.float64)[:, None].repeat(2, axis=1)
    boxes = np.concatenate([np.zeros_like(ends), ends], axis=1)
    cfg = get_tiny_config(name, ["MODEL.SEMICONV.MIN_SIZE", min_size])
    context = SimpleNamespace(
        model=build_seeded_model(cfg),
        train_boxes=[(SimpleNamespace(name="mine"), boxes)],
        train_size=InputSize(128, 192),
    )
    return list(check_smallest_segment(context))


@pytest.mark.parametrize(
    "sides,min_size,share,remedy",
    [
        ([12] * 99, 9, "0.0%", None),  # 3 x 3 cells of 4 pixels
        ([12] * 99, 10, "100.0%", "MIN_SIZE 9"),
        ([11] + [12] * 199, 9, "0.5%", None),
        ([8] * 50 + [40] * 50, 8, "50.0%", "MIN_SIZE 4"),
        ([3] * 50 + [40] * 50, 8, "50.0%", "MIN_SIZE 1, lower MODEL.SEMICONV.STRIDE or raise"),
    ],
)
def test_objects_below_the_smallest_segment(sides, min_size, share, remedy):
    (finding,) = _check(sides, min_size=min_size)
    assert share in finding.message
    assert (finding.severity is Severity.WARNING) == (remedy is not None)
    assert remedy is None or remedy in finding.remedy


def test_the_two_stage_model_has_no_smallest_segment():
    assert _check([1], REFINED) == []
