"""Config keys of PANet."""

from __future__ import annotations

from functools import reduce
from typing import Any

from detectron2.config import CfgNode

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.towers import check_group_norm

FUSIONS = ("max", "sum")
TOP_BLOCKS = ("pool", "convs")
# Parts that exchange features of several levels.
_HEADS = {
    "ROI_HEADS": "PANetROIHeads",
    "ROI_BOX_HEAD": "PANetConvFCHead",
    "ROI_MASK_HEAD": "PANetFusionMaskHead",
}
# What LEGACY_BOXES works with.
_LEGACY_NEEDS = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNNCompactMasks",
    "MODEL.PROPOSAL_GENERATOR.NAME": "PANetRPN",
    "MODEL.ROI_HEADS.NAME": "PANetROIHeads",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "MODEL.KEYPOINT_ON": False,
    "INPUT.CROP.ENABLED": False,  # the scale follows from the sizes of image and original
}
_POOLERS = ("ROIAlignV2", "ROIAlign")


def add_panet_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.PANET`."""
    node = cfg.MODEL.setdefault("PANET", CfgNode())
    # What lies above the last map of the bottom-up path: "pool" every other cell of it, one level;
    # "convs" MODEL.FPN.TOP_LEVELS convolved levels, as FCOS and other one-stage methods want them.
    node.TOP_BLOCK = "pool"
    # How features of a region from several levels are fused: "max" or "sum" over the levels.
    node.FUSE = "max"
    # The mask head's fully connected branch, whose result is added to the mask of every class.
    node.FC_FUSION = True
    # Boxes as in Caffe2's Detectron, which the published weights need: ends of boxes are pixels,
    # anchors have whole sizes, RoIAlign is not shifted by half a cell, proposals are clipped to the
    # padded image, boxes are decoded in the original image, masks are pasted on whole pixels.
    node.LEGACY_BOXES = False


def check_panet_config(cfg: CfgNode) -> None:
    """Refuse values that PANet's heads cannot work with.

    Raises:
        ConfigError: with the key and what it may be.
    """
    model = cfg.MODEL
    check_choice("MODEL.PANET.FUSE", model.PANET.FUSE, FUSIONS)
    box, mask = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    parts = ["ROI_HEADS", "ROI_BOX_HEAD"] + ["ROI_MASK_HEAD"] * model.MASK_ON
    for part in parts:
        _check_partner(f"MODEL.{part}.NAME", model[part].NAME, _HEADS[part], "heads of PANet")
    check_legacy_boxes(cfg)
    for part in parts[1:]:
        check_choice(f"MODEL.{part}.POOLER_TYPE", model[part].POOLER_TYPE, _POOLERS)
    if box.NUM_CONV + box.NUM_FC < 1:
        raise ConfigError(
            "MODEL.ROI_BOX_HEAD.NUM_CONV and MODEL.ROI_BOX_HEAD.NUM_FC are both 0: the first layer "
            "is that of each level; set one of them to 1 or more"
        )
    # Group norms follow convolutions, or fully connected layers where there are none.
    key = "CONV_DIM" if box.NUM_CONV else "FC_DIM"
    check_group_norm(box.NORM, {f"MODEL.ROI_BOX_HEAD.{key}": box[key]})
    if model.MASK_ON:
        _check_mask_head(mask, model.PANET.FC_FUSION)


def check_legacy_boxes(cfg: CfgNode) -> None:
    """Refuse legacy boxes with a part that does not follow them.

    Raises:
        ConfigError: with the key and what it must be.
    """
    model = cfg.MODEL
    if not model.PANET.LEGACY_BOXES:
        return
    heads = ["ROI_BOX_HEAD"] + ["ROI_MASK_HEAD"] * model.MASK_ON
    poolers = {f"MODEL.{head}.POOLER_TYPE": "ROIAlign" for head in heads}
    for key, wanted in (_LEGACY_NEEDS | poolers).items():
        found = reduce(getattr, key.split("."), cfg)
        _check_partner(key, found, wanted, "MODEL.PANET.LEGACY_BOXES True")


def _check_mask_head(node: CfgNode, fc_fusion: bool) -> None:
    check_numbers("MODEL.ROI_MASK_HEAD", node, {"NUM_CONV": (2, 100)})
    key = "MODEL.ROI_MASK_HEAD.CONV_DIM"
    check_group_norm(node.NORM, {key: node.CONV_DIM})
    if fc_fusion:  # it ends in half as many channels
        check_group_norm(node.NORM, {f"half of {key}": node.CONV_DIM // 2})


def _check_partner(key: str, value: Any, wanted: Any, partner: str) -> None:
    if value != wanted:
        raise ConfigError(f"{key} is {value!r}; with {partner} it must be {wanted!r}")
