"""The config of a checkpoint's model: saved with it, or that of its published layout."""

import logging

import pytest
import torch
import yaml

from instancezoo import get_cfg, model_zoo
from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, save_safetensors
from instancezoo.errors import ConfigError
from instancezoo.testing import list_tiny_configs


@pytest.fixture
def save(tmp_path):
    """Saves a file with the given entries beside its tensors; returns its path."""

    def write(**facts):
        ZooCheckpointer(torch.nn.Linear(2, 3), str(tmp_path), facts=facts).save("model")
        return str(tmp_path / "model.pth")

    return write


def _list_values(cfg):
    return yaml.safe_load(cfg.dump())  # YAML has no tuples


@pytest.mark.parametrize("name", list_tiny_configs())
def test_a_saved_config_is_read_back(name, save):
    cfg = model_zoo.get_config(name, ["SOLVER.BASE_LR", 1, "INPUT.MIN_SIZE_TEST", 77])
    cfg.MODEL.TIMM.WEIGHTS = ""
    found = model_zoo.get_trained_config(save(cfg=cfg.dump()))
    assert found.MODEL.WEIGHTS.endswith("model.pth")
    cfg.MODEL.WEIGHTS = found.MODEL.WEIGHTS
    assert _list_values(found) == _list_values(cfg)
    assert not found.was_set("INPUT.MIN_SIZE_TEST"), "it was not set by hand here"


def test_the_training_machine_does_not_bind(save):
    cfg = get_cfg()
    here = cfg.clone()
    cfg.MODEL.DEVICE = "cuda:3"
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.WEIGHTS, cfg.OUTPUT_DIR = "/a.pth", "/b.pth", "123"
    cfg.MODEL.WEIGHTS_ALLOW_PARTIAL, cfg.MODEL.MASK_OUTPUT = True, "rle"
    path = save(cfg=cfg.dump())
    here.MODEL.WEIGHTS = path
    assert _list_values(model_zoo.get_trained_config(path)) == _list_values(here)


def test_overrides_come_last_and_are_checked(save):
    path = save(cfg=get_cfg().dump())
    found = model_zoo.get_trained_config(path, ["INPUT.MIN_SIZE_TEST", "64"])
    assert found.INPUT.MIN_SIZE_TEST == 64
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS"):
        model_zoo.get_trained_config(path, ["MODEL.WIGHTS", "x"])
    with pytest.raises(ConfigError, match=r"MODEL\.META_ARCHITECTURE 'Mask'"):
        model_zoo.get_trained_config(path, ["MODEL.META_ARCHITECTURE", "Mask"])


def test_keys_of_another_version_are_named(save, caplog):
    saved = yaml.safe_load(get_cfg().dump())
    saved["MODEL"]["NEW"] = {"DEPTH": 3}
    saved["SOLVER"]["OPTIMISER"] = "LION"
    saved["INPUT"]["MIN_SIZE_TEST"] = 55
    with caplog.at_level(logging.WARNING):
        found = model_zoo.get_trained_config(save(cfg=yaml.safe_dump(saved)))
    assert "MODEL.NEW" in caplog.text and "SOLVER.OPTIMISER" in caplog.text
    assert found.INPUT.MIN_SIZE_TEST == 55


@pytest.mark.parametrize(
    "text", ["MODEL: [", "- 1", "INPUT: {MIN_SIZE_TEST: [1, 2]}", "a: !!x/y 1"]
)
def test_a_spoilt_config_is_one_clear_error(text, save):
    with pytest.raises(ConfigError, match=r"model\.pth"):
        model_zoo.get_trained_config(save(cfg=text))


def test_a_converted_file_has_the_shipped_config(tmp_path):
    path = str(tmp_path / "w.safetensors")
    facts = {"__author__": "InstanceZoo, from X", "config": "solo/solo_R_50_FPN_3x"}
    save_safetensors(path, {"x": torch.ones(1)}, facts)
    found = model_zoo.get_trained_config(path)
    expected = model_zoo.get_config("solo/solo_R_50_FPN_3x", ["MODEL.WEIGHTS", path])
    assert found == expected


def test_without_a_config_the_remedy_is_named(save, tmp_path):
    for facts, words in (
        ({}, "holds no config"),
        ({"config": "solo/solo_new"}, "'solo/solo_new', which does not exist"),
        ({"config": "base/dense_fpn", "method": "backbone"}, "only a backbone"),
    ):
        with pytest.raises(ConfigError, match=rf"model\.pth.*{words}.*--config-file"):
            model_zoo.get_trained_config(save(**facts))
    with pytest.raises(CheckpointError, match=r"absent\.pth does not exist"):
        model_zoo.get_trained_config(str(tmp_path / "absent.pth"))
