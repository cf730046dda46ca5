"""`instancezoo predict` with a file of a training: it needs neither config nor data set."""

import json

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from instancezoo import model_zoo
from instancezoo.checkpoint import ZooCheckpointer
from instancezoo.checkpoint.classes import ClassList
from instancezoo.cli.main import main
from instancezoo.config import follow_dataset
from instancezoo.testing import build_seeded_model

CONFIG = "mask_rcnn/mask_rcnn_tiny"
TRAINED = ClassList(("cup", "ball"), (3, 7))
KEY = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"


def _save(folder, overrides, classes=TRAINED, **facts):
    cfg: CfgNode = model_zoo.get_config(CONFIG, [*overrides, "MODEL.DEVICE", "cpu"])
    follow_dataset(cfg, 2, "mine")
    facts = {"cfg": cfg.dump(), **classes.to_facts(), **facts}
    ZooCheckpointer(build_seeded_model(cfg), str(folder), facts=facts).save("model_best")
    return str(folder / "model_best.pth")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, narrow_model):
    """A file of a training with overrides that change shapes, and with the classes `TRAINED`."""
    return _save(tmp_path_factory.mktemp("run"), [*narrow_model, "INPUT.MIN_SIZE_TEST", 40])


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def predict(image, tmp_path, capsys):
    """Runs the command; returns what `predictions.json` holds, or the error."""

    def run(*words):
        output = tmp_path / "out"
        code = main(["predict", str(image), "--output", str(output), *map(str, words)])
        error = capsys.readouterr().err
        return error if code else json.loads((output / "predictions.json").read_text())

    return run


def _write_dataset(image, categories):
    content = {"images": [], "annotations": [], "categories": categories}
    content["images"].append({"id": 1, "file_name": image.name, "width": 64, "height": 48})
    path = image.parent / "truth.json"
    path.write_text(json.dumps(content))
    return f"{image.parent.name}={path}:{image.parent}"


def _categories(**ids):
    return [{"id": number, "name": name} for name, number in ids.items()]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_file_alone_predicts(weights, predict, tmp_path, suffix):
    path = weights
    if suffix != ".pth":
        path = str(tmp_path / f"w{suffix}")
        assert main(["convert", weights, path]) == 0
    found = predict("--weights", path, "--confidence", 0)
    assert found["categories"] == _categories(cup=3, ball=7)
    assert found["annotations"] and {a["category_id"] for a in found["annotations"]} <= {3, 7}
    again = predict("--weights", path, "--confidence", 0, "--opts", "INPUT.MIN_SIZE_TEST", 80)
    assert again["annotations"] != found["annotations"], "overrides come on top"


def test_a_config_without_its_data_set_takes_the_files_classes(predict, narrow_model, tmp_path):
    path = _save(tmp_path, [])
    config = ["--config-file", model_zoo.get_config_file(CONFIG), "--weights", path]
    for words in ([], ["--opts", "DATASETS.TEST", "('nowhere',)"]):
        found = predict(*config, "--confidence", 0, *words)
        assert found["categories"] == _categories(cup=3, ball=7)


@pytest.mark.parametrize("with_config", [False, True])
def test_a_data_set_gives_ids_and_must_agree(predict, image, tmp_path, with_config):
    path = _save(tmp_path, [])
    words = ["--weights", path, "--confidence", 0]
    words += ["--config-file", model_zoo.get_config_file(CONFIG)] if with_config else []
    for categories, expected in (
        (_categories(cup=20, ball=30), None),
        (_categories(cup=2, ball=1), "another order: class 0 is 'cup' there and 'ball' here"),
        (_categories(cup=1, bat=2), "class 1 is 'ball' there and 'bat' here"),
        (_categories(cup=1, ball=2, bat=3), "2 classes (cup, ball); the data set has 3 classes"),
    ):
        found = predict(*words, "--dataset", _write_dataset(image, categories))
        if expected is None:
            assert found["categories"] == categories
        else:
            assert expected in found and path in found and found.count("\n") == 1
    partial = ["--opts", "MODEL.WEIGHTS_ALLOW_PARTIAL", True]
    dataset = _write_dataset(image, _categories(cup=1, bat=2))
    assert predict(*words, "--dataset", dataset, *partial)["categories"][1]["name"] == "bat"


def test_a_config_that_does_not_fit_is_answered_with_the_files_own(weights, predict):
    for name in (CONFIG, "fcos/fcos_tiny", "mask_rcnn/mask_rcnn_nuclei"):
        config = model_zoo.get_config_file(name)
        error = predict("--weights", weights, "--config-file", config)
        assert "does not fit" in error and "leave --config-file" in error


def test_neither_config_nor_weights(predict):
    assert "--weights FILE" in predict()


def test_a_threshold_by_hand_is_never_overwritten_unsaid(weights, predict):
    every = predict("--weights", weights, "--confidence", 0)["annotations"]
    scores = sorted(annotation["score"] for annotation in every)
    low, high = scores[len(scores) // 4], scores[3 * len(scores) // 4]
    by_hand = ["--weights", weights, "--opts", KEY, high]
    found = predict(*by_hand)["annotations"]
    assert 0 < len(found) < len(every) and min(a["score"] for a in found) >= high
    error = predict("--confidence", low, *by_hand)
    assert KEY in error and "--confidence rules" in error
    assert not predict("--weights", weights, "--confidence", 1)["annotations"]


def test_thresholds_of_the_training_are_not_by_hand(predict, tmp_path, narrow_model):
    path = _save(tmp_path, [*narrow_model, KEY, 0.99])
    assert predict("--weights", path, "--confidence", 0)["annotations"]
