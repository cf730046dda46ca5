"""Layouts of published Mask R-CNN and Cascade Mask R-CNN checkpoints.

They are those of Detectron2, torchvision and, of the former alone, MMDetection.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from instancezoo.checkpoint.layouts import COUNTERS, ZOO_LICENCE, resnet_rows
from instancezoo.checkpoint.mmdetection import (
    BACKBONES,
    UNUSED,
    Signature,
    mask_rows,
    pyramid_rows,
    region_rows,
)
from instancezoo.checkpoint.rename import Layout, Row, TrainedOn

_NUM_COCO_OUTPUTS = 91
_DETECTRON2_EPS = 1e-5  # of FrozenBatchNorm2d


def find_class_rows(num_outputs: int) -> list[int]:
    """List the rows of torchvision's outputs that are classes; row 0 is the background.

    The published COCO models have 91 rows, one per category id: 11 of these ids are unused, and
    Detectron2 numbers the other 80 in the order of their ids.
    """
    if num_outputs == _NUM_COCO_OUTPUTS:
        return [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
    return list(range(1, num_outputs))


def move_background_last(tensor: Tensor) -> Tensor:
    """Keep the classes' rows and move the background's, row 0, to the end, as in Detectron2."""
    return torch.cat([tensor[find_class_rows(len(tensor))], tensor[:1]])


def keep_classes(tensor: Tensor) -> Tensor:
    """Keep the rows of the classes."""
    return tensor[find_class_rows(len(tensor))]


def keep_class_boxes(tensor: Tensor) -> Tensor:
    """Keep the classes' box deltas, four rows each."""
    boxes = tensor.unflatten(0, (-1, 4))
    return boxes[find_class_rows(len(boxes))].flatten(0, 1)


def subtract_eps(tensor: Tensor) -> Tensor:
    """Subtract the epsilon that Detectron2 adds to a variance, if training added none."""
    return tensor - _DETECTRON2_EPS


# Detectron2's zoo already has our names. The networks of one family differ in depth or width.
_ZOO_ROWS: tuple[Row, ...] = (
    ("backbone.**", "backbone.**"),
    ("proposal_generator.rpn_head.**", "proposal_generator.rpn_head.**"),
    ("roi_heads.**", "roi_heads.**"),
)
_ZOO_UNUSED = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.**")
_ZOO_SIGNATURE = (
    "backbone.fpn_lateral2.weight",
    "proposal_generator.rpn_head.conv.weight",
    "roi_heads.mask_head.predictor.weight",
)
_RES4_7TH_BLOCK = "backbone.bottom_up.res4.6.conv1.weight"  # R-50 has six, R-101 has 23
_FAMILIES = (
    ("mask_rcnn", "Mask R-CNN", "roi_heads.box_predictor.cls_score.weight"),
    ("cascade_mask_rcnn", "Cascade Mask R-CNN", "roi_heads.box_predictor.2.cls_score.weight"),
)
# backbone -> (has res4.6, width of res2's bottleneck)
_BACKBONES = {"R_50": (False, 64), "R_101": (True, 64), "X_101_32x8d": (True, 256)}

_ZOO_LAYOUTS = tuple(
    Layout(
        name=f"Detectron2 {folder}_{backbone}_FPN",
        method=method,
        config=f"{folder}/{folder}_{backbone}_FPN_3x",
        licence=ZOO_LICENCE,
        rows=_ZOO_ROWS,
        unused=_ZOO_UNUSED,
        must=(*_ZOO_SIGNATURE, predictor, *((_RES4_7TH_BLOCK,) if is_deep else ())),
        must_not=() if is_deep else (_RES4_7TH_BLOCK,),
        shapes={"backbone.bottom_up.res2.0.conv1.weight": (width, 64, 1, 1)},
        trained_on=TrainedOn.coco("roi_heads.mask_head.predictor.bias"),
    )
    for folder, method, predictor in _FAMILIES
    for backbone, (is_deep, width) in _BACKBONES.items()
)

# torchvision's background is class 0, Detectron2's is the last class.
_TORCHVISION_HEADS: tuple[Row, ...] = (
    ("rpn.head.cls_logits.*", "proposal_generator.rpn_head.objectness_logits.*"),
    ("rpn.head.bbox_pred.*", "proposal_generator.rpn_head.anchor_deltas.*"),
    ("roi_heads.box_head.fc6.*", "roi_heads.box_head.fc1.*"),
    ("roi_heads.box_head.fc7.*", "roi_heads.box_head.fc2.*"),
    (
        "roi_heads.box_predictor.cls_score.*",
        "roi_heads.box_predictor.cls_score.*",
        move_background_last,
    ),
    (
        "roi_heads.box_predictor.bbox_pred.*",
        "roi_heads.box_predictor.bbox_pred.*",
        keep_class_boxes,
    ),
    ("roi_heads.mask_predictor.conv5_mask.*", "roi_heads.mask_head.deconv.*"),
    (
        "roi_heads.mask_predictor.mask_fcn_logits.*",
        "roi_heads.mask_head.predictor.*",
        keep_classes,
    ),
)

