"""Detectron2's own predictor, evaluator and pictures on what our runs leave."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer

from instancezoo import get_cfg, model_zoo
from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, read_checkpoint
from instancezoo.engine import Trainer
from instancezoo.inference import ImagePredictor
from instancezoo.testing import build_seeded_model, keep_everything, make_image

SIZE = 64
YAML_FILES = ["mask_rcnn/mask_rcnn_tiny", "solov2/solov2_nuclei", "fcos/fcos_tiny"]


@pytest.fixture
def image():
    return make_image(SIZE, 80).permute(1, 2, 0).numpy()


def _list_tensors(instances):
    fields = {k: v for k, v in instances.get_fields().items() if k != "pred_polygons"}
    return {name: getattr(value, "tensor", value) for name, value in fields.items()}


def _check_predictors_agree(stock, ours):
    """The two differ in the memory format of the image, which changes the last bits."""
    inputs = [{"image": make_image(SIZE, 80), "height": 70, "width": 90}]
    with torch.no_grad():
        (found,), (wanted,) = stock.model(inputs), ours.model(inputs)
    found, wanted = _list_tensors(found["instances"]), _list_tensors(wanted["instances"])
    assert found.keys() == wanted.keys() and len(found["scores"]) > 0
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_a_runs_config_is_the_users(run_folder):
    text = (run_folder / "config.yaml").read_text()
    assert "MASK_OUTPUT: bitmask" in text
    assert "MASK_OUTPUT: bitmask" in read_checkpoint(str(run_folder / "model_final.pth"))["cfg"]


def test_stock_predictor_and_pictures(client_cfg, few_shapes, image):
    predictor = DefaultPredictor(client_cfg)
    trained = model_zoo.get_trained_config(client_cfg.MODEL.WEIGHTS, ["MODEL.DEVICE", "cpu"])
    _check_predictors_agree(predictor, ImagePredictor(trained, confidence=None))
    instances = predictor(image)["instances"]
    metadata = MetadataCatalog.get(few_shapes)
    picture = Visualizer(image, metadata).draw_instance_predictions(instances).get_image()
    assert not np.array_equal(picture, image)
    video = VideoVisualizer(metadata)
    for _ in range(2):
        assert video.draw_instance_predictions(image, instances).get_image().shape == image.shape


def test_stock_evaluator(client_cfg, few_shapes, tmp_path):
    model = build_model(client_cfg)
    DetectionCheckpointer(model).load(client_cfg.MODEL.WEIGHTS)
    loader = build_detection_test_loader(client_cfg, few_shapes)
    evaluator = COCOEvaluator(few_shapes, output_dir=str(tmp_path))
    results = inference_on_dataset(model, loader, evaluator)
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert rows and "bbox" in results and ("segm" in results) == ("segmentation" in rows[0])


def test_evaluation_gets_rle_and_stock_evaluators_what_the_config_says(start_run, few_shapes):
    folder = start_run("solo/solo_tiny")
    cfg = model_zoo.get_trained_config(
        str(folder / "model_final.pth"), ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu"]
    )
    model = build_seeded_model(cfg)
    forms = []
    model.register_forward_hook(
        lambda _, __, out: forms.append(type(out[0]["instances"].pred_masks))
    )
    own = Trainer.test(cfg, model)
    assert set(forms) == {list} and model.mask_output == "bitmask"
    forms.clear()
    stock = Trainer.test(cfg, model, [COCOEvaluator(few_shapes, output_dir=str(folder))])
    assert set(forms) == {torch.Tensor}
    assert own["segm"]["AP"] == pytest.approx(stock["segm"]["AP"], nan_ok=True)


@pytest.mark.parametrize("name", YAML_FILES)
@pytest.mark.parametrize("form", ["{}", "published://{}"])
def test_a_shipped_file_and_its_own_weights(name, form, tmp_path, monkeypatch):
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(tmp_path / "cache"))
    overrides = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", SIZE, "DATASETS.TEST", ()]
    cfg = keep_everything(model_zoo.get_config(name, overrides))
    model = build_seeded_model(cfg)
    ZooCheckpointer(model, str(tmp_path), facts={"cfg": cfg.dump()}).save("own")
    weights = str(tmp_path / "own.pth")

    stock = get_cfg()
    stock.merge_from_file(model_zoo.get_config_file(name))
    stock.merge_from_list([*overrides, "MODEL.WEIGHTS", form.format(weights)])
    trained = model_zoo.get_trained_config(weights, ["MODEL.DEVICE", "cpu"])
    ours = ImagePredictor(trained, confidence=None)
    _check_predictors_agree(DefaultPredictor(keep_everything(stock)), ours)


@pytest.mark.parametrize("form", ["{}", "published://{}"])
@pytest.mark.parametrize("name", YAML_FILES)
def test_weights_that_leave_a_head_random_are_refused(name, form, tmp_path, monkeypatch):
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(tmp_path / "cache"))
    cfg = model_zoo.get_config(name, ["MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", ""])
    ZooCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    cfg.merge_from_list(
        ["DATASETS.NUM_CLASSES", 7, "MODEL.WEIGHTS", form.format(tmp_path / "model.pth")]
    )
    with pytest.raises(CheckpointError, match=r"tensors are missing.*number of classes.*get_tra"):
        DefaultPredictor(cfg)
    DetectionCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)  # a training may start so
    cfg.MODEL.WEIGHTS_ALLOW_PARTIAL = True
    DefaultPredictor(cfg)


@pytest.mark.parametrize("form", ["{}", "published://{}"])
def test_weights_of_another_method_are_refused(form, tmp_path, monkeypatch):
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(tmp_path / "cache"))
    solo, other = (
        model_zoo.get_config(name, ["MODEL.DEVICE", "cpu"])
        for name in ("solo/solo_tiny", "polarmask/polarmask_tiny")
    )
    ZooCheckpointer(build_model(solo), str(tmp_path)).save("solo")
    other.MODEL.WEIGHTS = form.format(tmp_path / "solo.pth")
    with pytest.raises(CheckpointError, match="of another method"):
        DefaultPredictor(other)
    backbone = {n: v for n, v in build_model(solo).state_dict().items() if "backbone" in n}
    build_model(other).eval().load_state_dict(backbone, strict=False)  # to start from
