"""`instancezoo doctor`: checks of annotations, categories and pictures, each on a case to find."""

import json

from doctor_cases import examine, make_dataset, pick

from instancezoo.doctor import Severity
from instancezoo.doctor.checks_data import find_same_content


def test_categories_unused_rare_and_differing(tmp_path):
    train = make_dataset(tmp_path / "train", names=("a", "b", "c"), objects=2)
    test = make_dataset(tmp_path / "val", names=("a", "b"), seed=1)
    found = examine(train, test)
    ids = [f.message for f in pick(found, "category ids", Severity.WARNING)]
    assert any("1 of 3 classes have no object: c" in message for message in ids)
    assert any("2 of 3 classes have under 10 objects: a, b" in message for message in ids)
    (finding,) = pick(found, "split")
    assert finding.severity is Severity.ERROR
    assert finding.message.endswith("c")


def test_trained_on_the_validation_images(tmp_path):
    train, test = (make_dataset(tmp_path / name) for name in ("train", "val"))
    (finding,) = pick(examine(train, test), "overlap")
    assert finding.severity is Severity.WARNING
    assert "4 of 4" in finding.message


def test_same_content_is_found_under_any_name(tmp_path):
    for name, content in {"a": b"12", "b": b"34", "c": b"12", "d": b"567"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert find_same_content([a], [b, c, d, tmp_path / "missing"]) == [c]


def test_bad_annotations_are_counted(tmp_path):
    train = make_dataset(tmp_path / "train")
    path = tmp_path / "train" / "truth.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(content))
    (finding,) = pick(examine(train, None), "annotations", Severity.WARNING)
    assert "1 entries dropped" in finding.message


def _change_annotations(folder, change):
    content = json.loads((folder / "truth.json").read_text())
    for annotation in content["annotations"]:
        change(annotation)
    (folder / "truth.json").write_text(json.dumps(content))


def test_boxes_that_do_not_fit_their_masks(tmp_path):
    train = make_dataset(tmp_path / "train")
    _change_annotations(tmp_path / "train", lambda a: a.update(bbox=[10, 10, 50, 40]))
    (finding,) = pick(examine(train, None), "boxes")
    assert finding.severity is Severity.WARNING
    assert "48 of 48 boxes" in finding.message and "[x1, y1, x2, y2]" in finding.message


def test_data_without_masks_are_for_configs_without_masks(tmp_path):
    train = make_dataset(tmp_path / "train")
    _change_annotations(tmp_path / "train", lambda a: a["id"] > 3 and a.pop("segmentation"))
    assert pick(examine(train, None), "boxes", Severity.WARNING)
    _change_annotations(tmp_path / "train", lambda a: a.pop("segmentation", None))
    (finding,) = pick(examine(train, None), "annotations")
    assert (finding.severity, "48 annotations" in finding.message) == (Severity.ERROR, True)
    (finding,) = pick(examine(train, None, ["MODEL.MASK_ON", False]), "annotations")
    assert finding.severity is Severity.OK


def test_nothing_to_train_on_is_an_error_whatever_was_dropped(tmp_path):
    train = make_dataset(tmp_path / "train")
    _change_annotations(tmp_path / "train", lambda a: a.update(iscrowd=1))
    _change_annotations(tmp_path / "train", lambda a: a["id"] == 1 and a.update(category_id=77))
    first, second = pick(examine(train, None), "annotations")
    assert (first.severity, second.severity) == (Severity.ERROR, Severity.WARNING)
    assert "1 entries dropped" in second.message


def test_boxes_without_masks_that_reach_beyond_the_image(tmp_path):
    train = make_dataset(tmp_path / "train", box=(60, 60, 100, 100))
    _change_annotations(tmp_path / "train", lambda a: a.pop("segmentation"))
    (finding,) = pick(examine(train, None, ["MODEL.MASK_ON", False]), "boxes")
    assert finding.severity is Severity.WARNING and "48 of 48 boxes" in finding.message


def test_a_picture_under_two_ids_is_told(tmp_path):
    train = make_dataset(tmp_path / "train")
    content = json.loads((tmp_path / "train" / "truth.json").read_text())
    content["images"].append({**content["images"][0], "id": 99, "file_name": "./0.png"})
    (tmp_path / "train" / "truth.json").write_text(json.dumps(content))
    (finding,) = pick(examine(train, None), "pictures")
    assert "1 pictures" in finding.message and "0.png" in finding.message