TORCHVISION_MASK_RCNN = Layout(
    name="torchvision maskrcnn_resnet50_fpn",
    method="Mask R-CNN",
    config="mask_rcnn/mask_rcnn_R_50_FPN_torchvision",
    licence="BSD-3-Clause (torchvision), trained on COCO",
    trained_on=TrainedOn.coco("roi_heads.mask_predictor.mask_fcn_logits.bias", _NUM_COCO_OUTPUTS),
    must=(
        "backbone.body.layer4.2.conv3.weight",
        "rpn.head.conv.0.0.weight",
        "roi_heads.box_head.fc6.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.weight",
    ),
    # layer3.6: a deeper network; conv.1: the v2 model, whose head is another
    must_not=("backbone.body.layer3.6.conv1.weight", "rpn.head.conv.1.0.weight"),
    unused=(COUNTERS,),
    rows=(
        ("backbone.fpn.inner_blocks.{i}.0.*", "backbone.fpn_lateral{i+2}.*"),
        ("backbone.fpn.layer_blocks.{i}.0.*", "backbone.fpn_output{i+2}.*"),
        ("rpn.head.conv.0.0.*", "proposal_generator.rpn_head.conv.*"),
        ("roi_heads.mask_head.{i}.0.*", "roi_heads.mask_head.mask_fcn{i+1}.*"),
        *_TORCHVISION_HEADS,
        *resnet_rows("backbone.body."),
    ),
)

# The COCO_V1 file of 2019: older names, and a backbone trained without an epsilon in its norms:
# torchvision sets it to zero when it loads this file. A copy saved by today's torchvision has
# today's names, and nothing in it shows that the epsilon is zero: convert the original.
TORCHVISION_MASK_RCNN_2019 = replace(
    TORCHVISION_MASK_RCNN,
    name="torchvision maskrcnn_resnet50_fpn COCO_V1",
    must=(
        "backbone.body.layer4.2.conv3.weight",
        "rpn.head.conv.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.weight",
        "roi_heads.mask_head.mask_fcn1.weight",
    ),
    must_not=("backbone.body.layer3.6.conv1.weight",),
    rows=(
        ("backbone.fpn.inner_blocks.{i}.*", "backbone.fpn_lateral{i+2}.*"),
        ("backbone.fpn.layer_blocks.{i}.*", "backbone.fpn_output{i+2}.*"),
        ("rpn.head.conv.*", "proposal_generator.rpn_head.conv.*"),
        ("roi_heads.mask_head.mask_fcn{i}.*", "roi_heads.mask_head.mask_fcn{i}.*"),
        *_TORCHVISION_HEADS,
        *resnet_rows("backbone.body.", variance=subtract_eps),
    ),
)

_MMDETECTION_HEADS = Signature(
    (
        "roi_head.bbox_head.fc_reg.weight",
        "roi_head.mask_head.upsample.weight",
        "roi_head.mask_head.conv_logits.weight",
    )
)


def _make_mmdetection_layout(backbone: str) -> Layout:
    signature = BACKBONES[backbone] + _MMDETECTION_HEADS
    return Layout(
        name=f"MMDetection mask_rcnn_{backbone}_FPN",
        method="Mask R-CNN",
        config=f"mask_rcnn/mask_rcnn_{backbone}_FPN_1x_mmdet",
        licence="Apache-2.0 (MMDetection)",
        trained_on=TrainedOn.coco("roi_head.mask_head.conv_logits.bias"),
        must=signature.must,
        must_not=signature.must_not,
        shapes=signature.shapes,
        unused=UNUSED,
        rows=(*pyramid_rows(finest_level=2), *region_rows(), *mask_rows()),
        style="pytorch",
    )


MMDETECTION_LAYOUTS = tuple(
    _make_mmdetection_layout(name) for name in ("R_50", "R_101", "X_101_32x4d", "X_101_64x4d")
)

LAYOUTS = (
    *_ZOO_LAYOUTS,
    TORCHVISION_MASK_RCNN,
    TORCHVISION_MASK_RCNN_2019,
    *MMDETECTION_LAYOUTS,
)
