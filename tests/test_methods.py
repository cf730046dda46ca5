"""What every method must do, parametrised over all of them by their tiny configs."""

import copy
import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as coco_mask

from instancezoo.methods import METHODS
from instancezoo.testing import (
    build_seeded_model,
    get_tiny_config,
    keep_everything,
    keep_nothing,
    list_tiny_configs,
    make_input,
)

TINY = list_tiny_configs()
SIZE = 128
BOXES = [[10, 12, 60, 70], [50, 40, 120, 110], [5, 90, 30, 120]]
# The keys that limit detections: a few show as much as a hundred.
MAX_DETECTIONS = 20


def _get_generous_config(name, overrides=()):
    """A tiny config that finds something with random weights, but not much."""
    limits = [word for method in METHODS for word in (method.detection_limit, MAX_DETECTIONS)]
    return keep_everything(get_tiny_config(name, [*limits, *overrides]))


@pytest.fixture(scope="module", params=TINY)
def method(request):
    """(config name, model with random weights); tests leave its weights as they are."""
    return request.param, build_seeded_model(_get_generous_config(request.param))


def _train_losses(model, batch):
    model = copy.deepcopy(model).train()
    with EventStorage():
        losses = model(batch)
    assert losses and all(name.startswith("loss") for name in losses)
    sum(losses.values()).backward()
    return model, losses


def _check_reaches_every_parameter(model, losses):
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    untouched = [name for name, grad in trainable.items() if grad is None]
    assert not untouched
    assert all(torch.isfinite(grad).all() for grad in trainable.values())
    return trainable


def _makes_masks(name):
    return get_tiny_config(name).MODEL.MASK_ON


def _predict(model, batch, **attributes):
    model = model.eval()
    for name, value in attributes.items():
        setattr(model, name, value)
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


def test_losses_reach_every_parameter(method):
    _, model = method
    batch = [make_input(SIZE, SIZE, BOXES, seed=0), make_input(96, SIZE, [[8, 8, 88, 80]], seed=1)]
    gradients = _check_reaches_every_parameter(*_train_losses(model, batch))
    # A gradient that is exactly zero everywhere would mean a dead branch.
    dead = [name for name, grad in gradients.items() if not grad.any()]
    assert len(dead) < 0.1 * len(gradients), dead


@pytest.mark.parametrize(
    "boxes",
    [[], [[40, 40, 41, 41]], [[0, 0, SIZE, SIZE]], [[10, 10, 14, 120]]],
    ids=["no_objects", "one_pixel", "whole_image", "thin"],
)
def test_unusual_ground_truth_gives_finite_losses(method, boxes):
    _, model = method
    _check_reaches_every_parameter(*_train_losses(model, [make_input(SIZE, SIZE, boxes)]))


def test_inference_on_unequal_sizes(method):
    name, model = method
    batch = [make_input(SIZE, 100, [], seed=0), make_input(90, SIZE, [], seed=1)]
    batch[1].update(height=45, width=64)  # asked for at half size
    for record, instances in zip(batch, _predict(model, batch), strict=True):
        height, width = record["height"], record["width"]
        assert instances.image_size == (height, width)
        assert isinstance(instances.pred_boxes, Boxes)
        assert instances.scores.dtype == torch.float32
        assert instances.pred_classes.dtype == torch.int64
        assert instances.has("pred_masks") == _makes_masks(name)
        if instances.has("pred_masks"):
            assert instances.pred_masks.dtype == torch.bool
            assert instances.pred_masks.shape == (len(instances), height, width)


def test_both_outputs_agree(method):
    name, model = method
    batch = [make_input(SIZE, 100, [], seed=2)]
    batch[0].update(height=200, width=170)
    (bitmasks,) = _predict(model, batch, mask_output="bitmask")
    (rle,) = _predict(model, batch, mask_output="rle")
    model.mask_output = "bitmask"
    assert len(bitmasks) == len(rle) > 0
    if not _makes_masks(name):
        return
    decoded = coco_mask.decode(rle.pred_masks).astype(bool)
    assert np.array_equal(decoded.transpose(2, 0, 1), bitmasks.pred_masks.numpy())
    assert all(isinstance(code["counts"], str) for code in rle.pred_masks)


