"""`published://` files work with stock Detectron2."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torchvision.models import resnet18

from instancezoo.checkpoint import CheckpointError, convert_state_dict
from instancezoo.checkpoint import published as published_module


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def published_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "resnet18.pth"
    torch.save(resnet18(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("form", ["published://{}", "published:{}"])
def test_stock_predictor(form: str, published_file: Path, make_cfg) -> None:
    cfg = make_cfg("mask_rcnn/mask_rcnn_tiny")
    cfg.MODEL.WEIGHTS = form.format(published_file)
    predictor = DefaultPredictor(cfg)
    state = convert_state_dict(torch.load(published_file)).state
    loaded = predictor.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert "instances" in predictor(np.zeros((48, 64, 3), np.uint8))


def test_relative_path_is_converted_once_for_each_content(
    published_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published_file.parent)
    address = f"published://{published_file.name}"
    assert PathManager.isfile(address) and not PathManager.isfile("published://absent.pth")
    local = Path(PathManager.get_local_path(address))
    assert local.is_relative_to(cache)
    written = local.stat().st_mtime_ns
    assert Path(PathManager.get_local_path(address)) == local
    assert local.stat().st_mtime_ns == written, "the second time it is only looked up"
    with PathManager.open(address, "rb") as file:
        assert file.read(4) == b"PK\x03\x04"

    state = torch.load(published_file)
    state["layer1.0.conv1.weight"] += 1
    other = cache.parent / published_file.name
    torch.save(state, other)
    assert Path(PathManager.get_local_path(f"published://{other}")) != local
    assert len(list((cache / "published").iterdir())) == 2


def test_unknown_file_is_an_error(tmp_path: Path, make_cfg) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth.*layout"):
        PathManager.get_local_path(f"published://{tmp_path}/w.pth")
    with pytest.raises(CheckpointError, match="absent"):
        DetectionCheckpointer(build_model(make_cfg("mask_rcnn/mask_rcnn_tiny"))).load(
            "published://absent.pth"
        )


def test_importing_again_is_harmless(published_file: Path) -> None:
    import importlib

    importlib.reload(published_module)
    assert PathManager.get_local_path(f"published://{published_file}").endswith(".pth")
