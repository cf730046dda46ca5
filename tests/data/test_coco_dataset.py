"""Bad COCO JSONs are dropped and counted, or refused in words; never a traceback from inside."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from coco_files import AREA, HEIGHT, SQUARE, WIDTH, check, make_coco, make_rle
from detectron2.structures import BoxMode
from PIL import Image

from instancezoo.data.coco_dataset import DatasetError, check_coco, list_classes, make_records
from instancezoo.data.coco_values import EXPECTED


def test_a_good_file_loses_nothing(coco_folder: Path) -> None:
    clean, report = check(make_coco(), coco_folder)

    assert report.is_clean
    assert (report.num_images, report.num_annotations) == (2, 6)
    totals, crowds = report.summary().splitlines()
    assert totals == f"{coco_folder / 'annotations.json'}: 2 images, 6 annotations"
    assert "2 of 6 annotations have iscrowd 1" in crowds
    assert list_classes(clean) == (["dirt", "cell"], {3: 0, 7: 1})


def test_records_are_what_detectron2_takes(coco_folder: Path) -> None:
    clean, _ = check(make_coco(), coco_folder)

    records = make_records(clean, coco_folder)

    assert [record["image_id"] for record in records] == [1, 2]
    assert records[0]["file_name"] == str(coco_folder / "1.png")
    assert (records[0]["height"], records[0]["width"]) == (HEIGHT, WIDTH)
    polygon, rle, crowd = records[0]["annotations"]
    assert polygon == {
        "bbox": [4, 4, 10, 10],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": [SQUARE],
        "attributes": {"small": True},
    }
    assert (rle["category_id"], rle["iscrowd"], crowd["iscrowd"]) == (1, 0, 1)
    # The run-length list became the same string as the mask.
    assert crowd["segmentation"] == rle["segmentation"]
    assert isinstance(rle["segmentation"]["counts"], str)


def _drop(*keys: str):
    def change(annotation: dict[str, Any]) -> None:
        for key in keys:
            del annotation[key]

    return change


BAD_ANNOTATIONS = {
    "missing key 'segmentation'": [{"segmentation": [], "bbox": []}],
    "missing key 'bbox'": [_drop("segmentation", "bbox")],
    "missing key 'image_id'": [_drop("image_id")],
    "missing key 'category_id'": [_drop("category_id")],
    "wrong type: 'image_id' must be the id of an image": [{"image_id": [1]}, {"image_id": True}],
    "wrong type: 'category_id' must be the id of a category": [
        {"category_id": 3.5},
        {"category_id": True},
    ],
    "wrong type: 'iscrowd' must be 0 or 1": [{"iscrowd": 2}, {"iscrowd": [0]}, {"iscrowd": "no"}],
    "wrong type: 'bbox' must be [x, y, width, height] in pixels": [
        {"segmentation": None, "bbox": [4, 4, 10]},
        {"segmentation": None, "bbox": {"x": 4}},
    ],
    f"wrong type: 'segmentation' must be {EXPECTED['segmentation']}": [
        {"segmentation": "mask.png"},
        {"segmentation": 7},
        {"segmentation": [[4, 4, 14, "a", 14, 14]]},
        {"segmentation": [[4, 4, 14, True, 14, 14]]},
        {"segmentation": [{"x": 4, "y": 4}]},
    ],
    "number that is not finite": [
        {"segmentation": [[4, 4, 14, 4, math.nan, 14]]},
        {"image_id": math.nan},
        {"segmentation": [[10**400] * 6]},
    ],
    "unknown image": [{"image_id": 99}, {"image_id": -1}, {"image_id": "x"}],
    "unknown category": [{"category_id": 4}, {"category_id": "4"}],
    "zero area": [
        {"segmentation": [[4, 4, 8, 8, 12, 12]]},
        {"segmentation": [[4, 4, 4, 4, 4, 4]]},
        make_rle([AREA]),
        {"segmentation": [[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]], "area": 0},
        {"segmentation": [[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]], "area": 0.02},
        {"segmentation": [[40, 4, 31.6, 4, 31.6, 5]]},
    ],
    "polygon outside the image": [
        {"segmentation": [[100, 4, 110, 4, 110, 14]]},
        {"segmentation": [[1, 1, 1e15, 1, 5, 5]]},
        {"segmentation": [[10**30] * 6]},
        {"segmentation": [[1, 1, -1e300, 1, 5, 5]]},
    ],
    "polygon under 3 points": [
        {"segmentation": [[4, 4, 14, 14]]},
        {"segmentation": [[4, 4, 14, 4, 14, 14, 4]]},
    ],
    "malformed RLE": [
        make_rle(None),
        make_rle([]),
        make_rle(""),
        make_rle("abc"),
        make_rle("\x00\x01"),
        make_rle("äöü"),
        make_rle("P"),
        make_rle("o" * 40 + "0"),
        make_rle("0" * 100_000),
        make_rle([AREA - 1]),
        make_rle([10, -5, AREA - 5]),
        make_rle([0, 2**32, AREA - 2**32]),
        make_rle([1.5, AREA - 1.5]),
        make_rle([9.0, AREA - 9.0]),
        make_rle([True, AREA - 1]),
        make_rle([10**30]),
        make_rle([math.inf]),
        make_rle(["1", str(AREA - 1)]),
        make_rle([AREA // 2, AREA // 2], size=[WIDTH, HEIGHT]),
        make_rle([AREA // 2, AREA // 2], size="24 32"),
        make_rle([1, 10**9 - 1], size=[10**5, 10**4]),
        {"segmentation": {"counts": [AREA]}},
    ],
}
CASES = [(problem, change) for problem, changes in BAD_ANNOTATIONS.items() for change in changes]


@pytest.mark.parametrize(("problem", "change"), CASES)
def test_a_bad_annotation_is_dropped_and_reported(
    problem: str, change: Any, coco_folder: Path
) -> None:
    coco = make_coco()
    bad = coco["annotations"][1]
    if callable(change):
        change(bad)
    else:
        bad |= change

    clean, report = check(coco, coco_folder)

    assert report.dropped == {problem: [11]}
    assert f"dropped 1: {problem} (id 11)" in report.summary()
    assert [a["id"] for a in clean["annotations"]] == [10, 12, 20, 21, 22]


def test_annotations_that_are_no_entries(coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"][1:3] = [None, [], {"image_id": 1}]

    clean, report = check(coco, coco_folder)

    assert report.dropped == {
        "not a dictionary": ["#1", "#2"],
        "missing key 'category_id'": ["#3"],
    }
    assert len(clean["annotations"]) == 4


def test_bad_images_take_their_annotations_along(coco_folder: Path) -> None:
    coco = make_coco()
    (coco_folder / "broken.png").write_bytes(b"no picture")
    first = {"height": HEIGHT, "width": WIDTH}
    coco["images"] += [
        first | {"id": 3, "file_name": "missing.png"},
        first | {"id": 4, "file_name": "broken.png"},
        {"id": 5, "file_name": "1.png", "height": WIDTH, "width": HEIGHT},
        first | {"id": 6},
        first | {"id": 2, "file_name": "2.png"},
        first | {"id": 7, "file_name": "1.png", "width": -WIDTH},
        first | {"id": 7.5, "file_name": "1.png"},
        first | {"id": 12, "file_name": "1.png", "height": "tall"},
        {"id": 8, "file_name": "1.png", "height": 10**6, "width": 10**6},
        first | {"id": 9, "file_name": "nul\0.png"},
        "1.png",
    ]
    coco["annotations"] += [
        coco["annotations"][0] | {"id": 100 + image_id, "image_id": image_id}
        for image_id in (3, 6, 99)
    ]

    clean, report = check(coco, coco_folder)

    assert report.dropped == {
        "missing image file": [3, 9],
        "unreadable image file": [4],
        "wrong image size": [5],
        "image with missing key 'file_name'": [6],
        "image with duplicate id": [2],
        "image with height or width not positive or too large": [7, 8],
        "image with wrong type: 'id' must be a whole number or a text": ["#8"],
        "image with wrong type: 'height' must be a whole number of pixels": [12],
        "image with not a dictionary": ["#12"],
        "image was dropped": [103, 106],
        "unknown image": [199],
    }
    assert report.num_dropped == 14
    assert sorted(image["id"] for image in clean["images"]) == [1, 2]


def test_files_are_left_alone_without_check_images(coco_folder: Path) -> None:
    coco = make_coco()
    coco["images"][0]["file_name"] = "missing.png"
    _, report = check(coco, coco_folder, check_images=False)
    assert report.num_dropped == 0


def test_a_rotated_photo_has_the_size_it_is_shown_in(coco_folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(coco_folder / "rotated.jpg", exif=exif)
    coco = make_coco()
    coco["images"][0]["file_name"] = "rotated.jpg"

    _, report = check(coco, coco_folder)

    assert report.num_dropped == 0


def test_a_bad_category_is_dropped(coco_folder: Path) -> None:
    coco = make_coco()
    coco["categories"] += [
        {"id": 9},
        {"id": 3, "name": "dirt"},
        {"id": True, "name": "y"},
        {"id": 10, "name": "\ud800"},
    ]

    clean, report = check(coco, coco_folder)

    assert report.dropped == {
        "category with missing key 'name'": [9],
        "category with duplicate id": [3],
        "category with wrong type: 'id' must be a whole number or a text": ["#4"],
        "category with wrong type: 'name' must be a text": [10],
    }
    assert list_classes(clean)[0] == ["dirt", "cell"]


def test_a_box_a_pixel_over_the_border_is_left_as_it_is(coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"][0]["bbox"] = [-0.5, 4, WIDTH + 1, 10]
    clean, report = check(coco, coco_folder)
    assert not report.repaired
    assert clean["annotations"][0]["bbox"] == [-0.5, 4, WIDTH + 1, 10]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "JSON"),
        (b"\xff\xfe\x00", "Save it as UTF-8"),
        ('{"images": "é"}'.encode("latin-1"), "Save it as UTF-8"),
        (b'{"images": [', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"1" * 5000, "JSON"),
        (b"[]", "list"),
        (b"{}", "'categories'"),
        (b'{"categories": [{"id": 1, "name": "a"}]}', "'images'"),
        (b'{"categories": [{"id": 1, "name": "a"}], "images": []}', "'images'"),
        (b'{"categories": [3], "images": [{}]}', "categories"),
        (b'{"categories": [{"id": 1, "name": "a"}], "images": [{}]}', "images"),
        (
            b'{"categories": [{"id": 1, "name": "a"}], "images": [{}], "annotations": 3}',
            "'annotations'",
        ),
    ],
)
def test_what_cannot_be_repaired_is_refused(content: bytes, named: str, tmp_path: Path) -> None:
    json_file = tmp_path / "a.json"
    json_file.write_bytes(content)
    with pytest.raises(DatasetError, match=named) as error:
        check_coco(json_file, tmp_path)
    assert str(json_file) in str(error.value)


def test_missing_paths_are_named(coco_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.json"):
        check_coco(tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path))):
        check_coco(tmp_path, tmp_path)
    with pytest.raises(DatasetError, match="nowhere"):
        check(make_coco(), coco_folder)
        check_coco(coco_folder / "annotations.json", tmp_path / "nowhere")


def test_a_file_whose_every_annotation_is_bad_is_refused(coco_folder: Path) -> None:
    coco = make_coco()
    for annotation in coco["annotations"]:
        annotation["image_id"] += 50
    with pytest.raises(DatasetError, match="6: unknown image"):
        check(coco, coco_folder)


def test_a_file_without_annotations_is_for_testing(coco_folder: Path) -> None:
    coco = make_coco()
    del coco["annotations"]
    clean, report = check(coco, coco_folder)
    assert clean["annotations"] == []
    assert report.num_images == 2


def test_the_summary_shows_only_the_first_ids(coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"] += [{"id": 100 + number} for number in range(25)]
    _, report = check(coco, coco_folder)
    assert report.dropped == {"missing key 'image_id'": list(range(100, 125))}
    assert "dropped 25: missing key 'image_id' (id 100, 101" in report.summary()
    assert report.summary().endswith("109, ...)")


@pytest.mark.parametrize(
    ("json_file", "images", "num_images", "num_annotations"),
    [
        ("coco/annotations/instances_train2017.json", "coco/train2017", 80, 739),
        ("coco/annotations/instances_val2017.json", "coco/val2017", 79, 624),
        ("nuclei/annotations/instances_train.json", "nuclei/train", 94, 2971),
        ("nuclei/annotations/instances_val.json", "nuclei/val", 34, 1162),
    ],
)
def test_real_data_lose_nothing(
    shared_data: Path, json_file: str, images: str, num_images: int, num_annotations: int
) -> None:
    clean, report = check_coco(shared_data / json_file, shared_data / images)

    assert report.is_clean
    assert (report.num_images, report.num_annotations) == (num_images, num_annotations)
    source = json.loads((shared_data / json_file).read_text())
    kept = {a["id"]: a for a in clean["annotations"]}
    for annotation in source["annotations"]:
        for key in ("bbox", "area", "category_id", "image_id", "iscrowd"):
            assert kept[annotation["id"]][key] == annotation[key]
    records = make_records(clean, shared_data / images)
    assert sum(len(record["annotations"]) for record in records) == num_annotations
