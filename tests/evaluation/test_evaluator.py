"""The evaluator against Detectron2's, and what it writes."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from synthetic_results import Dataset, make_crowded_dataset, make_outputs

from instancezoo.errors import ZooError
from instancezoo.evaluation import InstanceEvaluator
from instancezoo.files import PartialFile

Register = Callable[..., str]


def run(evaluator: Any, dataset: Dataset, **options: Any) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for record, output in make_outputs(dataset, **options):
        evaluator.process([record], [output])
    return evaluator.evaluate()


def number_from_one(dataset: Dataset) -> Dataset:
    """Detectron2 counts a match with annotation 0 as none."""
    truth, results = copy.deepcopy(dataset)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    return truth, results


def equal(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    return ours.keys() == theirs.keys() and all(
        math.isclose(ours[key], theirs[key], rel_tol=1e-12)
        or (math.isnan(ours[key]) and math.isnan(theirs[key]))
        for key in ours
    )


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("use_rle", [True, False])
def test_equals_detectron2(
    small_dataset: Dataset, register: Register, backend: str, use_rle: bool
) -> None:
    dataset = number_from_one(small_dataset)
    name = register(dataset[0])
    ours = run(InstanceEvaluator(name, backend=backend), dataset, use_rle=use_rle)
    detectron2 = COCOEvaluator(name, distributed=False, use_fast_impl=False)
    theirs = run(detectron2, dataset, use_rle=False)
    assert list(ours) == list(theirs) == ["bbox", "segm"]
    assert equal(ours["bbox"], theirs["bbox"]) and equal(ours["segm"], theirs["segm"])
    assert ours["segm"]["AP"] > 1 and "AP-class13" in ours["segm"]


def test_boxes_alone_give_boxes_alone(small_dataset: Dataset, register: Register) -> None:
    name = register(small_dataset[0])
    ours = run(InstanceEvaluator(name), small_dataset, with_masks=False)
    assert list(ours) == ["bbox"] and ours["bbox"]["AP"] > 1


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_model_that_finds_nothing(
    small_dataset: Dataset, register: Register, tmp_path: Path, backend: str
) -> None:
    name = register(small_dataset[0])
    folder = tmp_path / "out"
    evaluator = InstanceEvaluator(name, backend=backend, output_dir=str(folder))
    for use_rle in (True, False):
        metrics = run(evaluator, (small_dataset[0], []), use_rle=use_rle)
        assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == 0
        assert json.loads((folder / "coco_instances_results.json").read_text()) == []


def test_no_image_at_all(small_dataset: Dataset, register: Register, caplog: Any) -> None:
    evaluator = InstanceEvaluator(register(small_dataset[0]))
    with caplog.at_level(logging.WARNING):
        assert evaluator.evaluate() == {}
    assert "no image was predicted" in caplog.text


def test_test_set_without_annotations_keeps_the_results(
    small_dataset: Dataset, register: Register, tmp_path: Path
) -> None:
    truth = {key: value for key, value in small_dataset[0].items() if key != "annotations"}
    evaluator = InstanceEvaluator(register(truth), output_dir=str(tmp_path / "out"))
    assert run(evaluator, small_dataset) == {}
    saved = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert len(saved) == 60


def test_classes_map_through_metadata(small_dataset: Dataset, register: Register) -> None:
    truth, results = small_dataset
    ids = [category["id"] for category in truth["categories"]]
    reversed_ids = {category_id: i for i, category_id in enumerate(ids[::-1])}
    mapped = register(truth, thing_dataset_id_to_contiguous_id=reversed_ids)
    expected = run(InstanceEvaluator(register(truth)), small_dataset)
    swapped = [{**r, "category_id": ids[::-1][ids.index(r["category_id"])]} for r in results]
    assert run(InstanceEvaluator(mapped), (truth, swapped))["segm"] == pytest.approx(
        expected["segm"], nan_ok=True
    )
    without = register(truth, thing_dataset_id_to_contiguous_id=None)
    assert run(InstanceEvaluator(without), small_dataset)["segm"] == pytest.approx(
        expected["segm"], nan_ok=True
    )


def test_records_without_a_file_become_annotations(small_dataset: Dataset) -> None:
    truth, _ = number_from_one(small_dataset)
    by_category = {category["id"]: i for i, category in enumerate(truth["categories"])}
    records = []
    for image in truth["images"]:
        annotations = [
            {**a, "bbox_mode": BoxMode.XYWH_ABS, "category_id": by_category[a["category_id"]]}
            for a in truth["annotations"]
            if a["image_id"] == image["id"] and not a["iscrowd"]
        ]
        records.append({**image, "image_id": image["id"], "annotations": annotations})
    name = "records_without_a_file"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = [c["name"] for c in truth["categories"]]
    try:
        metrics = run(InstanceEvaluator(name), small_dataset)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert metrics["segm"]["AP"] > 1 and metrics["bbox"]["AP"] > 1


def test_reset_and_repeated_evaluation(small_dataset: Dataset, register: Register) -> None:
    evaluator = InstanceEvaluator(register(small_dataset[0]))
    first = run(evaluator, small_dataset)
    again = evaluator.evaluate()
    assert again["segm"] == pytest.approx(first["segm"], nan_ok=True)
    after_reset = run(evaluator, (small_dataset[0], []), with_masks=False)
    assert list(after_reset) == ["bbox"] and after_reset["bbox"]["AP"] == 0


def test_leftovers_of_a_killed_evaluation_are_removed(
    small_dataset: Dataset, register: Register, tmp_path: Path
) -> None:
    for name in ("metrics.json", "coco_instances_results.json", "pictures/best_01_1.png"):
        PartialFile(tmp_path / "out" / name)
    evaluator = InstanceEvaluator(register(small_dataset[0]), output_dir=str(tmp_path / "out"))
    run(evaluator, small_dataset)
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"metrics.json", "coco_instances_results.json"}


def test_metrics_file_and_log(
    small_dataset: Dataset, register: Register, tmp_path: Path, caplog: Any
) -> None:
    truth, results = small_dataset
    for annotation in truth["annotations"]:
        annotation["attributes"] = {"holes": annotation["id"] % 2 == 0}
    folder = tmp_path / "out"
    name = register(truth)
    evaluator = InstanceEvaluator(name, backend="pycocotools", output_dir=str(folder))
    with caplog.at_level(logging.INFO):
        metrics = run(evaluator, small_dataset)
    written = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert (written["dataset"], written["backend"], written["num_images"]) == (
        name, "pycocotools", 10,
    )  # fmt: skip
    assert written["segm"]["AP"] == metrics["segm"]["AP"]
    assert written["segm"]["AP-class21"] is None  # NaN is no JSON
    assert [row["class"] for row in written["tables"]["bbox"]["class"]][:2] == ["class3", "class5"]
    assert written["tables"]["segm"]["size"][0]["size"] == "all"
    assert [row["attribute"] for row in written["tables"]["segm"]["attribute"]] == ["holes"]
    assert "segm per attribute" in caplog.text and "class13" in caplog.text
    assert written["max_dets"] == [1, 10, 100] and "segm_at_100" not in written
    assert sorted(path.name for path in folder.iterdir()) == [
        "coco_instances_results.json", "metrics.json",
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_more_than_100_detections_count_with_cocos_figures_beside(
    register: Register, tmp_path: Path, caplog: Any, backend: str
) -> None:
    dataset = make_crowded_dataset()
    name = register(dataset[0])
    folder = tmp_path / "out"
    evaluator = InstanceEvaluator(name, backend=backend, output_dir=str(folder))
    with caplog.at_level(logging.INFO):
        metrics = run(evaluator, dataset)
    assert list(metrics) == ["bbox", "segm"]  # what the best checkpoint and TensorBoard read
    written = json.loads((folder / "metrics.json").read_text())
    most = max(sum(row["image_id"] == i for row in dataset[1]) for i in (1, 2))
    assert most > 150 and written["max_dets"] == [1, 10, 100, most]
    for task in ("bbox", "segm"):
        at_100 = {
            key: math.nan if value is None else value
            for key, value in written[f"{task}_at_100"].items()
        }
        for limit, figures in ((100, at_100), (1000, metrics[task])):
            detectron2 = COCOEvaluator(
                name, distributed=False, use_fast_impl=False, max_dets_per_image=limit
            )
            assert equal(figures, run(detectron2, dataset, use_rle=False)[task])
        assert metrics[task]["AP"] > at_100["AP"] + 5
        row = next(row for row in written["tables"][task]["class"] if row["class"] == "cell")
        assert row["AP"] == metrics[task]["AP-cell"]
        assert written["tables"][task]["size"][0]["AP"] == metrics[task]["AP"]
    assert f"up to {most} " in caplog.text and "up to 100 " in caplog.text


def test_more_than_100_detections_without_an_effect_are_not_told(
    register: Register, tmp_path: Path, caplog: Any
) -> None:
    truth, results = make_crowded_dataset(num_images=1)
    for row in [*truth["annotations"], *results]:  # under 100 of a class
        row["category_id"] = 1 + (row["bbox"][1] >= 60)
    folder = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        run(InstanceEvaluator(register(truth), output_dir=str(folder)), (truth, results))
    written = json.loads((folder / "metrics.json").read_text())
    assert written["max_dets"][-1] > 150 and "segm_at_100" not in written
    assert "up to" not in caplog.text


def test_a_limit_by_hand(register: Register) -> None:
    dataset = make_crowded_dataset(num_images=1)
    name = register(dataset[0])
    for limit in (50, 100):
        ours = run(InstanceEvaluator(name, max_dets_per_image=limit), dataset)
        detectron2 = COCOEvaluator(
            name, distributed=False, use_fast_impl=False, max_dets_per_image=limit
        )
        assert equal(ours["segm"], run(detectron2, dataset, use_rle=False)["segm"])


def test_errors_name_the_image(small_dataset: Dataset, register: Register) -> None:
    evaluator = InstanceEvaluator(register(small_dataset[0]))
    record, output = next(make_outputs(small_dataset))
    output["instances"].scores[0] = torch.nan
    with pytest.raises(ValueError, match=rf"\b{record['image_id']}\b.*score"):
        evaluator.process([record], [output])
    with pytest.raises(ValueError, match="hotcoco, pycocotools"):
        InstanceEvaluator("any", backend="opencv")
    with pytest.raises(ValueError, match="output_dir"):
        InstanceEvaluator("any", num_pictures=3)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_images_may_be_named_by_text(
    small_dataset: Dataset, register: Register, backend: str
) -> None:
    truth, results = copy.deepcopy(small_dataset)
    expected = run(InstanceEvaluator(register(truth), backend=backend), (truth, results))
    for row in [*truth["annotations"], *results]:
        row["image_id"] = f"frame_{row['image_id']:04d}"  # in the order of the numbers
    for image in truth["images"]:
        image["id"] = f"frame_{image['id']:04d}"
    named = run(InstanceEvaluator(register(truth), backend=backend), (truth, results))
    assert equal(named["bbox"], expected["bbox"]) and equal(named["segm"], expected["segm"])


def test_half_precision_boxes_are_results(small_dataset: Dataset, register: Register) -> None:
    evaluator = InstanceEvaluator(register(small_dataset[0]))
    record, output = next(make_outputs(small_dataset))
    boxes = output["instances"].pred_boxes
    boxes.tensor = boxes.tensor.bfloat16()
    evaluator.process([record], [output])
    assert len(evaluator.evaluate()) == 2


def test_errors_are_of_the_kind_that_commands_show_in_one_line(
    small_dataset: Dataset, register: Register, tmp_path: Path
) -> None:
    with pytest.raises(ZooError, match=r"TEST\.COCO_BACKEND"):
        InstanceEvaluator("any", backend="opencv")
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ZooError, match=r"torn\.json"):
        run(InstanceEvaluator(register(small_dataset[0], json_file=str(tmp_path / "torn.json"))),
            small_dataset)  # fmt: skip
    record, output = next(make_outputs(small_dataset))
    output["instances"].pred_boxes.tensor[0] = torch.inf
    with pytest.raises(ZooError, match=rf"\b{record['image_id']}\b.*box"):
        InstanceEvaluator(register(small_dataset[0])).process([record], [output])
