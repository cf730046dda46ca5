"""Rows and signatures that checkpoints of MMDetection and its forks share."""

from __future__ import annotations

from dataclasses import dataclass, field

from .layouts import COUNTERS, resnet_rows
from .rename import Row

UNUSED = (COUNTERS,)

_BLOCK, _OURS = "backbone.layer{s}.{b}", "backbone.bottom_up.res{s+1}.{b}"
# The offsets' name depends on MMDetection's version.
_DCN = "backbone.layer2.0.conv2**offset.weight"
_BOTTLENECK = "backbone.layer1.0.conv3.weight"
_3RD_BLOCK, _7TH_BLOCK = "backbone.layer1.2.conv1.weight", "backbone.layer3.6.conv1.weight"
_WIDTH = "backbone.layer1.0.conv1.weight"


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
