"""Boundary F-score on shapes whose contours are known, and the command that compares results."""

import json
import math
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from synthetic_results import encode, make_dataset

from instancezoo.evaluation import GroundTruth
from instancezoo.evaluation.boundary import (
    compute_boundary_f,
    extract_contour,
    score_boundaries,
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def _make_box(x0, y0, x1, y1, size=(40, 50)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_contour_lies_inside_and_not_where_the_image_cuts():
    contour = extract_contour(_make_box(10, 10, 14, 13))
    expected = _make_box(10, 10, 14, 13)
    expected[11, 11:13] = False
    assert np.array_equal(contour, expected)
    cut = extract_contour(_make_box(0, 0, 50, 20))
    assert cut[19].all() and cut.sum() == 50
    assert not extract_contour(_make_box(0, 0, 50, 40)).any()


def test_f_of_shifted_boxes():
    truth = _make_box(10, 10, 30, 30)
    assert compute_boundary_f(truth, truth, 1) == 1.0
    assert compute_boundary_f(_make_box(11, 10, 31, 30), truth, 1) == 1.0
    # Shifted by 3 of 20: the vertical sides are off, and the ends of the horizontal ones.
    shifted = _make_box(13, 10, 33, 30)
    assert compute_boundary_f(shifted, truth, 3) == 1.0
    found = compute_boundary_f(shifted, truth, 1)
    near = 2 * (17 + 1)  # upper and lower side: 17 in common, one more within a pixel
    # of the left side, whose pixels lie inside the other box, those beside its two sides are near
    near += 2 * 1
    assert found == pytest.approx(near / 76)


def test_f_equals_a_slow_one_on_random_ellipses():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :50]
    for _ in range(20):
        masks = []
        for _ in range(2):
            cy, cx, a, b = rng.uniform([10, 10, 3, 3], [30, 40, 20, 20])
            masks.append(((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1)
        points = [np.argwhere(extract_contour(mask)) for mask in masks]
        distance = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(axis=2))
        precision = (distance.min(axis=1) <= 2).mean()
        recall = (distance.min(axis=0) <= 2).mean()
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert compute_boundary_f(*masks, tolerance=2) == pytest.approx(expected)


def test_f_without_contours():
    nothing, everything = _make_box(0, 0, 0, 0), _make_box(0, 0, 50, 40)
    assert compute_boundary_f(nothing, nothing, 1) == 1.0
    assert compute_boundary_f(everything, everything, 1) == 1.0
    assert compute_boundary_f(nothing, _make_box(5, 5, 9, 9), 1) == 0.0


def _result(mask, score=0.9, image_id=1, category_id=1):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": [0, 0, 1, 1],
        "segmentation": encode(mask),
    }


def _truth(masks):
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0}
        | {"segmentation": encode(mask), "area": int(mask.sum())}
        for i, mask in enumerate(masks)
    ]
    image = {"id": 1, "height": 40, "width": 50}
    return {
        "images": [image],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "box"}],
    }


def test_only_found_objects_are_scored():
    objects = [_make_box(2, 2, 22, 22), _make_box(25, 25, 45, 38)]
    truth = GroundTruth.read(_truth(objects))
    rows = [_result(_make_box(2, 2, 22, 21)), _result(_make_box(30, 2, 40, 12), 0.8)]
    rows += [_result(objects[0], 0.1)]  # comes too late
    scores = score_boundaries(truth, rows, tolerance=0.0)
    assert list(scores) == [(1, 0)] and scores[1, 0] == 1.0  # one pixel is always allowed
    assert score_boundaries(truth, []) == {}


def test_tolerance_grows_with_the_image():
    truth = GroundTruth.read(_truth([_make_box(2, 2, 22, 22)]))
    rows = [_result(_make_box(5, 2, 25, 22))]
    diagonal = math.hypot(40, 50)
    strict, lenient = (
        score_boundaries(truth, rows, tolerance=pixels / diagonal)[1, 0] for pixels in (1, 3)
    )
    assert strict < 0.7 and lenient == 1.0


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Run benchmarks/boundary_quality.py with arguments; what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["boundary_quality.py", *arguments])
        runpy.run_path(str(REPOSITORY / "benchmarks" / "boundary_quality.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_command_compares_files(tmp_path, run_command):
    truth, results = make_dataset(num_images=12, num_results=120)
    (tmp_path / "images").mkdir()
    for record in truth["images"]:
        record["file_name"] = f"{record['id']}.png"
        picture = np.zeros((record["height"], record["width"], 3), np.uint8)
        cv2.imwrite(str(tmp_path / "images" / record["file_name"]), picture)
    (tmp_path / "val.json").write_text(json.dumps(truth))
    files = [tmp_path / name for name in ("all.json", "half.json", "foreign.json")]
    files[0].write_text(json.dumps(results))
    files[1].write_text(json.dumps(results[::2]))
    files[2].write_text(json.dumps([{**results[0], "image_id": -1}]))
    dataset = f"boundary_quality_few={tmp_path}/val.json:{tmp_path}/images"
    lines = run_command("--dataset", dataset, *map(str, files[:2])).splitlines()
    assert lines[0].split()[:6] == ["results", "AP", "AP50", "AP75", "AP90", "found"]
    found = [int(line.split()[5]) for line in lines[2:]]
    common = [float(line.split()[-1]) for line in lines[2:]]
    assert found[0] > found[1] > 0 and all(0 < value <= 100 for value in common)
    for wrong, named in (("nowhere.json", r"nowhere\.json"), (str(files[2]), r"image -1\b")):
        with pytest.raises(SystemExit, match=rf"error: .*{named}"):
            run_command("--dataset", dataset.partition("=")[0], wrong)