def test_batch_of_one_equals_its_row(method):
    _, model = method
    batch = [make_input(SIZE, SIZE, [], seed=i) for i in range(2)]
    together = _predict(model, batch)
    for record, row in zip(batch, together, strict=True):
        (alone,) = _predict(model, [record])
        assert len(alone) == len(row)
        torch.testing.assert_close(alone.scores, row.scores, rtol=1e-4, atol=1e-5)
        # Sums are rounded by the batch's size: detections with equal scores may change places.
        same = torch.isclose(alone.scores[:, None], row.scores, rtol=1e-4, atol=1e-5)
        same &= alone.pred_classes[:, None] == row.pred_classes
        boxes, others = alone.pred_boxes.tensor[:, None], row.pred_boxes.tensor
        same &= torch.isclose(boxes, others, rtol=1e-3, atol=1e-2).all(dim=2)
        assert same.any(dim=0).all() and same.any(dim=1).all()


@pytest.mark.parametrize("mask_output", ["bitmask", "rle"])
def test_nothing_found_has_all_fields(method, mask_output):
    name, _ = method
    cfg = keep_nothing(get_tiny_config(name, ["MODEL.MASK_OUTPUT", mask_output]))
    (instances,) = _predict(build_seeded_model(cfg), [make_input(SIZE, 100, [])])
    assert len(instances) == 0
    assert instances.pred_boxes.tensor.shape == (0, 4)
    if not _makes_masks(name):
        assert not instances.has("pred_masks")
    elif mask_output == "rle":
        assert instances.pred_masks == []
    else:
        assert instances.pred_masks.shape == (0, SIZE, 100)
    assert {"scores", "pred_classes"} <= set(instances.get_fields())


def test_autocast_trains_and_infers(method):
    _, model = method
    # A small image: most CPUs emulate bf16. Not smaller: on a map of one pixel, the gradient of
    # torch's bf16 convolution of stride 2 reads memory that nobody wrote.
    size = SIZE * 3 // 4
    boxes = [[position * 3 // 4 for position in box] for box in BOXES]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _check_reaches_every_parameter(*_train_losses(model, [make_input(size, size, boxes)]))
        (instances,) = _predict(model, [make_input(size, size, [])])
    assert len(instances) > 0
    assert torch.isfinite(instances.scores).all()
    assert torch.isfinite(instances.pred_boxes.tensor).all()


def test_stock_predictor_and_visualizer(method, tmp_path):
    name, model = method
    file = tmp_path / "model.pth"
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    cfg = _get_generous_config(name, ["MODEL.WEIGHTS", str(file), "DATASETS.TEST", ()])
    image = make_input(SIZE, 100, [])["image"].permute(1, 2, 0).numpy()
    instances = DefaultPredictor(cfg)(image)["instances"]
    assert instances.image_size == (SIZE, 100)
    metadata = MetadataCatalog.get("four_shapes_for_a_picture")
    metadata.thing_classes = ["a", "b", "c", "d"]
    picture = Visualizer(image, metadata).draw_instance_predictions(instances[:3]).get_image()
    assert picture.shape == image.shape and not np.array_equal(picture, image)


class StockTrainer(DefaultTrainer):
    """Detectron2's, as its tutorials extend it."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


@pytest.mark.parametrize("name", TINY)
def test_stock_trainer_and_evaluator(name, few_shapes, tmp_path):
    sets = ["DATASETS.TRAIN", (few_shapes,), "DATASETS.TEST", (few_shapes,)]
    brief = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2]
    cfg = _get_generous_config(name, [*sets, *brief, "OUTPUT_DIR", str(tmp_path)])
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP50", 50, 50]]  # else `train` returns nothing
    torch.manual_seed(0)
    trainer = StockTrainer(cfg)
    before = copy.deepcopy(trainer.model.state_dict())
    results = trainer.train()
    after = trainer.model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert set(results) == ({"bbox", "segm"} if _makes_masks(name) else {"bbox"})
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    # An untrained model need not find something in every image.
    known = {record["image_id"] for record in DatasetCatalog.get(few_shapes)}
    assert rows and {row["image_id"] for row in rows} <= known
    sizes = {tuple(row["segmentation"]["size"]) for row in rows if "segmentation" in row}
    assert sizes == ({(SIZE, SIZE)} if _makes_masks(name) else set())
