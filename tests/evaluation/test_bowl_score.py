"""The score of the 2018 Data Science Bowl against a count by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as mask_codec
import pytest
from synthetic_results import Dataset, make_outputs

from instancezoo.evaluation import GroundTruth, InstanceEvaluator, dsb_score
from instancezoo.evaluation.bowl_score import count_matches

SIZE = (20, 40)


def _encode(box: tuple[int, int, int, int], **fields: Any) -> dict[str, Any]:
    mask = np.zeros(SIZE, np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    code = mask_codec.encode(mask)
    code["counts"] = code["counts"].decode()
    base = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [x0, y0, x1 - x0, y1 - y0]}
    return base | {"segmentation": code} | fields


def _make_truth(annotations: list[dict[str, Any]], num_images: int = 1) -> GroundTruth:
    images = [{"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(num_images)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return GroundTruth.read(
        {"images": images, "annotations": annotations, "categories": categories}
    )


def test_counts_by_hand():
    # found at all thresholds; found with IoU 0.7; missed; one that belongs to another class
    truth = _make_truth(
        [
            _encode((0, 0, 10, 10)),
            _encode((12, 0, 22, 10)),
            _encode((0, 12, 5, 17)),
            _encode((30, 0, 40, 10), category_id=2),
        ]
    )
    results = [
        _encode((0, 0, 10, 10)),
        _encode((12, 0, 22, 7)),
        _encode((30, 10, 40, 20)),
        _encode((30, 0, 40, 10)),
    ]
    counts = count_matches(truth, 1, results)
    assert counts[:, 0].tolist() == [2, 2, 2]
    assert counts[:, -1].tolist() == [1, 3, 3]
    # 0.50, 0.55, 0.60, 0.65: 2 of 6; an IoU of 0.7 does not exceed 0.7
    assert dsb_score(truth, results) == pytest.approx((4 * 2 / 6 + 6 * 1 / 7) / 10)


def test_scores_decide_only_by_the_threshold():
    truth = _make_truth([_encode((0, 0, 10, 10))])
    results = [_encode((0, 0, 10, 10), score=0.3), _encode((20, 0, 30, 10), score=0.9)]
    assert dsb_score(truth, results) == pytest.approx(1 / 2)
    assert dsb_score(truth, results, 0.5) == 0
    assert dsb_score(truth, results[:1]) == 1


def test_images_count_alike_and_an_empty_one_is_right():
    truth = _make_truth([_encode((0, 0, 10, 10))], num_images=3)
    results = [_encode((0, 0, 10, 10), image_id=3)]
    assert dsb_score(truth, results) == pytest.approx((0 + 1 + 0) / 3)
    assert math.isnan(dsb_score(_make_truth([], num_images=0), []))


def test_crowds_are_neither_objects_nor_false():
    crowd = _encode((20, 0, 40, 20), iscrowd=1)
    truth = _make_truth([_encode((0, 0, 10, 10)), crowd])
    results = [_encode((0, 0, 10, 10)), _encode((22, 2, 30, 9))]
    assert dsb_score(truth, results) == 1


def test_the_evaluator_gives_it_on_demand(
    small_dataset: Dataset, register: Callable[..., str]
) -> None:
    name = register(small_dataset[0])
    found = {}
    for thresh in (None, 0.0, 0.5, 2.0):
        evaluator = InstanceEvaluator(name, dsb_thresh=thresh)
        for record, output in make_outputs(small_dataset):
            evaluator.process([record], [output])
        metrics = evaluator.evaluate()
        assert "DSB" not in metrics["bbox"]
        found[thresh] = metrics["segm"].get("DSB")
    assert found[None] is None
    rows = [row for row in small_dataset[1] if row.get("segmentation")]
    truth = GroundTruth.read(small_dataset[0])
    assert found[0.0] == pytest.approx(100 * dsb_score(truth, rows))
    assert found[0.5] == pytest.approx(100 * dsb_score(truth, rows, 0.5)) != found[0.0]
    assert found[2.0] < found[0.0]
