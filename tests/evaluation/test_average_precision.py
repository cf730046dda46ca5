"""Both backends against pycocotools called directly."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_codec
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic_results import Dataset, encode, make_crowded_dataset, make_dataset

from instancezoo.data.coco_masks import segmentation_to_rle
from instancezoo.evaluation import GroundTruth, evaluate_results
from instancezoo.evaluation.average_precision import BACKENDS


def count_directly(dataset: Dataset, iou_type: str, max_dets: list[int]) -> dict[str, Any]:
    truth, results = copy.deepcopy(dataset)
    for annotation in truth["annotations"]:
        annotation["id"] += 1  # pycocotools takes a match with object 0 for no match
    if iou_type == "segm":
        for result in results:
            result.pop("bbox")  # so that sizes are mask areas, as Detectron2 does
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), iou_type)
        evaluator.params.maxDets = max_dets
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_precision_equals_pycocotools_on_2000_results(
    dataset: Dataset, iou_type: str, backend: str
) -> None:
    truth, results = dataset
    assert len(truth["images"]) == 80 and len(results) == 2000
    before = json.dumps(dataset)
    evaluation = evaluate_results(truth, results, iou_type, backend)
    expected = count_directly(dataset, iou_type, [1, 10, 100])
    assert np.array_equal(evaluation.precision, expected["precision"])
    assert np.array_equal(evaluation.recall, expected["recall"])
    assert (expected["precision"] > 0).mean() > 0.1  # a comparison with content
    assert json.dumps(dataset) == before


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_backends_agree_on_real_annotations(shared_data: Path, iou_type: str) -> None:
    truth = GroundTruth.read(shared_data / "coco" / "annotations" / "instances_val2017.json")
    rng = np.random.default_rng(0)
    results = []
    for image_id, image in truth.images.items():
        for annotation in truth.annotations_of(image_id):
            size = image["height"], image["width"]
            mask = mask_codec.decode(segmentation_to_rle(annotation["segmentation"], *size))
            rle = encode(np.roll(mask, rng.integers(-6, 7, 2), (0, 1)))
            result = {**annotation, "score": round(float(rng.random()), 2), "segmentation": rle}
            results.append({**result, "bbox": mask_codec.toBbox(rle).tolist()})
    fast, slow = (evaluate_results(truth, results, iou_type, b) for b in BACKENDS)
    assert np.array_equal(fast.precision, slow.precision)
    assert np.array_equal(fast.recall, slow.recall)
    assert fast.ap() > 10


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_other_limits_of_detections(backend: str) -> None:
    dataset = make_dataset(num_images=6, num_results=120, seed=3)
    evaluation = evaluate_results(*dataset, "segm", backend, max_dets=(1, 7))
    expected = count_directly(dataset, "segm", [1, 7])
    assert np.array_equal(evaluation.precision, expected["precision"])
    assert evaluation.precision.shape == (10, 101, 5, 4, 2)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_limit_over_100_equals_pycocotools(iou_type: str, backend: str) -> None:
    dataset = make_crowded_dataset()
    evaluation = evaluate_results(*dataset, iou_type, backend, max_dets=(1, 10, 100, 300))
    for limit in (100, 300):
        expected = count_directly(dataset, iou_type, [1, 10, limit])
        ours = evaluation.at_limit(limit)
        assert ours.max_dets[-1] == limit
        assert np.array_equal(ours.precision[..., [0, 1, -1]], expected["precision"])
        assert np.array_equal(ours.recall[..., [0, 1, -1]], expected["recall"])
        precision = expected["precision"][..., 0, -1]
        assert ours.ap() == np.mean(precision[precision > -1]) * 100
    assert evaluation.ap() > evaluation.at_limit(100).ap() + 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_masks_rank_masks_and_not_boxes(small_dataset: Dataset, backend: str) -> None:
    truth, results = small_dataset
    scores = [result["score"] for result in results]
    rescored = [
        {**result, "mask_score": score}
        for result, score in zip(results, reversed(scores), strict=True)
    ]
    as_scores = [{**result, "score": result["mask_score"]} for result in rescored]
    for iou_type, expected in (("segm", as_scores), ("bbox", results)):
        found = evaluate_results(truth, rescored, iou_type, backend)
        wanted = evaluate_results(truth, expected, iou_type, backend)
        assert np.array_equal(found.precision, wanted.precision)
    plain = evaluate_results(truth, results, "segm", backend)
    assert not np.array_equal(plain.precision, evaluate_results(truth, as_scores, "segm").precision)


def test_files_give_what_memory_gives(small_dataset: Dataset, tmp_path: Path) -> None:
    truth, results = small_dataset
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    from_files = evaluate_results(tmp_path / "truth.json", tmp_path / "results.json", "segm")
    assert np.array_equal(
        from_files.precision, evaluate_results(truth, iter(results), "segm").precision
    )


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_results_is_zero_and_no_objects_is_nan(
    small_dataset: Dataset, backend: str, iou_type: str
) -> None:
    truth, results = small_dataset
    nothing_found = evaluate_results(truth, [], iou_type, backend).metrics()
    assert nothing_found["AP"] == nothing_found["AP50"] == nothing_found["AP-class3"] == 0
    assert math.isnan(nothing_found["AP-class21"])  # a class without objects
    nothing_there = evaluate_results({**truth, "annotations": []}, results, iou_type, backend)
    assert all(math.isnan(value) for value in nothing_there.metrics().values())


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_annotations_without_masks_have_no_mask_metrics(
    small_dataset: Dataset, backend: str
) -> None:
    truth, results = small_dataset
    boxes_only = copy.deepcopy(truth)
    for annotation in boxes_only["annotations"]:
        del annotation["segmentation"], annotation["area"]
    assert math.isnan(evaluate_results(boxes_only, results, "segm", backend).ap())
    assert evaluate_results(boxes_only, results, "bbox", backend).ap() > 0


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_keys_that_are_not_compared_may_hold_anything(small_dataset: Dataset, backend: str) -> None:
    truth, results = small_dataset
    expected = evaluate_results(truth, results, "segm", backend).precision
    odd = copy.deepcopy(truth)
    for category, value in zip(odd["categories"], itertools.cycle([3, None, ["a"], {}])):
        category |= {"supercategory": value, "frequency": value, "skeleton": "none"}
    for annotation in odd["annotations"]:
        annotation |= {"attributes": {"\ud800": [1], "kind": None}, "keypoints": "x"}
    assert np.array_equal(evaluate_results(odd, results, "segm", backend).precision, expected)


def test_errors_name_the_cause(small_dataset: Dataset, tmp_path: Path) -> None:
    truth, results = small_dataset
    with pytest.raises(ValueError, match=r"COCO_BACKEND.*'fast'.*hotcoco, pycocotools"):
        evaluate_results(truth, results, "segm", "fast")
    with pytest.raises(ValueError, match="'mask'"):
        evaluate_results(truth, results, "mask")
    with pytest.raises(ValueError, match=r"\b12345\b"):
        evaluate_results(truth, [{**results[0], "image_id": 12345}], "bbox")
    small_mask = {"size": [4, 5], "counts": "d0"}
    with pytest.raises(ValueError, match=rf"\b{results[0]['image_id']}\b.*4 x 5.*120 x 160"):
        evaluate_results(truth, [{**results[0], "segmentation": small_mask}], "segm")
    with pytest.raises(ValueError, match=r"absent\.json"):
        evaluate_results(tmp_path / "absent.json", [], "segm")
    (tmp_path / "torn.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"torn\.json"):
        GroundTruth.read(tmp_path / "torn.json")
