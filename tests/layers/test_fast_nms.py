"""Fast NMS, its variant across classes and greedy NMS, against loops by the definitions."""

import pytest
import torch

from instancezoo.layers import fast_nms as fast_nms_file
from instancezoo.layers.fast_nms import cross_class_fast_nms, exact_nms, fast_nms


def _iou(box, other, pixel=0.0):
    """IoU in double precision; None if both boxes are empty."""
    sides = [min(box[i + 2], other[i + 2]) - max(box[i], other[i]) + pixel for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(b[2] - b[0] + pixel) * (b[3] - b[1] + pixel) for b in (box, other)]
    union = areas[0] + areas[1] - shared
    return shared / union if union else None


def _overlaps(box, other, threshold):
    iou = _iou(box, other)
    return iou is None or iou > threshold


def _fast_by_definition(boxes, probs, threshold, top_k, most):
    """Every class by itself, all its rows in order, each against all before it."""
    found = []
    for k in range(probs.shape[1]):
        scores = probs[:, k].tolist()
        order = sorted(range(len(scores)), key=lambda row: -scores[row])[:top_k]
        for rank, row in enumerate(order):
            if not any(_overlaps(boxes[row], boxes[above], threshold) for above in order[:rank]):
                found.append((-scores[row], row, k))
    return [(row, k) for _, row, k in sorted(found)[:most]]


def _cross_by_definition(boxes, probs, threshold, top_k):
    best = [(-max(scores), row) for row, scores in enumerate(probs.tolist())]
    order = [row for _, row in sorted(best)][:top_k]
    kept = [
        row
        for rank, row in enumerate(order)
        if not any(_overlaps(boxes[row], boxes[above], threshold) for above in order[:rank])
    ]
    return [(row, probs[row].tolist().index(max(probs[row].tolist()))) for row in kept]


def _exact_by_definition(boxes, probs, score_threshold, threshold, most, pixel):
    found = []
    for k in range(probs.shape[1]):
        scores = probs[:, k].tolist()
        left = sorted(
            (row for row in range(len(scores)) if scores[row] > score_threshold),
            key=lambda row: -scores[row],
        )
        while left:
            best = left.pop(0)
            found.append((-scores[best], best, k))
            left = [r for r in left if (_iou(boxes[best], boxes[r], pixel) or 0) < threshold]
    return [(row, k) for _, row, k in sorted(found)[:most]]


def _make_boxes(count, generator, kind):
    corners = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 40], dim=1)
    if kind == "negative":
        return boxes - 300
    if kind == "degenerate":  # of sixteenths, so that ratios are exact; many are equal or empty
        boxes = (boxes / 10).floor()
        boxes[::5, 2:] = boxes[::5, :2]
        boxes[1::7, 3] = boxes[1::7, 1]
    return boxes


