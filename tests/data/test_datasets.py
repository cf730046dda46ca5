"""Registration is lazy, speaks plainly, and what is evaluated is what was loaded."""

import copy
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image

from instancezoo.data import datasets as datasets_module
from instancezoo.data.coco_dataset import DatasetError
from instancezoo.data.datasets import load_metadata, parse_dataset_argument, register_dataset
from instancezoo.data.shapes import SHAPES_SETS

NAME = "datasets_test"


def _make_annotation(number: int, **changes: Any) -> dict[str, Any]:
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    fixed = {"bbox": [2, 2, 6, 6], "area": 36, "iscrowd": 0, "segmentation": square}
    return {"id": number, "image_id": 1, "category_id": 5} | fixed | changes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 12)).save(tmp_path / "images" / "1.png")
    _write(tmp_path, _make_annotation(1), _make_annotation(2))
    yield tmp_path
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def _write(folder: Path, *annotations: dict[str, Any]) -> None:
    coco = {
        "images": [{"id": 1, "file_name": "1.png", "height": 12, "width": 16}],
        "categories": [{"id": 5, "name": "cell"}, {"id": 2, "name": "dirt"}],
        "annotations": annotations,
    }
    (folder / "a.json").write_text(json.dumps(coco))


def _register(folder: Path, strict: bool = False) -> None:
    register_dataset(NAME, str(folder / "a.json"), str(folder / "images"), strict)


def test_registration_reads_nothing(folder: Path) -> None:
    register_dataset(NAME, "nowhere.json", "nowhere")
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.evaluator_type, metadata.image_root) == ("coco", "nowhere")
    with pytest.raises(DatasetError, match=r"nowhere\.json"):
        DatasetCatalog.get(NAME)
    with pytest.raises(DatasetError, match=r"nowhere\.json"):
        load_metadata(NAME)


def test_metadata_fill_themselves_in(folder: Path) -> None:
    _register(folder)
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["dirt", "cell"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1}
    assert metadata.json_file == str(folder / "a.json")
    assert metadata.image_root == str(folder / "images")
    assert metadata.get("no_such_key", 7) == 7
    with pytest.raises(AttributeError, match="no_such_key"):
        _ = metadata.no_such_key
    assert copy.deepcopy(metadata).thing_classes == ["dirt", "cell"]


def test_classes_are_known_without_a_look_at_the_images(folder: Path) -> None:
    _register(folder)
    (folder / "images" / "1.png").unlink()
    assert load_metadata(NAME).thing_classes == ["dirt", "cell"]


def test_records(folder: Path) -> None:
    _register(folder)
    (record,) = DatasetCatalog.get(NAME)
    assert record["file_name"] == str(folder / "images" / "1.png")
    assert [a["category_id"] for a in record["annotations"]] == [1, 1]


def test_images_of_a_faultless_set_are_opened_once(folder: Path) -> None:
    _register(folder)
    before = DatasetCatalog.get(NAME)
    (folder / "images" / "1.png").unlink()
    assert DatasetCatalog.get(NAME) == before
    _write(folder, _make_annotation(3))  # another file: all is looked at again
    os.utime(folder / "a.json", ns=(0, 0))
    with pytest.raises(DatasetError, match=r"a\.json.*images"):
        DatasetCatalog.get(NAME)


def test_the_report_is_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(folder, _make_annotation(1), _make_annotation(2, category_id=9))
    _register(folder)
    with caplog.at_level(logging.INFO, logger="instancezoo"):
        for _ in range(3):
            DatasetCatalog.get(NAME)
    (message,) = [record.message for record in caplog.records if NAME in record.message]
    assert "1 images, 1 annotations" in message
    assert "dropped 1: unknown category (id 2)" in message


def test_evaluation_sees_what_was_loaded(folder: Path) -> None:
    _write(folder, _make_annotation(1), _make_annotation(2, category_id=99))
    _register(folder)

    metadata = load_metadata(NAME)

    assert metadata.source_json_file == str(folder / "a.json")
    clean = json.loads(Path(metadata.json_file).read_text())
    assert [a["id"] for a in clean["annotations"]] == [1]
    assert Path(metadata.json_file).parent == folder / "cache" / "clean"
    # Detectron2's evaluator opens the file as it is made.
    evaluator = COCOEvaluator(NAME, output_dir=str(folder))
    assert evaluator._coco_api.getAnnIds() == [1]
    first = Path(metadata.json_file)
    _register(folder)
    assert MetadataCatalog.get(NAME).json_file == str(first)
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_strict_refuses_what_would_be_dropped(folder: Path) -> None:
    _write(folder, _make_annotation(1), _make_annotation(2, category_id=99))
    _register(folder, strict=True)
    with pytest.raises(DatasetError, match=r"unknown category.*\b2\b") as raised:
        DatasetCatalog.get(NAME)
    assert "DATASETS.STRICT" in str(raised.value)


