"""PANet's proposals: Detectron2's RPN, or the legacy one that the published weights need."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from instancezoo.modeling.adjustable import AdjustableRPN
from instancezoo.modeling.rcnn import BatchImages

from .config import check_legacy_boxes
from .legacy import LegacyAnchorGenerator, clip_boxes, just_below, shift_targets


@PROPOSAL_GENERATOR_REGISTRY.register()
class PANetRPN(AdjustableRPN):
    """`AdjustableRPN` that follows MODEL.PANET.LEGACY_BOXES.

    Args:
        legacy_boxes: if True, proposals are clipped to the padded image, and one is dropped whose
            IoU with a better one equals the threshold, and anchors are inside an image up to the
            pixel after its last. If False, this is `AdjustableRPN`.
        kwargs: those of `AdjustableRPN`.
    """

    @configurable
    def __init__(self, *, legacy_boxes: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.legacy_boxes = legacy_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_legacy_boxes(cfg)
        arguments = super().from_config(cfg, input_shape)
        if cfg.MODEL.PANET.LEGACY_BOXES:
            node = cfg.MODEL.ANCHOR_GENERATOR
            arguments["anchor_generator"] = LegacyAnchorGenerator(
                sizes=node.SIZES,
                aspect_ratios=node.ASPECT_RATIOS,
                strides=[input_shape[name].stride for name in cfg.MODEL.RPN.IN_FEATURES],
            )
        return {**arguments, "legacy_boxes": cfg.MODEL.PANET.LEGACY_BOXES}

    def forward(
        self,
        images: BatchImages,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in `AdjustableRPN`; legacy boxes are exclusive, too."""
        if not self.legacy_boxes:
            return super().forward(images, features, gt_instances)
        height, width = images.tensor.shape[2:]
        padded = ImageList(images.tensor, [(height, width)] * len(images))
        if gt_instances is not None:
            gt_instances = shift_targets(images, gt_instances)
        proposals, losses = super().forward(padded, features, gt_instances)
        sizes = zip(proposals, images.image_sizes, strict=True)
        return [Instances(size, **found.get_fields()) for found, size in sizes], losses

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in `AdjustableRPN`."""
        if self.legacy_boxes:
            # parity: the last pixel of an anchor, not its end, must be below the image's size; so
            # it may be one pixel outside, but not at the other side.
            gt_instances = [
                Instances((height + 1, width + 1), **objects.get_fields())
                for objects in gt_instances
                for height, width in [objects.image_size]
            ]
        return super().label_and_sample_anchors(anchors, gt_instances)

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """As in `AdjustableRPN`; for legacy boxes, all of `image_sizes` are the padded size."""
        if not self.legacy_boxes:
            return super().predict_proposals(
                anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
            )
        decoded = self._decode_proposals(anchors, pred_anchor_deltas)
        found: list[Instances] = find_top_rpn_proposals(
            [clip_boxes(boxes, image_sizes[0]) for boxes in decoded],
            pred_objectness_logits,
            image_sizes,
            just_below(self.nms_thresh),
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )
        return found
