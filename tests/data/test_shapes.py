"""The built-in sets: the same on every machine, honest attributes, whole on disk."""

import json
import multiprocessing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from instancezoo.data import shapes as shapes_module
from instancezoo.data.shape_attributes import measure_attributes
from instancezoo.data.shape_outlines import FULL_COVERAGE, SHAPES, measure_coverage
from instancezoo.data.shapes import (
    SHAPES_SETS,
    ShapesSet,
    draw_shapes_image,
    generate_shapes,
    get_shapes,
)

FIRST_IMAGES = {
    "shapes_train": ["898ec398e78f3241", "c17c2d642240e303", "93386029cec90537"],
    "shapes_val": ["f353b48b02b0659f", "4ae74cca551bbfec", "f87c5362566a3b7f"],
    "shapes_tiny_train": ["044217be29b7173e", "71b2eb7beabc3611", "cec69c39a9362938"],
    "shapes_tiny_val": ["c8ca71f255b76779", "389231b42773dfce", "8082f880f90e30ad"],
    "shapes_twins_train": ["2f71baf3bc17d4d4", "26bb102178db9d77", "72ab23d83ab88cb0"],
    "shapes_twins_val": ["3164c3d57d90e35b", "bed7c13d195f0f3f", "fcd000bea2b842c9"],
}
JSON_OF_FIVE = {
    "shapes_train": "bf35ce3862faf597",
    "shapes_val": "c792bb55a5a47fa3",
    "shapes_tiny_train": "bf0ba4b7181f2366",
    "shapes_tiny_val": "a65dfb240dbfc880",
    "shapes_twins_train": "94046817010fa9d4",
    "shapes_twins_val": "3a812cee7ca9a3ee",
}


def _hash_pixels(pixels: np.ndarray) -> str:
    return sha256(pixels.astype(np.uint8).tobytes()).hexdigest()[:16]


def _shorten(name: str, num_images: int) -> ShapesSet:
    full = SHAPES_SETS[name]
    return ShapesSet(full.style, num_images=num_images, seed=full.seed)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(tmp_path))
    for name in SHAPES_SETS:
        monkeypatch.setitem(SHAPES_SETS, name, _shorten(name, 3))
    return tmp_path


@pytest.mark.parametrize("name", list(SHAPES_SETS))
def test_images_and_json_are_the_same_everywhere(name: str, tmp_path: Path) -> None:
    shapes = _shorten(name, 5)

    generate_shapes(shapes, tmp_path)

    hashes = []
    for index in range(3):
        with Image.open(tmp_path / "images" / f"{index:05d}.png") as image:
            assert image.mode == "RGB"
            hashes.append(_hash_pixels(np.asarray(image)))
    assert hashes == FIRST_IMAGES[name]
    content = (tmp_path / "annotations.json").read_bytes()
    assert sha256(content).hexdigest()[:16] == JSON_OF_FIVE[name]


def test_an_image_does_not_depend_on_the_others() -> None:
    shapes = SHAPES_SETS["shapes_train"]

    alone = draw_shapes_image(shapes, 7)

    assert [draw_shapes_image(shapes, index) for index in range(7)]  # draws that come before
    again = draw_shapes_image(shapes, 7)
    np.testing.assert_array_equal(alone.image, again.image)
    np.testing.assert_array_equal(alone.masks, again.masks)


def test_sets_are_what_the_readme_says() -> None:
    sizes = {name: (s.num_images, s.style.size) for name, s in SHAPES_SETS.items()}
    assert sizes == {
        "shapes_train": (2000, 192),
        "shapes_val": (200, 192),
        "shapes_tiny_train": (400, 128),
        "shapes_tiny_val": (100, 128),
        "shapes_twins_train": (400, 128),
        "shapes_twins_val": (100, 128),
    }
    assert len(SHAPES_SETS["shapes_val"].style.classes) == 8
    assert len(SHAPES_SETS["shapes_tiny_val"].style.classes) == 4
    assert len({s.seed for s in SHAPES_SETS.values()}) == 6


