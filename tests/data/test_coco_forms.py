"""The forms in which people write ids, coordinates, masks and texts, and what becomes of each."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from coco_files import HEIGHT, SQUARE, WIDTH, check, make_coco

from instancezoo.data.coco_boxes import find_misfits
from instancezoo.data.coco_dataset import DatasetError, check_coco, list_classes, make_records
from instancezoo.data.coco_masks import segmentation_to_rle
from instancezoo.data.coco_polygons import check_polygons, clip_polygon
from instancezoo.data.coco_values import BadEntry, Problem


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_any_unicode_text_is_read(coco_folder: Path, encoding: str) -> None:
    coco = make_coco()
    coco["categories"][0]["name"] = "zelle é"
    text = json.dumps(coco, ensure_ascii=False)
    (coco_folder / "annotations.json").write_bytes(text.encode(encoding))

    clean, report = check_coco(coco_folder / "annotations.json", coco_folder)

    assert list_classes(clean)[0] == ["dirt", "zelle é"]
    assert report.num_annotations == 6
    # Stock tools read UTF-8 only, so they get a copy.
    assert report.is_clean == (encoding == "utf-8")
    assert (encoding == "utf-8") or "evaluation uses a copy in UTF-8" in report.summary()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (SQUARE, [SQUARE]),
        ([str(number) for number in SQUARE], [SQUARE]),
        ([[str(number) for number in SQUARE]], [SQUARE]),
        ([[4, 4], [14, 4], [14, 14], [4, 14]], [SQUARE]),
        ([[[4, 4], [14, 4], [14, 14], [4, 14]]], [SQUARE]),
        ([[[4, "4"], [14, 4], [14, 14], [4, 14]], [[1, 1], [3, 1], [3, 3]]],
         [SQUARE, [1, 1, 3, 1, 3, 3]]),
    ],
)  # fmt: skip
def test_polygons_in_other_forms(written: Any, expected: Any, coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"][0]["segmentation"] = written
    clean, report = check(coco, coco_folder)
    assert not report.dropped
    assert report.repaired == {Problem.POLYGON_REWRITTEN: [10]}
    assert clean["annotations"][0]["segmentation"] == expected


@pytest.mark.parametrize(
    "change",
    [{"bbox": ["4", "4", "10", "10.0"]}, {"image_id": "1"}, {"iscrowd": "0"}, {"category_id": "3"}],
)
def test_numbers_as_texts(change: dict[str, Any], coco_folder: Path) -> None:
    coco = make_coco()
    expected = dict(coco["annotations"][0])
    coco["annotations"][0] |= change
    clean, report = check(coco, coco_folder)
    assert not report.dropped
    assert report.repaired == {Problem.NORMALISED: [10]}
    assert clean["annotations"][0] == expected


def test_sizes_as_texts_and_floats(coco_folder: Path) -> None:
    coco = make_coco()
    coco["images"][0] |= {"height": str(HEIGHT), "width": float(WIDTH)}
    coco["annotations"][1]["segmentation"]["size"] = [str(HEIGHT), float(WIDTH)]
    clean, report = check(coco, coco_folder)
    assert not report.dropped
    assert report.repaired == {
        f"image with {Problem.NORMALISED}": [2],
        Problem.NORMALISED: [11, 21],
    }
    assert clean["annotations"][1]["segmentation"]["size"] == [HEIGHT, WIDTH]


@pytest.mark.parametrize("make_id", [lambda i: f"scan {i}", lambda i: 2**53 + i, lambda i: -i])
def test_image_ids_of_any_kind(make_id: Any, coco_folder: Path) -> None:
    coco = make_coco()
    for entry in coco["images"]:
        entry["id"] = make_id(entry["id"])
    for entry in coco["annotations"]:
        entry["image_id"] = make_id(entry["image_id"])

    clean, report = check(coco, coco_folder)

    assert report.is_clean
    records = make_records(clean, coco_folder)
    assert {record["image_id"] for record in records} == {make_id(1), make_id(2)}
    assert [len(record["annotations"]) for record in records] == [3, 3]


def test_numbers_and_texts_as_image_ids_in_one_file(coco_folder: Path) -> None:
    coco = make_coco()
    coco["images"][0]["id"] = "2"  # its annotations say 2
    clean, report = check(coco, coco_folder)
    assert report.num_annotations == 6
    assert [record["image_id"] for record in make_records(clean, coco_folder)] == [1, "2"]


@pytest.mark.parametrize("odd", ["cell", 2**60, -7])
def test_category_ids_become_numbers(odd: Any, coco_folder: Path) -> None:
    coco = make_coco()
    coco["categories"][0]["id"] = odd
    for annotation in coco["annotations"]:
        if annotation["category_id"] == 7:
            annotation["category_id"] = odd
    clean, report = check(coco, coco_folder)
    assert not report.dropped
    assert list(report.repaired) == [f"category with {Problem.NO_NUMBER}", *(
        [Problem.NORMALISED] if isinstance(odd, str) else []
    )]  # fmt: skip
    assert list_classes(clean) == (["dirt", "cell"], {3: 0, 4: 1})
    assert {annotation["category_id"] for annotation in clean["annotations"]} == {3, 4}


def test_a_category_id_with_two_names_is_refused(coco_folder: Path) -> None:
    coco = make_coco()
    coco["categories"].append({"id": 3, "name": "dust"})
    with pytest.raises(DatasetError, match=r"category 3 .* is 'dirt' and 'dust'"):
        check(coco, coco_folder)


def test_an_image_id_of_two_pictures_fits_neither(coco_folder: Path) -> None:
    coco = make_coco()
    coco["images"].append({**coco["images"][0], "file_name": "1.png"})
    clean, report = check(coco, coco_folder)
    assert report.dropped == {
        f"image with {Problem.AMBIGUOUS_ID}": [2],
        Problem.DROPPED_IMAGE: [20, 21, 22],
    }
    assert [image["id"] for image in clean["images"]] == [1]


def test_backslashes_in_file_names(coco_folder: Path) -> None:
    (coco_folder / "sub").mkdir()
    shutil.copy(coco_folder / "1.png", coco_folder / "sub")
    coco = make_coco()
    coco["images"][1]["file_name"] = ".\\sub\\1.png"
    clean, report = check(coco, coco_folder)
    assert report.repaired == {Problem.BACKSLASHES: [1]}
    assert not report.dropped
    assert clean["images"][1]["file_name"] == "sub/1.png"


def _drop_masks(coco: dict[str, Any], empty: Any, ids: range) -> None:
    for annotation in coco["annotations"]:
        if annotation["id"] in ids:
            annotation["segmentation"] = empty
            if empty == "absent":
                del annotation["segmentation"]


@pytest.mark.parametrize("empty", ["absent", None, [], [[]], [[], []], {}, "", 0])
@pytest.mark.parametrize("ids", [range(10, 23), range(10, 13)])
def test_boxes_without_masks_are_kept(empty: Any, ids: range, coco_folder: Path) -> None:
    coco = make_coco()
    _drop_masks(coco, empty, ids)

    clean, report = check(coco, coco_folder)

    num_boxes = sum(annotation["id"] in ids for annotation in coco["annotations"])
    assert report.is_clean and report.num_annotations == 6
    assert report.num_boxes_only == num_boxes
    assert f"{num_boxes} of 6 annotations have no segmentation" in report.summary()
    assert sum("segmentation" in annotation for annotation in clean["annotations"]) == 6 - num_boxes
    for record in make_records(clean, coco_folder):
        assert [a["bbox"] for a in record["annotations"]] == [[4, 4, 10, 10], *[[3, 5, 6, 10]] * 2]


def test_the_area_of_a_box_without_mask(coco_folder: Path) -> None:
    coco = make_coco()
    _drop_masks(coco, None, range(10, 11))
    del coco["annotations"][0]["area"]
    clean, _ = check(coco, coco_folder)
    assert clean["annotations"][0]["area"] == 100


def _as_share(value: Any, place: int = 0) -> Any:
    if isinstance(value, list):
        return [_as_share(item, index) for index, item in enumerate(value)]
    return value / (HEIGHT if place % 2 else WIDTH)


@pytest.mark.parametrize("odd", [{}, {"image_id": "1"}, {"image_id": 1.0}, "texts"])
def test_shares_of_the_image_become_pixels(coco_folder: Path, odd: Any) -> None:
    coco = make_coco()
    coco["annotations"] = [a for a in coco["annotations"] if a["id"] % 10 == 0]
    expected = [dict(annotation) for annotation in coco["annotations"]]
    for annotation in coco["annotations"]:
        annotation |= {key: _as_share(annotation[key]) for key in ("bbox", "segmentation")}

    if odd == "texts":
        coco["annotations"][0]["bbox"] = list(map(str, coco["annotations"][0]["bbox"]))
    else:
        coco["annotations"][0] |= odd

    clean, report = check(coco, coco_folder)

    assert report.repaired[Problem.SHARES] == [10, 20]
    assert set(report.repaired) <= {Problem.SHARES, Problem.NORMALISED}
    for found, right in zip(clean["annotations"], expected, strict=True):
        np.testing.assert_allclose(found["bbox"], right["bbox"])
        np.testing.assert_allclose(found["segmentation"], right["segmentation"])
        assert found["area"] == right["area"]


def test_small_objects_in_the_corner_are_no_shares(coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"][0] |= {
        "bbox": [0, 0, 1, 1],
        "segmentation": [[0, 0, 0.9, 0, 0.9, 0.9, 0, 0.9]],
    }
    clean, report = check(coco, coco_folder)
    assert not report.repaired
    assert clean["annotations"][0]["bbox"] == [0, 0, 1, 1]


_XYXY = "[x1, y1, x2, y2]"
_CASES = {
    "xyxy": (lambda x, y, w, h: [x, y, x + w, y + h], _XYXY),
    "centre": (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "centre"),
    "swapped": (lambda x, y, w, h: [y, x, h, w], "swapped"),
    "shares": (lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT], "shares"),
    "half": (lambda x, y, w, h: [x / 2, y / 2, w / 2, h / 2], "another size"),
    "none": (lambda x, y, w, h: [x, y, w + 4, h], ""),
}


@pytest.mark.parametrize("name", _CASES)
def test_boxes_that_do_not_fit_are_told_with_the_cause(name: str, coco_folder: Path) -> None:
    write, cause = _CASES[name]
    coco = make_coco()
    shapes = {10: (4, 8, 10, 14), 11: (12, 3, 11, 7), 20: (5, 6, 12, 7), 21: (10, 9, 8, 14)}
    coco["annotations"] = [a for a in coco["annotations"] if a["id"] in shapes]
    for annotation in coco["annotations"]:
        x, y, w, h = shapes[annotation["id"]]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotation["bbox"] = write(x, y, w, h)

    _, report = check(coco, coco_folder)

    assert report.misfits == [10, 11, 20, 21]
    assert cause in report.misfit_cause and bool(cause) == bool(report.misfit_cause)
    assert "4 of 4 boxes do not lie around their masks" in report.summary()


def test_boxes_within_two_pixels_of_the_mask_fit() -> None:
    rng = np.random.default_rng(0)
    low, sides = rng.uniform(0, 40, (200, 2)), rng.uniform(1, 60, (200, 2))
    extents = np.concatenate([low, low + sides], axis=1)
    corners = extents + rng.uniform(-2, 2, extents.shape)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    misfits, cause = find_misfits(boxes, extents, np.full((200, 2), 100.0))
    assert not misfits.any() and cause == ""


def _decode(segmentation: Any) -> np.ndarray:
    return mask_util.decode(segmentation_to_rle(segmentation, HEIGHT, WIDTH))


@pytest.mark.parametrize("seed", range(5))
def test_far_polygons_keep_their_visible_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_clipped = 0
    for _ in range(40):
        reach = 10 ** rng.uniform(1, 4)
        xy = (rng.uniform(-reach, reach, (rng.integers(3, 9), 2)) + [16, 12]).reshape(-1).tolist()
        visible = _decode([xy])
        try:
            mask = check_polygons([xy], HEIGHT, WIDTH)
        except BadEntry as bad:
            assert not visible.any(), bad
            continue
        num_clipped += Problem.POLYGON_CLIPPED in mask.repairs
        np.testing.assert_array_equal(_decode(mask.segmentation), visible)
        np.testing.assert_array_equal(mask_util.decode(mask.rle), visible)
    assert num_clipped


def test_a_polygon_too_long_to_walk_is_clipped() -> None:
    far = 1e8
    mask = check_polygons([[-far, 5, far, 5, far, 15, -far, 15]], HEIGHT, WIDTH)
    assert mask.repairs == [Problem.POLYGON_CLIPPED]
    expected = np.zeros((HEIGHT, WIDTH))
    expected[5:15] = 1
    np.testing.assert_array_equal(_decode(mask.segmentation), expected)


def test_clipping_keeps_what_is_inside() -> None:
    square = np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]])
    assert (clip_polygon(square, -1, 3) == square).all()
    assert len(clip_polygon(square, 5, 9)) == 0
    assert sorted(clip_polygon(square, 1, 9).tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_what_is_no_number_among_shares_is_left_to_the_check(coco_folder: Path) -> None:
    coco = make_coco()
    for annotation in coco["annotations"]:
        annotation |= {"bbox": [0.1, 0.2, 0.5, None], "segmentation": [[0.1, {}, 0.5, 0.5, 1, 1]]}
    with pytest.raises(DatasetError, match="'segmentation' must be polygons"):
        check(coco, coco_folder)


@pytest.mark.parametrize("polygons", [[SQUARE + SQUARE], [[5.1, 5.1, 5.3, 5.1, 5.3, 5.3]]])
def test_a_polygon_of_no_pixel_is_dropped(polygons: Any, coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"][0]["segmentation"] = polygons
    _, report = check(coco, coco_folder)
    assert report.dropped == {Problem.ZERO_AREA: [10]}


def test_a_mask_without_a_pixel_is_dropped_in_spite_of_its_area(coco_folder: Path) -> None:
    coco = make_coco()
    sliver = [[5.1, 5.1, 5.3, 5.1, 5.3, 5.3]]
    coco["annotations"][0] |= {"segmentation": sliver, "bbox": [5.1, 5.1, 0.2, 0.2], "area": 0.02}
    _, report = check(coco, coco_folder)
    assert report.dropped == {Problem.ZERO_AREA: [10]}


@pytest.mark.parametrize(("written", "used"), [("0001", 1), (1, "0001"), ("1.0", 1)])
def test_image_ids_that_are_the_same_number(written: Any, used: Any, coco_folder: Path) -> None:
    coco = make_coco()
    coco["images"][1]["id"] = written
    for annotation in coco["annotations"][:3]:
        annotation["image_id"] = used
    _, report = check(coco, coco_folder)
    assert not report.dropped and report.num_annotations == 6


def test_texts_that_are_one_number_are_different_categories(coco_folder: Path) -> None:
    coco = make_coco()
    coco["categories"] = [{"id": "1", "name": "cat"}, {"id": "01", "name": 2}]
    for annotation in coco["annotations"]:
        annotation["category_id"] = "1" if annotation["category_id"] == 3 else "01"
    clean, report = check(coco, coco_folder)
    assert not report.dropped and not report.is_clean
    assert list_classes(clean) == (["cat", "2"], {1: 0, 2: 1})


def test_category_names_that_are_numbers_are_told(coco_folder: Path) -> None:
    coco = make_coco()
    coco["categories"][1]["name"] = 4
    clean, report = check(coco, coco_folder)
    assert report.repaired == {f"category with {Problem.NORMALISED}": [3]}
    assert list_classes(clean)[0] == ["4", "cell"]


def test_an_object_as_large_as_the_image_is_among_the_shares(coco_folder: Path) -> None:
    coco = make_coco()
    for annotation in coco["annotations"]:
        annotation |= {"bbox": [0.1, 0.2, 0.5, 0.51], "segmentation": None}
    coco["annotations"][0]["bbox"] = [0, 0, 1, 1]
    coco["annotations"][1]["bbox"] = [0, 0.2, 0.5, 1.004]
    clean, report = check(coco, coco_folder)
    assert report.repaired[Problem.SHARES] == [10, 11, 12, 20, 21, 22]
    assert clean["annotations"][0]["bbox"] == [0, 0, WIDTH, HEIGHT]


def test_polygons_as_shares_under_boxes_in_pixels_are_told(coco_folder: Path) -> None:
    coco = make_coco()
    for annotation in coco["annotations"]:
        x, y, w, h = 1, 2, 26, 20
        annotation |= {"bbox": [x, y, w, h], "iscrowd": 0}
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotation["segmentation"] = [[_as_share(v, i) for i, v in enumerate(corners)]]
    _, report = check(coco, coco_folder)
    assert report.misfit_cause == "the polygons are shares of the image (0 to 1), not pixels"


def test_reports_show_what_was_found_first(coco_folder: Path) -> None:
    coco = make_coco()
    coco["images"][0]["file_name"] = "a\\2.png"
    coco["images"][1] |= {"height": WIDTH, "width": HEIGHT}
    with pytest.raises(DatasetError) as error:
        check(coco, coco_folder)
    summary = str(error.value)
    assert f"missing image file (id 2; first: {coco_folder / 'a'}" in summary
    assert f"1.png is {WIDTH} x {HEIGHT}, its entry {HEIGHT} x {WIDTH}" in summary
    assert "repaired" not in summary
