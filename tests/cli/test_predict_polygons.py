"""`instancezoo predict --masks polygon`: what a model drew, as COCO polygons."""

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from instancezoo import model_zoo
from instancezoo.cli.main import main
from instancezoo.inference.pictures import draw_picture
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything


def _predict(tmp_path, config, *extra):
    """Exit code and what `predictions.json` holds."""
    cfg = keep_everything(get_tiny_config(config))
    weights, picture = tmp_path / "random.pth", tmp_path / "a.png"
    torch.save(build_seeded_model(cfg).state_dict(), weights)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    node = "POLARMASK" if "polarmask" in config else "ROI_HEADS"
    overrides = [f"MODEL.{node}.NUM_CLASSES", "4", "MODEL.DEVICE", "cpu", "DATASETS.TEST", "()"]
    code = main(
        ["predict", str(picture), "--config-file", model_zoo.get_config_file(config)]
        + ["--weights", str(weights), "--output", str(tmp_path / "out"), "--confidence", "0"]
        + [*extra, "--opts", *overrides]
    )
    file = tmp_path / "out" / "predictions.json"
    return code, json.loads(file.read_text()) if file.exists() else None


def test_polygons_of_polarmask(tmp_path):
    code, found = _predict(tmp_path, "polarmask/polarmask_tiny", "--masks", "polygon")
    assert code == 0 and len(found["annotations"]) > 0
    for annotation in found["annotations"]:
        (outline,) = annotation["segmentation"]
        assert len(outline) == 2 * 36
        assert min(outline) >= 0 and max(outline[::2]) <= 64 and max(outline[1::2]) <= 48
        rle = coco_mask.frPyObjects(annotation["segmentation"], 48, 64)
        assert annotation["area"] == coco_mask.area(coco_mask.merge(rle))
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert coco.annToMask(coco.loadAnns(coco.getAnnIds())[0]).shape == (48, 64)


def test_rle_is_the_default_and_shows_the_same_objects(tmp_path):
    _, rle = _predict(tmp_path, "polarmask/polarmask_tiny")
    _, polygons = _predict(tmp_path, "polarmask/polarmask_tiny", "--masks", "polygon")
    assert len(rle["annotations"]) == len(polygons["annotations"]) > 0
    for one, other in zip(rle["annotations"], polygons["annotations"], strict=True):
        assert one["score"] == other["score"] and one["bbox"] == other["bbox"]
        mask = coco_mask.decode(one["segmentation"]).astype(bool)
        drawn = coco_mask.frPyObjects(other["segmentation"], 48, 64)
        # COCO fills polygons by another rule: without the outline's pixels.
        assert not (coco_mask.decode(coco_mask.merge(drawn)).astype(bool) & ~_grow(mask)).any()


def _grow(mask):
    padded = np.pad(mask, 1)
    shifts = [padded[dy : dy + 48, dx : dx + 64] for dy in range(3) for dx in range(3)]
    return np.any(shifts, axis=0)


def test_a_model_without_polygons_is_told_so(tmp_path, capsys):
    code, found = _predict(tmp_path, "mask_rcnn/mask_rcnn_tiny", "--masks", "polygon")
    assert code == 1 and found is None
    assert "predicts no polygons" in capsys.readouterr().err


@pytest.mark.parametrize("score", [0.5, 1.4])
def test_pictures_label_scores_up_to_one(score, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "detectron2.utils.visualizer.Visualizer.overlay_instances",
        lambda self, labels=None, **_: drawn.append(labels) or self.output,
    )
    instances = Instances((20, 30), scores=torch.tensor([score]))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 10, 12]]))
    instances.pred_classes = torch.zeros(1, dtype=torch.long)
    draw_picture(np.zeros((20, 30, 3), dtype=np.uint8), instances, {"thing_classes": ["cup"]})
    assert drawn == [[f"cup {100 * min(score, 1):.0f}%"]]
    assert instances.scores.item() == pytest.approx(score)