@pytest.mark.parametrize("name", ["shapes_val", "shapes_tiny_val"])
def test_annotations_agree_with_their_masks(name: str, tmp_path: Path) -> None:
    shapes = _shorten(name, 20)
    generate_shapes(shapes, tmp_path)
    coco = json.loads((tmp_path / "annotations.json").read_text())

    for image in coco["images"]:
        annotations = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        masks = np.stack([mask_util.decode(a["segmentation"]) for a in annotations])
        assert masks.shape[1:] == (shapes.style.size, shapes.style.size)
        assert masks.sum(axis=0).max() == 1  # visible parts do not overlap
        for mask, annotation in zip(masks, annotations, strict=True):
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["bbox"] == box
            assert annotation["area"] == mask.sum() >= 16
            assert annotation["iscrowd"] == 0
    tiny = name == "shapes_tiny_val"
    counts = np.bincount([a["image_id"] for a in coco["annotations"]])[1:]
    assert counts.min() >= 1
    assert counts.max() <= 4 if tiny else counts.max() > 9
    shown = {key for a in coco["annotations"] for key, value in a["attributes"].items() if value}
    if not tiny:
        assert shown == {"occluded", "holes", "split", "concave", "small", "crowded"}


def test_twins_are_copies_side_by_side() -> None:
    for index in range(20):
        scene = draw_shapes_image(SHAPES_SETS["shapes_twins_val"], index)
        assert 8 <= len(scene.masks) <= 30 and len(set(scene.names)) == 1
        assert max(scene.full_areas) < 1.1 * min(scene.full_areas)  # whole pixels differ a little
        pixels = scene.image[np.any(scene.masks, axis=0)]
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        flat = colours[counts.argsort()[-2:]]  # of the rims and inside of them
        for mask in scene.masks:
            is_flat = (scene.image[mask][:, None] == flat).all(axis=2)
            assert is_flat.any(axis=0).all() and is_flat.any(axis=1).mean() > 0.3
        attributes = measure_attributes(np.stack(scene.masks), scene.full_areas)
        assert sum(each["crowded"] for each in attributes) >= 0.75 * len(scene.masks)


