"""Layouts of the published PANet checkpoints (a patch of Detectron.pytorch)."""

from __future__ import annotations

import torch
from torch import Tensor

from instancezoo.checkpoint.rename import Layout, Row, TrainedOn

_LICENCE = "MIT (ShuLiu1993/PANet)"
_DETECTRON2_EPS = 1e-5  # of FrozenBatchNorm2d
_BODY, _RESNET = "Conv_Body.conv_body", "backbone.bottom_up"
_BOX, _MASK = "roi_heads.box_head", "roi_heads.mask_head"


def move_background_last(tensor: Tensor) -> Tensor:
    """Move the background's row, the first, to the end, as in Detectron2."""
    return tensor.roll(-1, dims=0)


def drop_background(tensor: Tensor) -> Tensor:
    """Drop the background's row."""
    return tensor[1:]


def drop_background_box(tensor: Tensor) -> Tensor:
    """Drop the background's box deltas, four rows."""
    return tensor[4:]


def make_zero_mean(tensor: Tensor) -> Tensor:
    """The mean with which a frozen norm only scales and shifts."""
    return torch.zeros_like(tensor)


def make_unit_variance(tensor: Tensor) -> Tensor:
    """The variance with which a frozen norm only scales and shifts."""
    return torch.full_like(tensor, 1 - _DETECTRON2_EPS)


# Norms of the backbone: scale and shift only.
_NORMS = {
    f"{_BODY}.res1.bn1": f"{_RESNET}.stem.conv1.norm",
    f"{_BODY}.res{{s}}.{{b}}.bn{{k}}": f"{_RESNET}.res{{s}}.{{b}}.conv{{k}}.norm",
    f"{_BODY}.res{{s}}.0.downsample.1": f"{_RESNET}.res{{s}}.0.shortcut.norm",
}
_DERIVED = (
    *((f"{a}.bias", f"{b}.running_mean", make_zero_mean) for a, b in _NORMS.items()),
    *((f"{a}.bias", f"{b}.running_var", make_unit_variance) for a, b in _NORMS.items()),
)

# Convolution or fully connected layer `0` and its norm `1`. The lists of the pyramid begin with the
# coarsest level, those of the bottom-up path and of the heads with the finest.
_LATERALS = "Conv_Body.topdown_lateral_modules"
_BLOCKS = {
    "Conv_Body.conv_top": "backbone.fpn_lateral5",
    f"{_LATERALS}.0.conv_lateral": "backbone.fpn_lateral4",
    f"{_LATERALS}.1.conv_lateral": "backbone.fpn_lateral3",
    f"{_LATERALS}.2.conv_lateral": "backbone.fpn_lateral2",
    "Conv_Body.posthoc_modules.0": "backbone.fpn_output5",
    "Conv_Body.posthoc_modules.1": "backbone.fpn_output4",
    "Conv_Body.posthoc_modules.2": "backbone.fpn_output3",
    "Conv_Body.posthoc_modules.3": "backbone.fpn_output2",
    "Conv_Body.panet_buttomup_conv1_modules.{i}": "backbone.path_down.{i}",
    "Conv_Body.panet_buttomup_conv2_modules.{i}": "backbone.path_output.{i}",
    "Box_Head.conv1_head.{i}": f"{_BOX}.conv1.{{i}}",
    "Box_Head.fc1.{i}": f"{_BOX}.fc1.{{i}}",
    "Box_Head.fc2": f"{_BOX}.fc2",
    "Mask_Head.mask_conv1.{i}": f"{_MASK}.fusion.{{i}}",
    "Mask_Head.mask_conv4": f"{_MASK}.conv",
    "Mask_Head.mask_conv4_fc": f"{_MASK}.fc_branch.0",
    "Mask_Head.mask_conv5_fc": f"{_MASK}.fc_branch.1",
}
# In these lists a ReLU follows each norm.
_SEQUENCES = {
    ("Box_Head.convs", 0): f"{_BOX}.conv2",
    ("Box_Head.convs", 3): f"{_BOX}.conv3",
    ("Box_Head.convs", 6): f"{_BOX}.conv4",
    ("Mask_Head.conv_fcn", 0): f"{_MASK}.shared.0",
    ("Mask_Head.conv_fcn", 3): f"{_MASK}.shared.1",
}
_PREDICTOR = "roi_heads.box_predictor"