def test_strict_lets_repairs_pass(folder: Path) -> None:
    _write(folder, _make_annotation(1, area=0))
    _register(folder, strict=True)
    assert len(DatasetCatalog.get(NAME)[0]["annotations"]) == 1


def test_the_same_again_is_fine_and_another_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(folder)
    monkeypatch.chdir(folder)
    register_dataset(NAME, "a.json", "images")
    assert len(DatasetCatalog.get(NAME)) == 1
    with pytest.raises(DatasetError, match=f"'{NAME}'"):
        register_dataset(NAME, "b.json", "images")
    for taken in ("coco_2017_val", "shapes_train"):
        with pytest.raises(DatasetError, match=f"'{taken}'"):
            register_dataset(taken, "a.json", "images")


def test_the_argument_is_split(folder: Path) -> None:
    (folder / "a:b").mkdir()
    for json_file, images in (("a.json", "images"), ("a.json", "a:b")):
        argument = f"split={folder / json_file}:{folder / images}"
        expected = ("split", str(folder / json_file), str(folder / images))
        assert parse_dataset_argument(argument) == expected
    # A colon in the JSON's own name, and a name with an equals sign after the first.
    odd = folder / "x=y:z.json"
    odd.write_text("{}")
    assert parse_dataset_argument(f"split={odd}:{folder}") == ("split", str(odd), str(folder))


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("mine", "NAME="),
        ("mine=a.json", "NAME="),
        ("=a.json:images", "NAME="),
        ("mine=:images", "NAME="),
        ("mine=a.json:", "NAME="),
        ("", "NAME="),
        ("mine=b.json:images", "'b.json'"),
        ("mine=images:images", "'images'"),
        ("mine=a.json:b", "'b'"),
        ("mine=a.json:a.json", "'a.json'"),
        ("shapes_val=a.json:images", "'shapes_val'"),
    ],
)
def test_a_wrong_argument_is_explained(
    argument: str, named: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DatasetError, match=named):
        parse_dataset_argument(argument)


def test_an_unknown_name_gets_the_nearest_or_all() -> None:
    with pytest.raises(KeyError, match="'shapes_val'") as raised:
        load_metadata("shapes_vall")
    assert "coco_2017_val" not in str(raised.value)
    with pytest.raises(KeyError, match=r"\bcoco_2017_val\b"):
        load_metadata("zzzzzz")


def test_detectron2s_own_sets_need_no_files() -> None:
    assert len(load_metadata("coco_2017_val").thing_classes) == 80


def test_built_in_sets_are_there_and_drawn_on_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "shapes_tiny_val"
    shapes = SHAPES_SETS[name]
    few = type(shapes)(shapes.style, num_images=2, seed=shapes.seed)
    monkeypatch.setitem(SHAPES_SETS, name, few)
    known = MetadataCatalog.pop(name)  # what other tests may have filled in
    DatasetCatalog.pop(name)
    datasets_module.register_shapes()

    assert load_metadata(name).thing_classes == ["disc", "ring", "star", "square"]
    assert not (folder / "cache").exists()
    metadata = MetadataCatalog.get(name)
    assert Path(metadata.json_file).parent.parent == folder / "cache"
    assert Path(metadata.image_root).is_dir()
    records = DatasetCatalog.get(name)
    assert [record["image_id"] for record in records] == [1, 2]
    assert "occluded" in records[0]["annotations"][0]["attributes"]
    MetadataCatalog[name] = known


def test_real_sets_load_whole(shared_data: Path) -> None:
    for json_file, images, num_images, num_objects in (
        ("coco/annotations/instances_val2017.json", "coco/val2017", 79, 624),
        ("nuclei/annotations/instances_train.json", "nuclei/train", 94, 2971),
    ):
        register_dataset(NAME, str(shared_data / json_file), str(shared_data / images))
        records = DatasetCatalog.get(NAME)
        assert len(records) == num_images
        assert sum(len(record["annotations"]) for record in records) == num_objects
        assert MetadataCatalog.get(NAME).json_file == str(shared_data / json_file)
        DatasetCatalog.pop(NAME)
        MetadataCatalog.pop(NAME)