@pytest.mark.parametrize("name", list(SHAPES))
def test_outlines_fill_the_unit_disc(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        outline = SHAPES[name](rng)
        reach = max(np.hypot(*contour.T).max() for contour in outline)
        assert 0.9 < reach <= 1.2


def test_coverage_equals_a_sample_by_sample_count() -> None:
    triangle = np.array([[-2.0, 1.3], [9.2, -1.0], [4.1, 8.7]])

    coverage = measure_coverage([triangle], 7, 8)

    corners = np.rint(triangle * 256)
    reference = np.zeros((7, 8), dtype=int)
    for y in range(28):
        for x in range(32):
            point = np.array([x * 64 + 32, y * 64 + 32])
            edges = np.roll(corners, -1, axis=0) - corners
            side = edges[:, 0] * (point - corners)[:, 1] - edges[:, 1] * (point - corners)[:, 0]
            reference[y // 4, x // 4] += abs(np.sign(side).sum()) == 3
    np.testing.assert_array_equal(coverage, reference)
    assert coverage.max() == FULL_COVERAGE


def _describe(*masks: np.ndarray, full_areas: list[int] | None = None) -> list[dict[str, bool]]:
    stacked = np.stack(masks).astype(bool)
    return measure_attributes(stacked, full_areas or [int(mask.sum()) for mask in stacked])


def _rectangle(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros((64, 64), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


PLAIN = {"occluded", "holes", "split", "concave", "small", "crowded"}


def _true_names(attributes: dict[str, bool]) -> set[str]:
    assert set(attributes) == PLAIN
    return {name for name, value in attributes.items() if value}


def test_attributes_of_a_plain_square() -> None:
    assert _true_names(*_describe(_rectangle(10, 10, 40, 40))) == set()


def test_attributes_at_the_image_border() -> None:
    assert _true_names(*_describe(_rectangle(0, 0, 64, 64))) == set()


@pytest.mark.parametrize(("side", "small"), [(15, True), (16, False)])
def test_small_is_under_16_by_16(side: int, small: bool) -> None:
    names = _true_names(*_describe(_rectangle(10, 10, 10 + side, 10 + side)))
    assert names == ({"small"} if small else set())


@pytest.mark.parametrize(("full_area", "occluded"), [(999, False), (1001, True)])
def test_occluded_is_under_90_percent_visible(full_area: int, occluded: bool) -> None:
    mask = _rectangle(10, 10, 40, 40)  # 900 pixels
    names = _true_names(*_describe(mask, full_areas=[full_area]))
    assert names == ({"occluded"} if occluded else set())


def test_a_hole_is_no_concavity() -> None:
    mask = _rectangle(10, 10, 40, 40) & ~_rectangle(20, 20, 30, 30)
    assert _true_names(*_describe(mask)) == {"holes"}


def test_a_hole_of_a_few_pixels_does_not_count() -> None:
    mask = _rectangle(10, 10, 40, 40) & ~_rectangle(20, 20, 23, 23)
    assert _true_names(*_describe(mask)) == set()


def test_a_notch_is_no_hole() -> None:
    mask = _rectangle(10, 10, 40, 40) & ~_rectangle(10, 18, 32, 30)
    assert _true_names(*_describe(mask)) == {"concave"}


def test_a_hole_open_at_a_corner_is_closed() -> None:
    # Two pixels that touch at a corner are one part, so the background between them is cut.
    mask = _rectangle(10, 10, 40, 40) & ~_rectangle(20, 20, 40, 30)
    mask |= _rectangle(30, 20, 40, 30)
    assert _true_names(*_describe(mask)) == {"holes"}


def test_split_by_an_occluder() -> None:
    mask = _rectangle(10, 10, 40, 40) & ~_rectangle(10, 24, 40, 26)
    assert _true_names(*_describe(mask, full_areas=[900])) == {"split"}


def test_a_crumb_is_no_part() -> None:
    mask = _rectangle(10, 10, 40, 40) | _rectangle(42, 10, 44, 12)
    assert "split" not in _true_names(*_describe(mask))


def test_parts_that_touch_at_a_corner_are_one() -> None:
    mask = _rectangle(0, 0, 20, 20) | _rectangle(20, 20, 40, 40)
    assert _true_names(*_describe(mask)) == {"concave"}


@pytest.mark.parametrize(("gap", "crowded"), [(2, True), (3, False)])
def test_crowded_has_two_near_neighbours(gap: int, crowded: bool) -> None:
    middle = _rectangle(20, 20, 40, 40)
    left = _rectangle(20, 0, 40, 20 - gap + 1)
    right = _rectangle(20, 40 + gap - 1, 40, 64)
    names = [_true_names(attributes) for attributes in _describe(middle, left, right)]
    assert names == [{"crowded"} if crowded else set(), set(), set()]


def test_a_killed_generation_is_never_read(cache: Path) -> None:
    left_over = cache / ".shapes_tiny_val-v1-killed"
    (left_over / "images").mkdir(parents=True)
    (left_over / "annotations.json").write_text("{")
    (cache / "shapes_tiny_val-v1" / "images").mkdir(parents=True)  # somebody deleted the JSON

    json_file, image_root = get_shapes("shapes_tiny_val")

    assert len(json.loads(json_file.read_text())["images"]) == 3
    assert len(list(image_root.iterdir())) == 3
    assert not left_over.exists()


def test_a_failing_generation_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(shapes_module, "open_atomically", fail)
    with pytest.raises(OSError, match="disk full"):
        get_shapes("shapes_tiny_val")
    assert [path.name for path in cache.iterdir()] == ["shapes_tiny_val-v1.lock"]


def test_a_second_call_draws_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_shapes("shapes_tiny_val")
    monkeypatch.setattr(shapes_module, "generate_shapes", None)
    assert get_shapes("shapes_tiny_val") == first


def _report_drawing(results: "multiprocessing.Queue[int]", start: "multiprocessing.Event") -> None:
    drawn = []
    draw = shapes_module.draw_shapes_image
    shapes_module.draw_shapes_image = lambda *args: drawn.append(1) or draw(*args)
    start.wait()
    json_file, image_root = get_shapes("shapes_tiny_val")
    assert len(json.loads(json_file.read_text())["images"]) == len(list(image_root.iterdir())) == 3
    results.put(len(drawn))


def test_processes_at_once_draw_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, start = context.Queue(), context.Event()
    processes = [context.Process(target=_report_drawing, args=(results, start)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    drawn = sorted(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert drawn == [0, 0, 0, 3]
