"""INPUT.CROWDS and INPUT.MIN_BOX_SIDE: what the mapper keeps, and what reaches a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from instancezoo.config import get_cfg, load_cfg
from instancezoo.data.mappers import InstanceMapper, build_mapper
from instancezoo.errors import ConfigError
from instancezoo.modeling.dense import DenseSegmenter
from instancezoo.modeling.objects import collect_ground_truth, leave_out_crowds
from instancezoo.testing import build_seeded_model, get_tiny_config, list_tiny_configs

HEIGHT, WIDTH = 40, 60
CPU = torch.device("cpu")


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.FIXED_SIZE = (HEIGHT, WIDTH)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROWDS = True
    return cfg


def annotate(x: int, y: int, w: int, h: int, category: int, iscrowd: int = 0) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return {
        "bbox": [x, y, w, h],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": iscrowd,
        "segmentation": mask_util.encode(mask),
    }


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [
            annotate(0, 0, 30, 20, 7, iscrowd=1),
            annotate(35, 5, 20, 30, 1),
            annotate(2, 30, 8, 3, 2),
            annotate(0, 0, 60, 5, 8, iscrowd=1),
        ],
    }


def test_crowds_come_last_and_are_marked(cfg: CfgNode, record: dict[str, Any]) -> None:
    instances = build_mapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_classes.tolist() == [1, 2, 7, 8]
    assert instances.gt_is_crowd.tolist() == [False, False, True, True]
    assert instances.gt_is_crowd.dtype == torch.bool
    assert instances.gt_boxes.tensor[2].tolist() == [0, 0, 30, 20]
    assert instances.gt_masks.tensor.flatten(1).sum(1).tolist() == [600, 24, 600, 300]


def test_without_the_key_there_is_neither_crowd_nor_field(
    cfg: CfgNode, record: dict[str, Any]
) -> None:
    cfg.INPUT.CROWDS = False
    instances = build_mapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_classes.tolist() == [1, 2] and not instances.has("gt_is_crowd")


@pytest.mark.parametrize("rows", [[], [1, 2], [0, 3]])
def test_the_field_is_always_there(cfg: CfgNode, record: dict[str, Any], rows: list[int]) -> None:
    record["annotations"] = [record["annotations"][row] for row in rows]
    instances = build_mapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_is_crowd.tolist() == [row in (0, 3) for row in rows]
    assert instances.gt_is_crowd.dtype == torch.bool
    assert instances.gt_masks.tensor.shape == (len(rows), HEIGHT, WIDTH)


def test_a_crowd_is_no_object_that_a_crop_leaves(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.AUGMENTATIONS = [{"RandomSampleCrop": {"unchanged_prob": 0.01}}]
    mapper = build_mapper(cfg, is_train=True)
    num_crowds = set()
    for seed in range(30):
        np.random.seed(seed)  # noqa: NPY002
        instances = mapper(record)["instances"]
        assert not instances.gt_is_crowd.all()
        num_crowds.add(int(instances.gt_is_crowd.sum()))
    assert num_crowds == {0, 1, 2}
    # An image of crowds alone goes through as it is.
    record["annotations"] = record["annotations"][::3]
    boxes = mapper(record)["instances"].gt_boxes.tensor
    assert boxes.tolist() == [[0, 0, 30, 20], [0, 0, 60, 5]]


def test_objects_without_a_mask_take_crowds_along(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.MODEL.MASK_ON = False
    del record["annotations"][1]["segmentation"]
    instances = build_mapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_is_crowd.tolist() == [False, False, True, True]
    assert not instances.has("gt_masks")


def test_models_get_no_crowds_unless_they_ask(cfg: CfgNode, record: dict[str, Any]) -> None:
    batch = [build_mapper(cfg, is_train=True)(record)]
    (objects,) = collect_ground_truth(batch, CPU)
    assert objects.gt_classes.tolist() == [1, 2] and not objects.has("gt_is_crowd")
    assert len(objects.gt_masks) == 2
    (everything,) = collect_ground_truth(batch, CPU, keep_crowds=True)
    assert everything.gt_is_crowd.tolist() == [False, False, True, True]
    # Those who ask find the field in any case.
    cfg.INPUT.CROWDS = False
    for annotations in (record["annotations"], []):
        unmarked = [build_mapper(cfg, is_train=True)({**record, "annotations": annotations})]
        (truth,) = collect_ground_truth(unmarked, CPU, keep_crowds=True)
        assert truth.gt_is_crowd.dtype == torch.bool and not truth.gt_is_crowd.any()
        assert len(truth.gt_is_crowd) == len(truth)


def test_a_method_asks_by_its_class(cfg: CfgNode, record: dict[str, Any]) -> None:
    tiny = get_tiny_config("solo/solo_tiny")
    model = build_seeded_model(tiny)
    assert isinstance(model, DenseSegmenter)
    seen = []
    assign = model.assign
    model.assign = lambda outputs, images, truth: (
        seen.append(truth) or assign(outputs, images, [truth[0][:2]])
    )
    record["annotations"] = [{**a, "category_id": 0} for a in record["annotations"]]
    batch = [build_mapper(cfg, is_train=True)(record)]
    for keep_crowds in (False, True):
        model.keep_crowds = keep_crowds
        model(batch)
    assert [len(truth[0]) for truth in seen] == [2, 4]


@pytest.mark.parametrize("name", list_tiny_configs())
def test_no_shipped_method_learns_crowds_as_objects(
    name: str, cfg: CfgNode, record: dict[str, Any]
) -> None:
    tiny = get_tiny_config(name)
    model = build_seeded_model(tiny)
    if model.keep_crowds:
        pytest.skip("it learns from crowds in its own way")
    record["annotations"] = [{**a, "category_id": a["iscrowd"]} for a in record["annotations"]]
    cfg.INPUT.MAPPER = tiny.INPUT.MAPPER
    mapped = []
    for cfg.INPUT.CROWDS in (False, True):
        mapped.append(build_mapper(cfg, is_train=True)(record))
    results = []
    for image in mapped:
        torch.manual_seed(0)
        with EventStorage():
            results.append({name: float(loss) for name, loss in model(2 * [image]).items()})
    assert results[0] == results[1]


def test_models_of_others_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.CROWDS.*RetinaNet"):
        load_cfg("", ["MODEL.META_ARCHITECTURE", "RetinaNet", "INPUT.CROWDS", True])
    for name, model in META_ARCH_REGISTRY:
        package = model.__module__.split(".")[0]
        if package in ("instancezoo", "detectron2"):
            assert hasattr(model, "keep_crowds") == (package == "instancezoo"), name


def test_images_of_other_forms_pass() -> None:
    assert leave_out_crowds([{"image": 1}]) == [{"image": 1}]


@pytest.mark.parametrize(
    ("side", "kept"), [(0.0, [1, 2]), (3.0, [1, 2]), (3.5, [1]), (20.0, [1]), (20.5, None)]
)
def test_thin_boxes_go_and_an_image_that_loses_all_is_replaced(
    side: float, kept: list[int] | None, cfg: CfgNode, record: dict[str, Any]
) -> None:
    cfg.INPUT.CROWDS = False
    cfg.INPUT.MIN_BOX_SIDE = side
    mapped = build_mapper(cfg, is_train=True)(record)
    assert (mapped and mapped["instances"].gt_classes.tolist()) == kept


def test_sides_are_measured_in_the_network_input(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.FIXED_SIZE = (2 * HEIGHT, WIDTH)
    cfg.INPUT.MIN_BOX_SIDE = 6.0
    assert build_mapper(cfg, is_train=True)(record)["instances"].gt_classes.tolist() == [1, 2, 7, 8]
    cfg.INPUT.MIN_BOX_SIDE = 6.5
    assert build_mapper(cfg, is_train=True)(record)["instances"].gt_classes.tolist() == [1, 7, 8]


def test_images_that_had_no_object_stay(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.MIN_BOX_SIDE = 100.0
    record["annotations"] = []
    assert len(build_mapper(cfg, is_train=True)(record)["instances"]) == 0


def test_boxes_are_those_of_the_annotations(cfg: CfgNode, record: dict[str, Any]) -> None:
    record["annotations"] = [{**annotate(10, 10, 20, 10, 0), "bbox": [8, 9, 25, 13]}]
    cfg.INPUT.AUGMENTATIONS = [{"RandomSampleCrop": {"unchanged_prob": 1}}]
    mapper = InstanceMapper(cfg, is_train=True)
    assert mapper(record)["instances"].gt_boxes.tensor.tolist() == [[8, 9, 33, 22]]