def _make_case(count, num_classes, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(count, num_classes, generator=generator).mul(2).softmax(dim=1)
    if kind == "degenerate":
        probs = (probs * 8).floor() / 8  # equal scores
    return _make_boxes(count, generator, kind), probs


def _pairs(rows, classes):
    return list(zip(rows.tolist(), classes.tolist(), strict=True))


CASES = [(0, 3), (1, 1), (40, 1), (90, 5), (30, 12)]
KINDS = ["random", "negative", "degenerate"]


@pytest.mark.parametrize("count,num_classes", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k,most", [(200, 100), (12, 20), (1, 1), (25, 1000)])
def test_fast_nms_equals_the_definition(count, num_classes, kind, top_k, most):
    boxes, probs = _make_case(count, num_classes, kind)
    found = fast_nms(boxes, probs, iou_threshold=0.3, top_k=top_k, max_detections=most)
    expected = _fast_by_definition(boxes.tolist(), probs, 0.3, top_k, most)
    assert _pairs(*found[:2]) == expected
    assert torch.equal(found[2], probs[found[0], found[1]])


@pytest.mark.parametrize("count,num_classes", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [200, 12, 1])
def test_cross_class_fast_nms_equals_the_definition(count, num_classes, kind, top_k):
    boxes, probs = _make_case(count, num_classes, kind, seed=1)
    found = cross_class_fast_nms(boxes, probs, iou_threshold=0.3, top_k=top_k)
    assert _pairs(*found[:2]) == _cross_by_definition(boxes.tolist(), probs, 0.3, top_k)
    assert torch.equal(found[2], probs[found[0], found[1]])


@pytest.mark.parametrize("count,num_classes", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixel", [0.0, 1.0])
@pytest.mark.parametrize("most", [100, 7])
def test_exact_nms_equals_the_definition(count, num_classes, kind, pixel, most):
    boxes, probs = _make_case(count, num_classes, kind, seed=2)
    limits = {"score_threshold": 0.125, "iou_threshold": 0.5, "max_detections": most}
    found = exact_nms(boxes, probs, **limits, pixel=pixel)
    expected = _exact_by_definition(boxes.tolist(), probs, 0.125, 0.5, most, pixel)
    assert _pairs(*found[:2]) == expected
    assert torch.equal(found[2], probs[found[0], found[1]])


def test_the_suppressed_still_suppress_in_fast_nms_only():
    # A row of boxes: each overlaps its neighbours by more than a half, the first and third do not.
    boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
    probs = torch.tensor([[0.9], [0.8], [0.7]])
    assert fast_nms(boxes, probs)[0].tolist() == [0]
    assert cross_class_fast_nms(boxes, probs)[0].tolist() == [0]
    assert exact_nms(boxes, probs)[0].tolist() == [0, 2]


def test_an_iou_at_the_threshold_is_kept_by_fast_nms_only():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])
    probs = torch.tensor([[0.9], [0.8]])
    assert fast_nms(boxes, probs)[0].tolist() == [0, 1]
    assert exact_nms(boxes, probs, pixel=0.0)[0].tolist() == [0]
    assert exact_nms(boxes, probs, pixel=1.0)[0].tolist() == [0]  # 15 of 25 pixels
    assert exact_nms(boxes, probs, pixel=1.0, iou_threshold=0.61)[0].tolist() == [0, 1]


def test_there_is_no_second_score_threshold_in_fast_nms():
    boxes = torch.tensor([[0.0, 0, 4, 4], [9, 9, 12, 12]])
    probs = torch.tensor([[0.9, 1e-6], [0.06, 0.0]])
    rows, classes, scores = fast_nms(boxes, probs)
    assert _pairs(rows, classes) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert scores.tolist() == probs.flatten()[[0, 2, 1, 3]].tolist()


def test_results_do_not_depend_on_rounds_and_chunks(monkeypatch):
    boxes, probs = _make_case(400, 9, "random", seed=3)
    expected = fast_nms(boxes, probs, iou_threshold=0.2, top_k=150, max_detections=40)
    monkeypatch.setattr(fast_nms_file, "_SHARE_PER_ROUND", 1)
    monkeypatch.setattr(fast_nms_file, "_PAIRS_PER_CHUNK", 7)
    found = fast_nms(boxes, probs, iou_threshold=0.2, top_k=150, max_detections=40)
    assert len(found[0]) == 40
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("nms", [fast_nms, cross_class_fast_nms, exact_nms])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_single(nms, dtype):
    boxes, probs = _make_case(120, 6, "random", seed=4)
    boxes, probs = boxes.to(dtype), probs.to(dtype)
    found, expected = nms(boxes, probs), nms(boxes.float(), probs.float())
    assert found[2].dtype == dtype and len(found[0]) > 10
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("nms", [fast_nms, cross_class_fast_nms, exact_nms])
def test_memory_layout_and_gradients_do_not_matter(nms):
    boxes, probs = _make_case(120, 6, "random", seed=5)
    expected = nms(boxes, probs)
    turned = (each.T.contiguous().T.requires_grad_() for each in (boxes, probs))
    assert all(torch.equal(a, b) for a, b in zip(nms(*turned), expected, strict=True))


@pytest.mark.parametrize("nms", [fast_nms, cross_class_fast_nms, exact_nms])
def test_other_shapes_are_refused(nms):
    for shapes in (((3, 4), (4, 2)), ((3, 5), (3, 2)), ((3, 4), (3,))):
        with pytest.raises(ValueError, match=r"\(P, 4\).*\(P, K\)"):
            nms(*(torch.zeros(shape) for shape in shapes))


def test_limits_below_one_are_refused():
    boxes, probs = _make_case(3, 2, "random")
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        fast_nms(boxes, probs, top_k=0)
    with pytest.raises(ValueError, match="max_detections must be at least 1"):
        exact_nms(boxes, probs, max_detections=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("nms", [fast_nms, cross_class_fast_nms, exact_nms])
def test_nms_on_a_gpu(nms):
    boxes, probs = _make_case(120, 6, "random", seed=6)
    found, expected = nms(boxes.cuda(), probs.cuda()), nms(boxes, probs)
    assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
