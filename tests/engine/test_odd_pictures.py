"""One picture ends neither training nor evaluation, and images of 1 to N channels run through both.

The picture that fails has a good header, so that the check of the data set lets it pass.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instancezoo import model_zoo
from instancezoo.config import follow_dataset
from instancezoo.data.datasets import register_dataset
from instancezoo.data.images import ImageError
from instancezoo.data.mappers import MAPPER_REGISTRY, InstanceMapper
from instancezoo.engine import Trainer
from instancezoo.engine.loader import build_test_loader, build_train_loader
from instancezoo.inference import ImagePredictor, gather_inputs, predict_inputs

SIZES = {"wide": (48, 64), "bad": (48, 64), "thin": (2, 300), "line": (300, 1), "dot": (1, 1)}
NAME = "odd_pictures"


def write_dataset(folder: Path, suffix: str, num_channels: int = 3) -> None:
    """A picture for each of `SIZES` with one object each, registered as `NAME`."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (name, (height, width)) in enumerate(SIZES.items(), start=1):
        pixels = rng.integers(0, 256, (height, width, num_channels), dtype=np.uint8)
        path = folder / f"{name}.{suffix}"
        if suffix == "npy":
            np.save(path, pixels)
        else:
            Image.fromarray(pixels).save(path)
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        w, h = max(width // 2, 1), max(height // 2, 1)
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [0, 0, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[0, 0, w, 0, w, h, 0, h]],
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)
    register_dataset(NAME, str(folder / "truth.json"), str(folder))


def make_cfg(folder: Path, narrow_model: list[object], *overrides: object):
    cfg = model_zoo.get_config(
        "mask_rcnn/mask_rcnn_tiny",
        [
            *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)),
            *("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, "INPUT.MAX_SIZE_TEST", 64),
            *("INPUT.MAX_SIZE_TRAIN", 64, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3),
            *("SOLVER.STEPS", (2,), "SOLVER.WARMUP_ITERS", 1, "DATALOADER.NUM_WORKERS", 0),
            *("MODEL.DEVICE", "cpu", "TEST.NUM_PICTURES", 5, "OUTPUT_DIR", str(folder / "run")),
            *narrow_model,
            *overrides,
        ],
    )
    follow_dataset(cfg, 1, NAME)
    return cfg


def break_pixels(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@MAPPER_REGISTRY.register()
def fails_on_bad(cfg, is_train):
    """A user's mapper with a fault of its own."""
    inner = InstanceMapper(cfg, is_train)

    def mapper(record):
        if "bad" in record["file_name"]:
            raise RuntimeError("a fault in the mapper\nwith a second line")
        return inner(record)

    return mapper


@pytest.fixture
def messages():
    """Warnings of the package, also after the trainer has set up its logger."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logging.getLogger("instancezoo").addHandler(handler)
    yield found
    logging.getLogger("instancezoo").removeHandler(handler)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_test_loader_leaves_out_and_repeats_nothing(
    num_workers, batch_size, tmp_path, narrow_model, messages
):
    write_dataset(tmp_path, "png")
    cfg = make_cfg(tmp_path, narrow_model, "DATALOADER.NUM_WORKERS", num_workers)
    mapper = MAPPER_REGISTRY.get("fails_on_bad")(cfg, False)
    loader = build_test_loader(cfg, [NAME], mapper, batch_size)
    batches = list(loader)
    assert all(batches)
    assert [image["image_id"] for batch in batches for image in batch] == [1, 3, 4, 5]
    named, counted = messages
    assert "bad.png" in named and "RuntimeError: a fault in the mapper" in named
    assert "\n" not in named
    assert "1 of 5 images" in counted and "missed" in counted


@pytest.mark.parametrize("fault", ["pixels", "mapper"])
def test_training_and_evaluation_go_on_without_a_bad_picture(
    fault, tmp_path, narrow_model, messages
):
    write_dataset(tmp_path, "jpg")
    if fault == "pixels":
        break_pixels(tmp_path / "bad.jpg")
    mapper = "instance" if fault == "pixels" else "fails_on_bad"
    cfg = make_cfg(
        tmp_path, narrow_model, "INPUT.MAPPER", mapper, "TEST.VALIDATION_LOSS", True,
        "SOLVER.MAX_ITER", 6,
    )  # fmt: skip
    trainer = Trainer(cfg)
    assert set(trainer.train()) == {"bbox", "segm"}
    named = [message for message in messages if "bad.jpg" in message]
    assert any("training goes on without it" in message for message in named)
    assert any("evaluation goes on without it" in message for message in named)
    missing = "1 of 5 images of 'odd_pictures' were not predicted; all their objects count"
    assert any(missing in message for message in messages)
    found = tmp_path / "run" / "inference" / NAME
    rows = json.loads((found / "coco_instances_results.json").read_text())
    assert 2 not in {row["image_id"] for row in rows}
    assert json.loads((found / "metrics.json").read_text())["num_images"] == 4


def test_ten_failures_in_a_row_end_training_with_the_reason(tmp_path, narrow_model):
    write_dataset(tmp_path, "png")
    cfg = make_cfg(tmp_path, narrow_model)

    def mapper(record):
        raise KeyError("of mine")

    loader = build_train_loader(cfg, mapper, seed=0)
    # Of few images, Detectron2 runs out before ten failures.
    with pytest.raises(ValueError) as raised:
        next(iter(loader))
    assert isinstance(raised.value, ImageError) or "population" in str(raised.value)


@pytest.mark.parametrize("num_channels", [1, 2, 4, 5])
def test_any_number_of_channels_trains_evaluates_and_predicts(
    num_channels, tmp_path, narrow_model, messages
):
    write_dataset(tmp_path, "npy", num_channels)
    numbers = [100.0] * num_channels
    cfg = make_cfg(tmp_path, narrow_model, "MODEL.PIXEL_MEAN", numbers, "MODEL.PIXEL_STD", numbers)
    trainer = Trainer(cfg)
    assert trainer.bare_model.backbone.bottom_up.stem.conv1.in_channels == num_channels
    assert set(trainer.train()) == {"bbox", "segm"}
    assert not [message for message in messages if ".npy" in message]
    pictures = list((tmp_path / "run" / "inference" / NAME / "pictures").glob("*.png"))
    assert len(pictures) == len(SIZES)

    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    cfg.MODEL.MASK_OUTPUT = "rle"
    inputs = gather_inputs([str(tmp_path / "*.npy")])
    assert len(inputs) == len(SIZES)
    failures = predict_inputs(ImagePredictor(cfg), inputs, tmp_path / "out", cfg)
    assert not failures
    assert len(list((tmp_path / "out").glob("*.jpg"))) == len(SIZES)


@pytest.mark.parametrize("num_channels", [1, 4])
def test_stems_of_other_backbones_follow(num_channels, tmp_path, narrow_model):
    numbers = [100.0] * num_channels
    write_dataset(tmp_path, "npy", num_channels)
    image = {"image": torch.zeros(num_channels, 64, 64), "height": 64, "width": 64}
    for overrides in (
        ["MODEL.BACKBONE.NAME", "build_deform_resnet_fpn_backbone",
         "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]],
        ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet10t"],
    ):  # fmt: skip
        cfg = make_cfg(
            tmp_path, narrow_model, "MODEL.PIXEL_MEAN", numbers, "MODEL.PIXEL_STD", numbers,
            *overrides,
        )  # fmt: skip
        model = Trainer.build_model(cfg).eval()
        with torch.no_grad():
            assert "instances" in model([image])[0]
