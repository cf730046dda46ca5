"""PolarMask (Xie et al., arXiv 1909.13226): a mask is a polygon, given by its rays.

Legend: N images, C channels, P points of all levels, K classes, M instances, R positive points,
V rays.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor

from instancezoo.layers.losses import class_focal_loss
from instancezoo.modeling.dense import DenseSegmenter
from instancezoo.modeling.levels import flatten_levels
from instancezoo.modeling.masks import masks_for_output
from instancezoo.modeling.point_assignment import PointSpec
from instancezoo.modeling.towers import build_prediction, build_tower

from .config import check_polarmask_config
from .decode import DecodeSettings, find_candidates, select_detections
from .head import PolarMaskHead, PolarMaskOutputs
from .losses import box_iou_loss, polar_iou_loss, weighted_mean
from .targets import PolarTargets, TargetRules, gather_objects, make_targets


@META_ARCH_REGISTRY.register()
class PolarMask(DenseSegmenter[PolarMaskOutputs, PolarTargets]):
    """FCOS whose points also predict the distances to their object's contour along rays.

    Args:
        rules: of the targets.
        num_classes: K.
        decode_settings: of inference.
        focal_alpha, focal_gamma: of the class loss.
        kwargs: those of `DenseSegmenter`.
    """

    head: PolarMaskHead

    @configurable
    def __init__(
        self,
        *,
        rules: TargetRules,
        num_classes: int,
        decode_settings: DecodeSettings,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rules = rules
        self.num_classes = num_classes
        self.decode_settings = decode_settings
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma

    def assign(
        self, outputs: PolarMaskOutputs, images: ImageList, ground_truth: list[Instances]
    ) -> PolarTargets:
        """Class, box, rays and polar centerness of each point (section 3.2)."""
        objects = gather_objects(ground_truth, self.rules.plus_one)
        return make_targets(objects, outputs.map_sizes, self.rules, num_classes=self.num_classes)

    def losses(self, outputs: PolarMaskOutputs, targets: PolarTargets) -> dict[str, Tensor]:
        """`loss_cls`, `loss_centerness`, `loss_mask`, and `loss_bbox` with a box branch."""
        positive, weights = (targets.image, targets.point), targets.centerness
        logits = flatten_levels(outputs.cls_logits)  # (N, P, K)
        alpha, gamma = self.focal_alpha, self.focal_gamma
        classes = class_focal_loss(logits, targets.classes, alpha=alpha, gamma=gamma)
        ctr_logits = flatten_levels(outputs.ctr_logits)[positive].squeeze(1).float()  # (R,)
        centerness = F.binary_cross_entropy_with_logits(ctr_logits, weights, reduction="sum")
        mask = polar_iou_loss(flatten_levels(outputs.rays)[positive], targets.rays)
        num_positive = len(weights)
        losses = {
            # The number of images keeps it finite without positive points.
            "loss_cls": classes / (num_positive + len(logits)),
            "loss_centerness": centerness / max(num_positive, 1),
            "loss_mask": weighted_mean(mask, weights),
        }
        if outputs.boxes:
            predicted = flatten_levels(outputs.boxes)[positive]  # (R, 4)
            box = box_iou_loss(predicted, targets.distances, self.rules.plus_one)
            losses["loss_bbox"] = weighted_mean(box, weights)
        return losses

    def decode(self, outputs: PolarMaskOutputs, images: ImageList) -> list[Instances]:
        """Candidates before NMS, which needs the original size."""
        strides, sizes = self.rules.points.strides, images.image_sizes
        return find_candidates(outputs, strides, sizes, self.decode_settings)

    def postprocess(self, candidates: Instances, height: int, width: int) -> Instances:
        """NMS at the original size, and masks of the kept candidates.

        Returns:
            Instances with `pred_boxes`, `scores` (which may exceed 1), `pred_classes`,
            `pred_masks`, and `pred_polygons` (M, V, 2), x and y in pixels of the image.
        """
        kept = select_detections(candidates, height, width, self.decode_settings)
        masks = kept.pred_masks
        kept.pred_polygons = masks.vertices
        kept.pred_masks = masks_for_output(masks, height, width, self.mask_output)
        return kept

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        backbone, node = arguments["backbone"], cfg.MODEL.POLARMASK
        limit = cfg.TEST.DETECTIONS_PER_IMAGE  # as in Detectron2, a negative one is none
        shapes = backbone.output_shape()
        check_polarmask_config(cfg, shapes)
        return {
            **arguments,
            "head": build_head(node, shapes[node.IN_FEATURES[0]].channels),
            "in_features": node.IN_FEATURES,
            "rules": TargetRules(
                points=PointSpec(
                    strides=list(node.FPN_STRIDES),
                    sizes_of_interest=list(node.SIZES_OF_INTEREST),
                    radius=node.CENTER_RADIUS or None,
                ),
                center=node.CENTER,
                num_rays=node.NUM_RAYS,
                ray_targets=node.RAY_TARGETS,
                ray_wrap=node.RAY_WRAP,
                fill_missed_rays=node.FILL_MISSED_RAYS,
                plus_one=node.LEGACY_PLUS_ONE,
            ),
            "num_classes": node.NUM_CLASSES,
            "decode_settings": DecodeSettings(
                num_candidates=node.TOPK_CANDIDATES_TEST,
                score_thresh=node.SCORE_THRESH_TEST,
                centerness_offset=node.CENTERNESS_OFFSET,
                nms_box=node.NMS_BOX,
                nms_thresh=node.NMS_THRESH_TEST,
                max_per_image=limit if limit >= 0 else sys.maxsize,
                plus_one=node.LEGACY_PLUS_ONE,
                output_plus_one=node.OUTPUT_PLUS_ONE,
            ),
            "size_divisibility": math.lcm(
                max(backbone.size_divisibility, 1), max(node.SIZE_DIVISIBILITY, 1)
            ),
            "focal_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_gamma": node.FOCAL_LOSS_GAMMA,
        }


def build_head(node: CfgNode, channels: int) -> PolarMaskHead:
    """The network behind the pyramid.

    Args:
        node: `cfg.MODEL.POLARMASK`.
        channels: C of the pyramid and of the towers.
    """
    options: dict[str, Any] = {"norm": node.NORM}
    if node.USE_DEFORMABLE:
        options |= {"deformable": "v2", "bias": True}  # parity: a bias under the norm
    make_tower = partial(build_tower, channels, channels, node.NUM_CONVS, **options)
    return PolarMaskHead(
        cls_tower=make_tower(),
        mask_tower=make_tower(),
        bbox_tower=make_tower() if node.BOX_BRANCH else None,
        cls_logits=build_prediction(channels, node.NUM_CLASSES, prior=node.PRIOR_PROB),
        ctrness=build_prediction(channels, 1),
        ray_pred=build_prediction(channels, node.NUM_RAYS),
        bbox_pred=build_prediction(channels, 4) if node.BOX_BRANCH else None,
        num_levels=len(node.IN_FEATURES),
    )
