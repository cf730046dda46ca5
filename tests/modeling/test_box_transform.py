"""Deltas that are limited on both sides."""

import math

import pytest
import torch

from instancezoo.modeling.box_transform import SymmetricBox2BoxTransform, build_box_transform

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
BOX = torch.tensor([[10.0, 20.0, 50.0, 100.0]])
LIMIT = 1000 / 16


@pytest.mark.parametrize("symmetric,smallest", [(False, 0.0), (True, 1 / LIMIT)])
def test_how_much_a_box_can_shrink_and_grow(symmetric, smallest):
    transform = build_box_transform(WEIGHTS, symmetric)
    shrunk = transform.apply_deltas(torch.tensor([[0.0, 0.0, -100.0, -50.0]]), BOX)
    grown = transform.apply_deltas(torch.tensor([[0.0, 0.0, 100.0, 50.0]]), BOX)
    for boxes, factor in ((shrunk, smallest), (grown, LIMIT)):
        width, height = (boxes[0, 2:] - boxes[0, :2]).tolist()
        assert width == pytest.approx(40 * factor, rel=1e-3, abs=1e-3)
        assert height == pytest.approx(80 * factor, rel=1e-3, abs=4e-3)


def test_moderate_deltas_and_classes_are_as_in_detectron2():
    deltas = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)) * 5
    boxes = BOX.expand(6, 4)
    ours, theirs = (build_box_transform(WEIGHTS, x).apply_deltas(deltas, boxes) for x in (1, 0))
    assert torch.equal(ours, theirs)
    assert ours.shape == (6, 12)
    # One value beyond the limit, in the second class, changes that class alone.
    deltas[3, 4 + 2] = -1000
    ours = SymmetricBox2BoxTransform(WEIGHTS).apply_deltas(deltas, boxes)
    changed = (ours != theirs).nonzero()
    assert changed.tolist() == [[3, 4], [3, 6]]
    assert ours[3, 6] - ours[3, 4] == pytest.approx(40 * math.exp(-math.log(LIMIT)), abs=1e-3)


def test_half_precision_decodes_in_fp32():
    deltas = torch.tensor([[0.1, 0.2, -0.3, 0.4]])
    transform = build_box_transform(WEIGHTS, True)
    assert transform.apply_deltas(deltas.bfloat16(), BOX).dtype == torch.float32
    assert transform.apply_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
