"""The published PANet files: both box heads, with and without masks, as they were saved."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from published_names import describe_model, list_shapes

from instancezoo.checkpoint import convert_state_dict
from instancezoo.checkpoint.convert import convert_file

SPEC = Path(__file__).resolve().parent.parent / "golden" / "panet" / "spec.json"
_VECTOR = (1024,)
FC_HEAD = {
    **{f"Box_Head.fc1.{level}.0.weight": (1024, 12544) for level in range(4)},
    **{
        f"Box_Head.fc1.{level}.{name}": _VECTOR
        for level in range(4)
        for name in ("0.bias", "1.weight", "1.bias")
    },
    "Box_Head.fc2.0.weight": (1024, 1024),
    **{f"Box_Head.fc2.{name}": _VECTOR for name in ("0.bias", "1.weight", "1.bias")},
}


def _list_published(variant):
    shapes = json.loads(SPEC.read_text())["shapes"]
    if variant != "mask":
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("Mask_")}
    if variant == "box 2fc":
        shapes = {name: shape for name, shape in shapes.items() if "Box_Head" not in name}
        shapes |= FC_HEAD
    return shapes


@pytest.mark.parametrize(
    "variant,config",
    [
        ("mask", "panet/panet_R_50_FPN_2x"),
        ("box", "panet/panet_box_R_50_FPN_1x"),
        ("box 2fc", "panet/panet_box_2fc_R_50_FPN_1x"),
    ],
)
def test_a_published_file_fills_its_config(variant, config):
    shapes = _list_published(variant)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = convert_state_dict(state)
    assert converted.layout.config == config
    assert converted.used.keys() == state.keys() and not converted.unused
    _, model = describe_model(config)
    assert list_shapes(converted.state) == list_shapes(model)


@pytest.mark.parametrize("is_zip", [False, True], ids=["torch_0.4", "torch"])
def test_the_whole_file_is_converted(tmp_path, is_zip):
    """The file as the official code saves it, with small tensors."""
    torch.manual_seed(0)
    state = {}
    for name, shape in _list_published("mask").items():
        is_output = name.startswith(("Box_Outs", "Mask_Outs"))
        state[name] = torch.rand([shape[0] if is_output else 4, *(2 for _ in shape[1:])])
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(4)}}, "param_groups": [{"lr": 0.02}]}
    whole = {"step": 179999, "train_size": 118287, "batch_size": 8, "model": state}
    whole["optimizer"] = optimizer
    file = tmp_path / "model_step179999.pth"
    torch.save(whole, file, _use_new_zipfile_serialization=is_zip)
    checkpoint, converted = convert_file(file)
    assert converted.layout.name == "ShuLiu1993/PANet mask R-50"
    assert len(checkpoint["class_names"]) == 80 and checkpoint["licence"].startswith("MIT")

    ours = checkpoint["model"]
    scores, theirs = ours["roi_heads.box_predictor.cls_score.weight"], "Box_Outs.cls_score.weight"
    assert torch.equal(scores[-1], state[theirs][0]) and torch.equal(scores[:-1], state[theirs][1:])
    boxes = ours["roi_heads.box_predictor.bbox_pred.weight"]
    assert torch.equal(boxes, state["Box_Outs.bbox_pred.weight"][4:])
    masks = ours["roi_heads.mask_head.predictor.bias"]
    assert torch.equal(masks, state["Mask_Outs.classify.bias"][1:])
    # Lists of the pyramid begin with the coarsest level, those of the path with the finest.
    coarsest = state["Conv_Body.posthoc_modules.0.0.weight"]
    assert torch.equal(ours["backbone.fpn_output5.weight"], coarsest)
    finest = state["Conv_Body.panet_buttomup_conv1_modules.0.0.weight"]
    assert torch.equal(ours["backbone.path_down.0.weight"], finest)


def test_norms_of_the_backbone_only_scale_and_shift():
    shapes = _list_published("mask")
    state = {name: torch.rand(shape[:1]) for name, shape in shapes.items()}
    ours = convert_state_dict(state).state
    for norm, theirs in {
        "stem.conv1.norm": "res1.bn1",
        "res3.1.conv2.norm": "res3.1.bn2",
        "res4.0.shortcut.norm": "res4.0.downsample.1",
    }.items():
        weight, bias = (state[f"Conv_Body.conv_body.{theirs}.{k}"] for k in ("weight", "bias"))
        module = FrozenBatchNorm2d(len(weight))
        prefix = f"backbone.bottom_up.{norm}."
        module.load_state_dict({k[len(prefix) :]: v for k, v in ours.items() if prefix in k})
        maps = torch.randn(2, len(weight), 3, 5)
        expected = maps * weight[:, None, None] + bias[:, None, None]
        torch.testing.assert_close(module(maps), expected)