_ROWS: tuple[Row, ...] = (
    (f"{_BODY}.res1.conv1.weight", f"{_RESNET}.stem.conv1.weight"),
    (f"{_BODY}.res{{s}}.{{b}}.conv{{k}}.weight", f"{_RESNET}.res{{s}}.{{b}}.conv{{k}}.weight"),
    (f"{_BODY}.res{{s}}.0.downsample.0.weight", f"{_RESNET}.res{{s}}.0.shortcut.weight"),
    *((f"{theirs}.*", f"{ours}.*") for theirs, ours in _NORMS.items()),
    *((f"{theirs}.0.*", f"{ours}.*") for theirs, ours in _BLOCKS.items()),
    *((f"{theirs}.1.*", f"{ours}.norm.*") for theirs, ours in _BLOCKS.items()),
    *((f"{theirs}.{i}.*", f"{ours}.*") for (theirs, i), ours in _SEQUENCES.items()),
    *((f"{theirs}.{i + 1}.*", f"{ours}.norm.*") for (theirs, i), ours in _SEQUENCES.items()),
    ("RPN.FPN_RPN_conv.*", "proposal_generator.rpn_head.conv.*"),
    ("RPN.FPN_RPN_cls_score.*", "proposal_generator.rpn_head.objectness_logits.*"),
    ("RPN.FPN_RPN_bbox_pred.*", "proposal_generator.rpn_head.anchor_deltas.*"),
    ("Box_Head.fc.*", f"{_BOX}.fc1.*"),
    ("Box_Outs.cls_score.*", f"{_PREDICTOR}.cls_score.*", move_background_last),
    ("Box_Outs.bbox_pred.*", f"{_PREDICTOR}.bbox_pred.*", drop_background_box),
    ("Mask_Head.mask_fc.0.*", f"{_MASK}.fc_branch.3.*"),
    ("Mask_Head.upconv.*", f"{_MASK}.deconv.*"),
    ("Mask_Outs.classify.*", f"{_MASK}.predictor.*", drop_background),
)

_PATH = "Conv_Body.panet_buttomup_conv1_modules.0.0.weight"
_CONV_HEAD, _FC_HEAD = "Box_Head.conv1_head.0.0.weight", "Box_Head.fc1.0.0.weight"
_MASK_OUTPUT = "Mask_Outs.classify.weight"
_RES4_7TH_BLOCK = f"{_BODY}.res4.6.conv1.weight"  # R-50 has six


def _make_layout(name: str, config: str, must: str, must_not: str) -> Layout:
    return Layout(
        name=f"ShuLiu1993/PANet {name}",
        method="PANet",
        config=f"panet/{config}",
        licence=_LICENCE,
        rows=_ROWS,
        derived=_DERIVED,
        must=(_PATH, "Box_Outs.cls_score.weight", must),
        must_not=(_RES4_7TH_BLOCK, must_not),
        trained_on=TrainedOn.coco("Box_Outs.cls_score.bias", 81),
    )


LAYOUTS = (
    _make_layout("mask R-50", "panet_R_50_FPN_2x", _MASK_OUTPUT, _FC_HEAD),
    _make_layout("box R-50", "panet_box_R_50_FPN_1x", _CONV_HEAD, _MASK_OUTPUT),
    _make_layout("box R-50 2fc", "panet_box_2fc_R_50_FPN_1x", _FC_HEAD, _MASK_OUTPUT),
)
