"""Detectron2's zoo files and ImageNet backbones are recognised and fill our models."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.modeling import build_model
from torch import Tensor, nn

from instancezoo import model_zoo
from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, convert_state_dict
from instancezoo.checkpoint.convert import find_layout, list_layouts
from instancezoo.checkpoint.layouts import IMAGENET_CAFFE2, IMAGENET_DETECTRON2


@pytest.fixture(scope="module")
def make_model(make_cfg) -> Callable[[str], nn.Module]:
    """A model by config, with thin heads that are quick to read and write."""

    def make(config: str) -> nn.Module:
        cfg = make_cfg(config)
        cfg.MODEL.FPN.OUT_CHANNELS = 8
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
        return build_model(cfg)

    return make


@pytest.fixture(scope="module")
def mask_rcnn(make_model) -> nn.Module:
    torch.manual_seed(1)
    return make_model("mask_rcnn/mask_rcnn_R_50_FPN_3x")


def write_pickle(path: Path, state: dict[str, Tensor], **rest: object) -> str:
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, **rest}, protocol=4))
    return str(path)


@pytest.mark.parametrize("folder", ["mask_rcnn", "cascade_mask_rcnn"])
def test_zoo_file_fills_its_config(folder: str, make_model, tmp_path: Path) -> None:
    config = f"{folder}/{folder}_R_50_FPN_3x"
    source = make_model(config)
    state = dict(source.state_dict())
    converted = convert_state_dict(state)
    assert converted.layout.config == config
    assert converted.state.keys() == state.keys() and not converted.unused

    anchors = {"proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4)}
    path = write_pickle(tmp_path / "model_final.pkl", {**state, **anchors}, __author__="Detectron2")
    assert len(convert_state_dict({**state, **anchors}).unused) == 1
    model = make_model(config)
    ZooCheckpointer(model).load(path)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_families_and_backbones_are_told_apart(mask_rcnn: nn.Module) -> None:
    state = dict(mask_rcnn.state_dict())
    deeper = {**state, "backbone.bottom_up.res4.6.conv1.weight": torch.ones(1)}
    wider = {**deeper, "backbone.bottom_up.res2.0.conv1.weight": torch.ones(256, 64, 1, 1)}
    cascade = {name.replace("predictor.c", "predictor.2.c"): state[name] for name in state}
    found = [find_layout(names) for names in (state, deeper, wider, cascade)]
    assert [layout.config if layout else None for layout in found] == [
        "mask_rcnn/mask_rcnn_R_50_FPN_3x",
        "mask_rcnn/mask_rcnn_R_101_FPN_3x",
        "mask_rcnn/mask_rcnn_X_101_32x8d_FPN_3x",
        "cascade_mask_rcnn/cascade_mask_rcnn_R_50_FPN_3x",
    ]


def test_deeper_file_names_the_backbone(mask_rcnn: nn.Module, tmp_path: Path) -> None:
    state = dict(mask_rcnn.state_dict())
    deeper = {**state, "backbone.bottom_up.res4.6.conv1.weight": torch.ones(256, 1024, 1, 1)}
    path = write_pickle(tmp_path / "w.pkl", deeper, __author__="Detectron2")
    with pytest.raises(CheckpointError, match=r"res4\.6\.conv1\.weight.*\bbackbone\b(?!\.)"):
        ZooCheckpointer(mask_rcnn).load(path)


def to_caffe2(state: dict[str, Tensor], folded: bool) -> dict[str, Tensor]:
    """Give a ResNet's tensors the names that Caffe2's ImageNet files have."""
    norm = {"weight": "s", "bias": "b"} if folded else {"weight": "gamma", "bias": "beta"}
    norm |= {"running_mean": "running_mean", "running_var": "running_var"}
    convs = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    renamed = {"fc1000_w": torch.ones(10, 8), "fc1000_b": torch.ones(10)}
    for name, tensor in state.items():
        if folded and "running_" in name:
            continue
        parts = name.split(".")
        if parts[0] == "stem":
            stem = "res_conv1_bn_" + norm[parts[-1]] if "norm" in parts else "conv1_w"
            renamed[stem] = tensor
            continue
        head = f"{parts[0]}_{parts[1]}_{convs[parts[2]]}"
        renamed[f"{head}_bn_{norm[parts[-1]]}" if "norm" in parts else f"{head}_w"] = tensor
    return renamed


@pytest.mark.parametrize("folded", [False, True])
def test_imagenet_caffe2_names(
    mask_rcnn: nn.Module, make_model, tmp_path: Path, folded: bool
) -> None:
    source = to_caffe2(mask_rcnn.backbone.bottom_up.state_dict(), folded)
    converted = convert_state_dict(source)
    assert converted.layout is IMAGENET_CAFFE2
    assert sorted(converted.unused) == ["fc1000_b", "fc1000_w"]
    by_heuristics = align_and_update_state_dicts(mask_rcnn.state_dict(), dict(source))
    for name, tensor in converted.state.items():
        assert torch.equal(tensor, by_heuristics[name])

    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in source.items()}))
    model = make_model("mask_rcnn/mask_rcnn_R_50_FPN_3x")
    ZooCheckpointer(model).load(str(path))
    conv = "backbone.bottom_up.res5.2.conv3.weight"
    assert torch.equal(model.state_dict()[conv], mask_rcnn.state_dict()[conv])


def test_imagenet_detectron2_names(mask_rcnn: nn.Module, make_model, tmp_path: Path) -> None:
    source = dict(mask_rcnn.backbone.bottom_up.state_dict())
    source["stem.fc.weight"] = torch.ones(10, 8)
    converted = convert_state_dict(source)
    assert converted.layout is IMAGENET_DETECTRON2 and converted.unused == ["stem.fc.weight"]
    path = write_pickle(tmp_path / "R-50.pkl", source, __author__="x", matching_heuristics=True)
    model = make_model("mask_rcnn/mask_rcnn_R_50_FPN_3x")
    ZooCheckpointer(model).load(path)
    stem = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(model.state_dict()[stem], mask_rcnn.state_dict()[stem])


def test_a_backbone_of_another_depth_is_refused(mask_rcnn: nn.Module, tmp_path: Path) -> None:
    source = dict(mask_rcnn.backbone.bottom_up.state_dict())
    for name in [name for name in source if name.startswith("res4.5.")]:
        del source[name]
    path = write_pickle(tmp_path / "w.pkl", source, __author__="x", matching_heuristics=True)
    with pytest.raises(CheckpointError, match=r"backbone\.bottom_up\.res4\.5"):
        ZooCheckpointer(mask_rcnn).load(path)


def test_every_layout_says_what_it_is() -> None:
    for layout in list_layouts():
        assert layout.method and layout.licence and layout.must, layout.name
        is_whole = layout.config in model_zoo.list_configs()
        assert is_whole or layout.fills == "backbone", layout.name
        model_zoo.get_config_file(layout.config)  # of a backbone, a fragment in configs/base/
