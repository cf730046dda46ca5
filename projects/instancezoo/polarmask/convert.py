"""Layouts of published PolarMask checkpoints (xieenze/PolarMask, a fork of MMDetection 1)."""

from __future__ import annotations

from torch import Tensor

from instancezoo.checkpoint.mmdetection import (
    BACKBONES,
    UNUSED,
    Signature,
    conv_rows,
    pyramid_rows,
)
from instancezoo.checkpoint.rename import Layout, Row, TrainedOn


def make_vector(scalar: Tensor) -> Tensor:
    """() -> (1,), the shape of our learnt scales."""
    return scalar.view(1)


_LICENCE = "Apache-2.0, for academic use by its README (xieenze/PolarMask)"
_NUM_CONVS = 4
_HEAD = Signature(("bbox_head.polar_mask.weight", "bbox_head.polar_reg.weight"))
_PLAIN_HEAD = _HEAD + Signature(("bbox_head.mask_convs.0.conv.weight",))
_DCN_HEAD = _HEAD + Signature(("bbox_head.mask_convs.0.conv_offset_mask.weight",))

_TOWERS = {"cls_convs": "cls_tower", "reg_convs": "bbox_tower", "mask_convs": "mask_tower"}
_PLAIN_ROWS: tuple[Row, ...] = tuple(
    row
    for theirs, ours in _TOWERS.items()
    for row in conv_rows(f"bbox_head.{theirs}.{{i}}", f"head.{ours}.{{i}}")
)
# A deformable tower is a flat list: convolution 3 * i, its norm 3 * i + 1, ReLU.
_FLAT_ROWS: tuple[Row, ...] = tuple(
    row
    for theirs, ours in _TOWERS.items()
    for i in range(_NUM_CONVS)
    for row in (
        (f"bbox_head.{theirs}.{3 * i}.conv_offset_mask.*", f"head.{ours}.{i}.offset.*"),
        (f"bbox_head.{theirs}.{3 * i}.*", f"head.{ours}.{i}.*"),
        (f"bbox_head.{theirs}.{3 * i + 1}.*", f"head.{ours}.{i}.norm.*"),
    )
)
_ROWS: tuple[Row, ...] = (
    # One list holds the FPN's outputs and its extra levels.
    ("neck.fpn_convs.3.conv.*", "backbone.top_block.p6.*"),
    ("neck.fpn_convs.4.conv.*", "backbone.top_block.p7.*"),
    *pyramid_rows(finest_level=3),
    ("bbox_head.polar_cls.*", "head.cls_logits.*"),
    ("bbox_head.polar_centerness.*", "head.ctrness.*"),
    ("bbox_head.polar_reg.*", "head.bbox_pred.*"),
    ("bbox_head.polar_mask.*", "head.ray_pred.*"),
    ("bbox_head.scales_bbox.{l}.scale", "head.scales_bbox.{l}.scale", make_vector),
    ("bbox_head.scales_mask.{l}.scale", "head.scales_ray.{l}.scale", make_vector),
)


def _make_layout(backbone: str) -> Layout:
    is_deformable = backbone.endswith("_DCN")
    signature = BACKBONES[backbone] + (_DCN_HEAD if is_deformable else _PLAIN_HEAD)
    return Layout(
        name=f"xieenze/PolarMask {backbone}",
        method="PolarMask",
        config=f"polarmask/polarmask_{backbone}_FPN_1x",
        licence=_LICENCE,
        rows=(*_ROWS, *(_FLAT_ROWS if is_deformable else _PLAIN_ROWS)),
        unused=UNUSED,
        trained_on=TrainedOn.coco("bbox_head.polar_cls.bias"),
        **vars(signature),
    )


_BACKBONES = ("R_50", "R_101", "X_101_64x4d", "R_50_DCN", "R_101_DCN", "X_101_64x4d_DCN")
LAYOUTS = tuple(map(_make_layout, _BACKBONES))
