"""Results on disk: streaming, random access, atomic output, merging of ranks."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from synthetic_results import encode

from instancezoo.evaluation.ground_truth import find_score
from instancezoo.evaluation.results import ResultsFile, instances_to_results
from instancezoo.files import open_atomically


def make_rows(image_id: int, count: int) -> list[dict[str, Any]]:
    return [
        {"image_id": image_id, "score": i / 8, "bbox": [0.0, 1.0, 2.0, i]} for i in range(count)
    ]


def make_instances(**fields: Any) -> Instances:
    instances = Instances((6, 7))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 4, 6], [0, 0, 3, 3]]))
    instances.scores = torch.tensor([0.75, 0.5])
    instances.pred_classes = torch.tensor([1, 0])
    for name, value in fields.items():
        instances.set(name, value)
    return instances


def test_instances_become_coco_results() -> None:
    masks = torch.zeros((2, 6, 7), dtype=torch.bool)
    masks[0, 2:6, 1:4] = True
    rles = [encode(mask) for mask in masks.numpy()]
    first, second = instances_to_results(make_instances(pred_masks=masks), 9, [10, 30])
    assert first == {
        "image_id": 9, "category_id": 30, "bbox": [1, 2, 3, 4], "score": 0.75,
        "segmentation": rles[0],
    }  # fmt: skip
    assert second["category_id"] == 10 and second["segmentation"] == rles[1]
    as_bytes = [{**rle, "counts": rle["counts"].encode()} for rle in rles]
    for form in (rles, as_bytes, BitMasks(masks), masks.byte()):
        assert instances_to_results(make_instances(pred_masks=form), 9, [10, 30]) == [first, second]
    assert "segmentation" not in instances_to_results(make_instances(), 9, [10, 30])[0]


def test_masks_may_have_scores_of_their_own() -> None:
    masks = torch.ones((2, 6, 7), dtype=torch.bool)
    instances = make_instances(pred_masks=masks, mask_scores=torch.tensor([0.25, 0.5]))
    first, second = instances_to_results(instances, 9, [10, 30])
    assert [find_score(first, "segm"), find_score(first, "bbox")] == [0.25, 0.75]
    assert find_score(second, "segm") == second["mask_score"] == 0.5
    instances.mask_scores[1] = float("inf")
    with pytest.raises(ValueError, match=r"\b77\b.*mask score"):
        instances_to_results(instances, 77, [1, 2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_the_image(value: float) -> None:
    scores = torch.tensor([0.5, value])
    with pytest.raises(ValueError, match=r"\b77\b.*score"):
        instances_to_results(make_instances(scores=scores), 77, [1, 2])
    boxes = Boxes(torch.tensor([[0.0, 0, 1, value], [0, 0, 1, 1]]))
    with pytest.raises(ValueError, match=r"\b77\b.*box"):
        instances_to_results(make_instances(pred_boxes=boxes), 77, [1, 2])


def test_unknown_class_names_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"\b77\b.*class 1\b"):
        instances_to_results(make_instances(), 77, [1])


def test_reads_in_order_and_by_id_between_writes() -> None:
    results = ResultsFile()
    results.append(5, make_rows(5, 2))
    results.append(3, [])
    seen = []
    for image_id, rows in results:
        assert results.read(5) == make_rows(5, 2)  # reading elsewhere does not disturb
        seen.append((image_id, len(rows)))
    assert seen == [(5, 2), (3, 0)]
    results.append(4, make_rows(4, 1))
    assert results.image_ids() == [5, 3, 4]
    assert results.read(4) == make_rows(4, 1) and results.read(99) == []


def test_memory_does_not_grow_with_images() -> None:
    results = ResultsFile()
    tracemalloc.start()
    try:
        for image_id in range(100):
            results.append(image_id, make_rows(image_id, 20))
        before = tracemalloc.get_traced_memory()[0]
        for image_id in range(100, 2000):
            results.append(image_id, make_rows(image_id, 20))
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
        tracemalloc.reset_peak()
        assert sum(len(rows) for _, rows in results) == 2000 * 20
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 100_000
    assert results._size > 2_000_000


def test_leaves_no_file_and_no_handle(tmp_path: Path) -> None:
    handles = len(os.listdir("/dev/fd"))
    results = ResultsFile(tmp_path)
    results.append(1, make_rows(1, 1))
    assert list(tmp_path.iterdir()) == []  # unnamed: a killed process leaves nothing
    results.close()
    assert len(os.listdir("/dev/fd")) == handles


def test_json_output_is_whole_or_absent(tmp_path: Path) -> None:
    results = ResultsFile()
    path = tmp_path / "folder" / "results.json"
    results.write_json(path)
    assert json.loads(path.read_text()) == []
    results.append(2, make_rows(2, 3))
    results.append(1, make_rows(1, 1))
    results.write_json(path)
    whole = make_rows(2, 3) + make_rows(1, 1)
    assert json.loads(path.read_text()) == whole
    with pytest.raises(RuntimeError, match="torn"), open_atomically(path, "w") as file:
        file.write("[")
        raise RuntimeError("torn")
    assert json.loads(path.read_text()) == whole
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_not_a_number_never_reaches_the_disk() -> None:
    with pytest.raises(ValueError):
        ResultsFile().append(1, [{"score": float("nan")}])


def test_one_rank_drops_its_duplicates() -> None:
    results = ResultsFile()
    for image_id in (4, 2, 4):
        results.append(image_id, make_rows(image_id, 1))
    merged = results.gather()
    assert merged is not None and [image_id for image_id, _ in merged] == [4, 2]
