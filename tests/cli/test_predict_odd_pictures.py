"""One picture never ends a prediction: it is named with its reason, and the rest is done."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from instancezoo.config import get_cfg
from instancezoo.inference import gather_inputs, predict_inputs
from instancezoo.inference import predict as predict_module
from instancezoo.inference.predict import PREDICTIONS_NAME

HEIGHT, WIDTH = 30, 40


def find_one(image: np.ndarray) -> Instances:
    """A predictor that fails as a model may, by the first pixel."""
    failures = {10: RuntimeError("of the model\nsecond line"), 20: ValueError(), 30: MemoryError()}
    if error := failures.get(int(image.flat[0])):
        raise error
    box = torch.tensor([[0.0, 0.0, image.shape[1], image.shape[0]]])
    score = torch.tensor([float("nan") if int(image.flat[0]) == 40 else 0.9])
    classes = torch.zeros(1, dtype=torch.int64)
    return Instances(image.shape[:2], pred_boxes=Boxes(box), scores=score, pred_classes=classes)


@pytest.fixture
def predict(tmp_path: Path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def run(*overrides: object, **values: np.ndarray) -> tuple[dict[str, str], list[str]]:
        """Reasons by file name, and the names of the files that were done."""
        for name, pixels in values.items():
            np.save(folder / f"{name}.npy", pixels)
        cfg = get_cfg()
        cfg.DATASETS.TEST = ()
        cfg.merge_from_list(list(overrides))
        failures = predict_inputs(find_one, gather_inputs([str(folder)]), output, cfg)
        images = json.loads((output / PREDICTIONS_NAME).read_text())["images"]
        done = [Path(image["file_name"]).stem for image in images]
        return {failure.path.stem: failure.reason for failure in failures}, done

    return run


def flat(value: float, dtype: str = "uint8", shape=(HEIGHT, WIDTH)) -> np.ndarray:
    return np.full(shape, value, dtype=dtype)


def test_a_model_that_fails_on_a_picture(predict) -> None:
    failed, done = predict(a=flat(99), b=flat(10), c=flat(20), d=flat(30), e=flat(40), z=flat(7))
    assert done == ["a", "z"]
    assert failed["b"] == "the model failed: RuntimeError: of the model"
    assert failed["c"] == "the model failed: ValueError: ValueError"
    assert failed["d"] == f"out of memory at {WIDTH}x{HEIGHT} pixels"
    assert "not finite" in failed["e"]


def test_a_picture_that_cannot_be_read(predict) -> None:
    failed, done = predict(
        *("INPUT.MAX_PIXELS", HEIGHT * WIDTH),
        a=flat(99),
        deep=flat(3000, "float32"),
        large=flat(99, shape=(HEIGHT + 1, WIDTH)),
        many=flat(99, shape=(HEIGHT, WIDTH, 7)),
    )
    assert done == ["a"]
    assert "INPUT.PIXEL_RANGE" in failed["deep"]
    assert f"INPUT.MAX_PIXELS is {HEIGHT * WIDTH}" in failed["large"]
    assert "MODEL.PIXEL_MEAN" in failed["many"]


def test_a_picture_that_cannot_be_drawn(predict, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("of the drawing")

    monkeypatch.setattr(predict_module, "draw_picture", fail)
    failed, done = predict(a=flat(99))
    assert done == ["a"]
    assert failed["a"] == "predicted but not drawn: RuntimeError: of the drawing"


def test_deep_pictures_are_drawn_in_the_range_of_the_network(predict, tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    failed, done = predict("INPUT.PIXEL_RANGE", "(0, 4095)", ramp=ramp)
    assert (failed, done) == ({}, ["ramp"])
    with Image.open(tmp_path / "out" / "ramp.jpg") as picture:
        assert np.asarray(picture.convert("L")).std() > 50


def test_a_grey_network_draws_grey(predict, tmp_path: Path) -> None:
    failed, done = predict(
        "MODEL.PIXEL_MEAN", [1.0], "MODEL.PIXEL_STD", [1.0], a=flat(99, shape=(HEIGHT, WIDTH, 3))
    )
    assert (failed, done) == ({}, ["a"])
    assert (tmp_path / "out" / "a.jpg").exists()
