"""Detectron2's region proposals and ROI heads with choices that other frameworks made.

Legend: N images, A anchors of all levels, M instances of an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, pairwise_iou
from fvcore.common.registry import Registry
from torch import Tensor

from instancezoo.errors import ConfigError

from .box_transform import build_box_transform
from .matching import FloorMatcher, build_roi_matcher

_RPN_SWITCHES = (
    "SYMMETRIC_DELTA_CLAMP",
    "NORMALIZE_BY_SAMPLES",
    "DISCARD_BEFORE_MATCHING",
    "LOW_QUALITY_REMATCH",
    "LOW_QUALITY_FLOOR",
)
HEAD_SWITCHES = ("SYMMETRIC_DELTA_CLAMP", "LOW_QUALITY_MATCHES", "PAD_GT_MASKS")


@PROPOSAL_GENERATOR_REGISTRY.register()
class AdjustableRPN(RPN):
    """Detectron2's RPN with the switches of `cfg.MODEL.RPN`; without them it is the same.

    Args:
        normalize_by_samples: see the key.
        discard_before_matching: see the key.
        kwargs: those of `RPN`.
    """

    switches = _RPN_SWITCHES

    @configurable
    def __init__(
        self,
        *,
        normalize_by_samples: bool = False,
        discard_before_matching: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.normalize_by_samples = normalize_by_samples
        self.discard_before_matching = discard_before_matching

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.RPN
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": build_box_transform(
                node.BBOX_REG_WEIGHTS, node.SYMMETRIC_DELTA_CLAMP
            ),
            "anchor_matcher": FloorMatcher(
                node.IOU_THRESHOLDS,
                node.IOU_LABELS,
                floor=node.LOW_QUALITY_FLOOR,
                rematch=node.LOW_QUALITY_REMATCH,
            ),
            "normalize_by_samples": node.NORMALIZE_BY_SAMPLES,
            "discard_before_matching": node.DISCARD_BEFORE_MATCHING,
        }

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (A,) and matched boxes (A, 4) of N images, see `RPN`."""
        if not self.discard_before_matching or self.anchor_boundary_thresh < 0:
            return super().label_and_sample_anchors(anchors, gt_instances)
        joined = Boxes.cat(anchors)
        labels, matched_boxes = [], []
        for objects in gt_instances:
            is_inside = joined.inside_box(objects.image_size, self.anchor_boundary_thresh)
            (rows,) = is_inside.nonzero(as_tuple=True)
            # parity: an anchor outside the image must not take an object's best place.
            matches, own = self.anchor_matcher(pairwise_iou(objects.gt_boxes, joined[rows]))
            all_labels = own.new_full((len(joined),), -1)
            all_labels[rows] = own
            boxes = torch.zeros_like(joined.tensor)
            if len(objects):
                boxes[rows] = objects.gt_boxes.tensor[matches]
            labels.append(self._subsample_labels(all_labels))
            matched_boxes.append(boxes)
        return labels, matched_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_loc`, see `RPN`."""
        losses: dict[str, Tensor] = super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        if self.normalize_by_samples:
            # parity: the number of anchors that were sampled, not the number asked for.
            wanted = self.batch_size_per_image * len(gt_labels)
            factor = wanted / (torch.stack(gt_labels) >= 0).sum().clamp(min=1)
            losses = {name: loss * factor for name, loss in losses.items()}
        return losses


@ROI_HEADS_REGISTRY.register()
class AdjustableROIHeads(StandardROIHeads):
    """Detectron2's ROI heads with the switches of `cfg.MODEL.ROI_HEADS`.

    Args:
        pad_gt_masks: see the key.
        kwargs: those of `StandardROIHeads`.
    """

    switches = HEAD_SWITCHES

    @configurable
    def __init__(self, *, pad_gt_masks: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pad_gt_masks = pad_gt_masks

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node, arguments = cfg.MODEL.ROI_HEADS, super().from_config(cfg, input_shape)
        arguments["pad_gt_masks"] = node.PAD_GT_MASKS
        if node.LOW_QUALITY_MATCHES:
            (threshold,) = node.IOU_THRESHOLDS
            arguments["proposal_matcher"] = build_roi_matcher(threshold, low_quality=True)
        weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        transform = build_box_transform(weights, node.SYMMETRIC_DELTA_CLAMP)
        arguments["box_predictor"].box2box_transform = transform
        return arguments

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Any:
        """Train or infer, see `StandardROIHeads`."""
        if targets is not None and self.pad_gt_masks:
            targets = pad_gt_masks(targets, images)
        return super().forward(images, features, proposals, targets)


def pad_gt_masks(targets: list[Instances], images: ImageList) -> list[Instances]:
    """Copies of the ground truth whose bit masks have the size of the padded batch.

    Args:
        targets: N Instances; those without `gt_masks` are not changed.
        images: the batch.
    """
    height, width = images.tensor.shape[2:]
    padded = []
    for objects in targets:
        copy = Instances(objects.image_size, **objects.get_fields())
        if copy.has("gt_masks") and isinstance(copy.gt_masks, BitMasks):
            masks = copy.gt_masks.tensor
            # parity: at the border a mask is resampled with the padding, not with itself.
            margin = (0, width - masks.shape[2], 0, height - masks.shape[1])
            copy.gt_masks = BitMasks(F.pad(masks, margin))
        padded.append(copy)
    return padded


def check_switches(cfg: CfgNode) -> None:
    """Raise `ConfigError` for a switch that the named parts of the model do not read.

    A class lists those that it reads as `switches`.
    """
    model = cfg.MODEL
    _check_part(
        *("MODEL.RPN", model.RPN, _RPN_SWITCHES),
        *("MODEL.PROPOSAL_GENERATOR", model.PROPOSAL_GENERATOR.NAME, PROPOSAL_GENERATOR_REGISTRY),
        remedy="AdjustableRPN",
    )
    _check_part(
        *("MODEL.ROI_HEADS", model.ROI_HEADS, HEAD_SWITCHES),
        *("MODEL.ROI_HEADS", model.ROI_HEADS.NAME, ROI_HEADS_REGISTRY),
        remedy="AdjustableROIHeads",
    )
    if model.RPN.DISCARD_BEFORE_MATCHING and model.RPN.BOUNDARY_THRESH < 0:
        raise ConfigError(
            f"MODEL.RPN.BOUNDARY_THRESH is {model.RPN.BOUNDARY_THRESH}, which leaves no anchor "
            "out; with MODEL.RPN.DISCARD_BEFORE_MATCHING it must be 0 or more"
        )
    if model.ROI_HEADS.LOW_QUALITY_MATCHES and len(model.ROI_HEADS.IOU_THRESHOLDS) != 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS is {list(model.ROI_HEADS.IOU_THRESHOLDS)}; with "
            "MODEL.ROI_HEADS.LOW_QUALITY_MATCHES it must be one number"
        )


def _check_part(
    section: str,
    node: CfgNode,
    switches: tuple[str, ...],
    part: str,
    name: str,
    registry: Registry,
    *,
    remedy: str,
) -> None:
    if name not in registry:  # it is told where the part is built
        return
    read = getattr(registry.get(name), "switches", ())
    unread = [switch for switch in switches if node[switch] and switch not in read]
    if unread:
        raise ConfigError(
            f"{section}.{unread[0]} has no effect on {part}.NAME '{name}': set it to its default, "
            f"{type(node[unread[0]])()}, or the name to '{remedy}'"
        )
