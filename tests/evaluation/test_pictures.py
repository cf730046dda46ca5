"""Best and worst pictures: which images, what is drawn, what is skipped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_results import HEIGHT, WIDTH, encode, make_dataset

from instancezoo.evaluation import GroundTruth
from instancezoo.evaluation.matching import match_detections
from instancezoo.evaluation.pictures import draw_comparison, draw_pictures, rank_images
from instancezoo.evaluation.results import ResultsFile

IMAGE = {"id": 1, "height": HEIGHT, "width": WIDTH}


def make_item(x: int, width: int = 40, category_id: int = 3, **rest: Any) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[20:60, x : x + width] = True
    box = [float(x), 20.0, float(width), 40.0]
    return {
        "image_id": 1, "category_id": category_id, "bbox": box, "area": 40.0 * width,
        "segmentation": encode(mask), "iscrowd": 0, **rest,
    }  # fmt: skip


def make_truth(annotations: list[dict[str, Any]]) -> GroundTruth:
    dataset = {"images": [IMAGE], "categories": [{"id": 3, "name": "disc"}]}
    return GroundTruth.read({**dataset, "annotations": annotations})


def write_results(rows: list[dict[str, Any]], image_ids: list[int]) -> ResultsFile:
    results = ResultsFile()
    for image_id in image_ids:
        results.append(image_id, [row for row in rows if row["image_id"] == image_id])
    return results


@pytest.fixture
def scene(tmp_path: Path) -> tuple[GroundTruth, ResultsFile, Path]:
    truth, rows = make_dataset(num_images=8, num_results=64, seed=5)
    rng = np.random.default_rng(0)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    results = write_results(rows, [image["id"] for image in truth["images"]])
    return GroundTruth.read(truth), results, tmp_path


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_matching_by_hand(iou_type: str) -> None:
    annotations = [make_item(0), make_item(50, 20), make_item(100, iscrowd=1)]
    results = [
        make_item(10, score=0.9),  # IoU 30 / 50
        make_item(0, score=0.8),  # would fit better, but the object is taken
        make_item(50, 20, category_id=5, score=0.7),  # wrong class
        make_item(110, 20, score=0.6),  # inside the crowd
    ]
    matches = match_detections(make_truth(annotations), 1, results, iou_type)
    assert matches.objects.tolist() == [0, -1, -1, -1]
    assert matches.ious.tolist() == pytest.approx([0.6, 0, 0, 0])
    assert matches.is_ignored.tolist() == [False, False, False, True]
    # one match, two false, one missed
    assert matches.quality(0.5) == pytest.approx(0.6 / (1 + 2 / 2 + 1 / 2))
    assert matches.quality(0.85) == pytest.approx(0.6 / (1 + 1 / 2))
    nothing = match_detections(make_truth([]), 1, [], iou_type)
    assert np.isnan(nothing.quality(0.5))
    assert match_detections(make_truth([]), 1, results, iou_type).quality(0.5) == 0


def test_ranking_follows_low_scores() -> None:
    truth = {"images": [IMAGE, {**IMAGE, "id": 2}], "categories": [{"id": 3, "name": "disc"}]}
    annotations = [make_item(0), make_item(0, image_id=2)]
    results = write_results(
        [
            make_item(0, score=0.2), make_item(100, score=0.01),
            make_item(8, image_id=2, score=0.2),
        ],
        [2, 1],
    )  # fmt: skip
    ranking = rank_images(GroundTruth.read({**truth, "annotations": annotations}), results, "segm")
    assert ranking.image_ids == [1, 2]
    assert ranking.qualities == pytest.approx([1, 32 / 48])
    assert 0.01 < ranking.score_threshold <= 0.2


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_pictures_are_there_and_differ(
    scene: tuple[GroundTruth, ResultsFile, Path], iou_type: str
) -> None:
    truth, results, root = scene
    folder = root / "pictures"
    folder.mkdir()
    (folder / "best_07_old.png").touch()
    paths = draw_pictures(truth, results, iou_type, root, folder, num_pictures=2)
    ranking = rank_images(truth, results, iou_type)
    best, worst = ranking.image_ids[:2], ranking.image_ids[::-1][:2]
    assert [path.name for path in paths] == [
        f"best_01_{best[0]}.png", f"best_02_{best[1]}.png",
        f"worst_01_{worst[0]}.png", f"worst_02_{worst[1]}.png",
    ]  # fmt: skip
    assert sorted(folder.iterdir()) == sorted(paths)
    assert ranking.qualities == sorted(ranking.qualities, reverse=True)
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert not np.array_equal(pictures[0], pictures[-1])
    for picture in pictures:
        assert picture.shape[0] >= 360 and picture.shape[1] >= 2 * 480
        left, right = picture[40:, :480], picture[40:, -480:]
        assert not np.array_equal(left, right)


def test_no_image_is_best_and_worst(scene: tuple[GroundTruth, ResultsFile, Path]) -> None:
    truth, results, root = scene
    paths = draw_pictures(truth, results, "segm", root, root / "pictures", num_pictures=50)
    ids = [path.stem.split("_")[2] for path in paths]
    assert len(ids) == len(set(ids)) == len(rank_images(truth, results, "segm").image_ids)


def test_unreadable_image_is_named_and_skipped(
    scene: tuple[GroundTruth, ResultsFile, Path], caplog: pytest.LogCaptureFixture
) -> None:
    truth, results, root = scene
    broken, absent, resized = rank_images(truth, results, "segm").image_ids[:3]
    (root / f"{broken}.png").write_bytes(b"no picture")
    (root / f"{absent}.png").unlink()
    Image.new("RGB", (10, 10)).save(root / f"{resized}.png")
    with caplog.at_level(logging.WARNING):
        paths = draw_pictures(truth, results, "segm", root, root / "pictures", num_pictures=3)
    assert [path.name.split("_")[0] for path in paths] == ["worst"] * len(paths)
    assert len(paths) == 3
    for image_id in (broken, absent, resized):
        assert f"{image_id}.png" in caplog.text


def test_false_detections_are_red_and_holes_stay_open(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (0, 0, 0)).save(tmp_path / "a.png")
    ring = np.zeros((HEIGHT, WIDTH), dtype=bool)
    ring[20:100, 20:100] = True
    ring[40:80, 40:80] = False
    truth = GroundTruth.read(
        {
            "images": [{**IMAGE, "file_name": "a.png"}],
            "categories": [{"id": 3, "name": "ring"}],
            "annotations": [{**make_item(20, 80), "segmentation": encode(ring)}],
        }
    )
    false = make_item(110, score=0.9)
    picture = draw_comparison(truth, 1, [false], "segm", tmp_path)
    scale, title = 3, 28
    red = picture[title + 25 * scale, 115 * scale].tolist()
    assert red[0] > 80 and red[1] < 30 and red[2] < 30
    right = picture[title:, -WIDTH * scale :]
    assert right[30 * scale, 30 * scale].max() > 80  # on the ring
    assert right[47 * scale, 47 * scale].max() < 30  # in its hole


def test_many_objects_and_empty_masks(tmp_path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 90).save(tmp_path / "a.png")
    empty = {**make_item(0, score=0.9), "segmentation": encode(np.zeros((HEIGHT, WIDTH)))}
    truth = GroundTruth.read(
        {
            "images": [{**IMAGE, "file_name": "a.png"}],
            "categories": [{"id": 3, "name": "disc"}],
            "annotations": [make_item(3 * i, 3) for i in range(40)],
        }
    )
    for results in ([], [empty], [make_item(3 * i, 3, score=0.9) for i in range(40)]):
        picture = draw_comparison(truth, 1, results, "segm", tmp_path)
        assert picture.shape == (388, 968, 3)
