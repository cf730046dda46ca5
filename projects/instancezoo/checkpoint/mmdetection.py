"""Rows and signatures that checkpoints of MMDetection and its forks share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from .display import show_text
from .layouts import COUNTERS, resnet_rows
from .reader import CheckpointError
from .rename import Layout, Row, match_name

UNUSED = (COUNTERS,)

_BLOCK, _OURS = "backbone.layer{s}.{b}", "backbone.bottom_up.res{s+1}.{b}"
# The offsets' name depends on MMDetection's version.
_DCN = "backbone.layer2.0.conv2**offset.weight"
_BOTTLENECK = "backbone.layer1.0.conv3.weight"
_3RD_BLOCK, _7TH_BLOCK = "backbone.layer1.2.conv1.weight", "backbone.layer3.6.conv1.weight"
_WIDTH = "backbone.layer1.0.conv1.weight"

Style = Literal["pytorch", "caffe", "mixed"]
# The two ways in which MMDetection prepares images and strides its ResNets.
_SETTINGS: dict[Style, str] = {
    "pytorch": 'INPUT.FORMAT RGB MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" '
    'MODEL.PIXEL_STD "[58.395, 57.12, 57.375]" MODEL.RESNETS.STRIDE_IN_1X1 False',
    "caffe": 'INPUT.FORMAT BGR MODEL.PIXEL_MEAN "[103.53, 116.28, 123.675]" '
    'MODEL.PIXEL_STD "[1.0, 1.0, 1.0]" MODEL.RESNETS.STRIDE_IN_1X1 True',
    "mixed": "INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and MODEL.RESNETS.STRIDE_IN_1X1 "
    "(True for style='caffe') as it says",
}
# In the text of a config, as Python's calls or dicts: style='caffe', "to_rgb": False
_STYLE = re.compile(r"""\bstyle['"]?\s*[=:]\s*['"](pytorch|caffe)['"]""")
_TO_RGB = re.compile(r"""to_rgb['"]?\s*[=:]\s*(True|False)\b""")
_VERSION_1_NAMES = ("bbox_head.fc_cls.weight", "bbox_head.{s}.fc_cls.weight")
VERSION_1 = (
    "it is of MMDetection 1, whose heads have no 'roi_head.' in front and whose class 0 is the "
    "background: take the model's file of MMDetection 2 or 3"
)


@dataclass(frozen=True)
class Signature:
    """What distinguishes one network from its relatives, see `Layout`."""

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def __add__(self, other: Signature) -> Signature:
        shapes = {**self.shapes, **other.shapes}
        return Signature(self.must + other.must, self.must_not + other.must_not, shapes)


BACKBONES = {
    "R_18": Signature(must_not=(_BOTTLENECK, _3RD_BLOCK)),
    "R_34": Signature((_3RD_BLOCK,), (_BOTTLENECK,)),
    "R_50": Signature((_BOTTLENECK,), (_7TH_BLOCK, _DCN)),
    "R_50_DCN": Signature((_BOTTLENECK, _DCN), (_7TH_BLOCK,)),
    "R_101": Signature((_7TH_BLOCK,), (_DCN,), {_WIDTH: (64, None, None, None)}),
    "R_101_DCN": Signature((_7TH_BLOCK, _DCN), (), {_WIDTH: (64, None, None, None)}),
    "X_101_32x4d": Signature((_7TH_BLOCK,), (_DCN,), {_WIDTH: (128, None, None, None)}),
    "X_101_64x4d": Signature((_7TH_BLOCK,), (_DCN,), {_WIDTH: (256, None, None, None)}),
    "X_101_64x4d_DCN": Signature((_7TH_BLOCK, _DCN), (), {_WIDTH: (256, None, None, None)}),
}


def pyramid_rows(finest_level: int) -> tuple[Row, ...]:
    """Make the rows of a ResNet, with or without deformable convolutions, and of its FPN.

    Args:
        finest_level: number of the FPN's finest map, 2 for p2.
    """
    return (
        (f"{_BLOCK}.conv2.conv_offset.*", f"{_OURS}.conv2.offset.*"),
        (f"{_BLOCK}.conv2_offset.*", f"{_OURS}.conv2.offset.*"),
        *resnet_rows("backbone."),
        ("neck.lateral_convs.{n}.conv.*", f"backbone.fpn_lateral{{n+{finest_level}}}.*"),
        ("neck.fpn_convs.{n}.conv.*", f"backbone.fpn_output{{n+{finest_level}}}.*"),
    )


def region_rows() -> tuple[Row, ...]:
    """Make the rows of a region proposal network and of fully connected box heads.

    A model has one box head, or one for each stage, whose index follows the head's name.
    """
    theirs, ours = "roi_head.bbox_head", "roi_heads"
    rows: list[Row] = [
        ("rpn_head.rpn_conv.*", "proposal_generator.rpn_head.conv.*"),
        ("rpn_head.rpn_cls.*", "proposal_generator.rpn_head.objectness_logits.*"),
        ("rpn_head.rpn_reg.*", "proposal_generator.rpn_head.anchor_deltas.*"),
    ]
    for stage in ("", ".{s}"):
        predictor = f"{ours}.box_predictor{stage}"
        rows += [
            (f"{theirs}{stage}.shared_fcs.{{k}}.*", f"{ours}.box_head{stage}.fc{{k+1}}.*"),
            (f"{theirs}{stage}.fc_cls.*", f"{predictor}.cls_score.*"),
            (f"{theirs}{stage}.fc_reg.*", f"{predictor}.bbox_pred.*"),
        ]
    return tuple(rows)


def mask_rows(stage: str = "") -> tuple[Row, ...]:
    """Make the rows of a mask head of convolutions.

    Args:
        stage: ".{s}" for one head per stage.
    """
    theirs, ours = f"roi_head.mask_head{stage}", f"roi_heads.mask_head{stage}"
    return (
        (f"{theirs}.convs.{{k}}.conv.*", f"{ours}.mask_fcn{{k+1}}.*"),
        (f"{theirs}.upsample.*", f"{ours}.deconv.*"),
        (f"{theirs}.conv_logits.*", f"{ours}.predictor.*"),
    )


def conv_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Make the rows of a plain or deformable convolution with its group norm."""
    return (
        (f"{theirs}.conv.conv_offset.*", f"{ours}.offset.*"),
        (f"{theirs}.conv.weight", f"{ours}.weight"),
        (f"{theirs}.gn.*", f"{ours}.norm.*"),
    )


def is_version_1(names: Iterable[str]) -> bool:
    """Return True for the names of a two-stage model of MMDetection 1."""
    patterns = _VERSION_1_NAMES
    return any(match_name(pattern, name) is not None for name in names for pattern in patterns)


def check_origin(
    checkpoint: Mapping[str, Any], layout: Layout, model: nn.Module | None = None
) -> None:
    """Refuse a file whose own config asks for other images or strides than ours.

    Args:
        checkpoint: as from `read_checkpoint`; MMDetection describes the training in its "meta".
        layout: the recognised one; without a `style` nothing is checked.
        model: the model to fill; None for a conversion, whose file goes with `layout.config`.

    Raises:
        CheckpointError: with the keys to set.
    """
    meta = checkpoint.get("meta")
    if not layout.style or not isinstance(meta, Mapping):
        return
    version = meta.get("mmdet_version")
    if isinstance(version, str) and version.startswith(("0.", "1.")):
        raise CheckpointError(f"its mmdet_version is {show_text(version)}: {VERSION_1}")
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    style = _find_style(text)
    if style is None:
        return
    if model is None and style != layout.style:
        raise CheckpointError(
            f"its config has the style '{style}', but {layout.config}, with which a converted file "
            f"is used, has '{layout.style}': name the file itself as MODEL.WEIGHTS, and set "
            f"{_SETTINGS[style]}"
        )
    if model is not None and _find_model_style(model) not in (style, None):
        raise CheckpointError(
            f"its config has the style '{style}', which the model's images or strides are not: set "
            f"{_SETTINGS[style]}"
        )


def _find_style(text: str) -> Style | None:
    """Find the style in a config's text; None if the text does not state it."""
    signs = {style == "caffe" for style in _STYLE.findall(text)}
    signs |= {order == "False" for order in _TO_RGB.findall(text)}
    return _judge(signs) if signs else None


def _find_model_style(model: nn.Module) -> Style | None:
    """Find the style of a model; None if it shows none."""
    pixel_std, blocks = getattr(model, "pixel_std", None), getattr(model, "backbone", None)
    blocks = getattr(getattr(blocks, "bottom_up", blocks), "res3", None)
    if pixel_std is None or blocks is None or not hasattr(blocks[0], "conv3"):
        return None
    signs = {
        bool((pixel_std == 1).all()),
        getattr(model, "input_format", "BGR") != "RGB",
        blocks[0].conv1.stride != (1, 1),
    }
    return _judge(signs)


def _judge(is_caffe: set[bool]) -> Style:
    if len(is_caffe) > 1:
        return "mixed"
    return "caffe" if True in is_caffe else "pytorch"
