"""PANet's heads for regions (Liu et al., arXiv 1803.01534, section 3.2).

Legend: N images, L levels, R regions of all images, C channels, S side of a region's features.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from instancezoo.modeling.rcnn import BatchImages

from .config import check_panet_config
from .legacy import (
    clip_boxes,
    just_below,
    list_output_sizes,
    place_masks,
    resize_boxes,
    shift_targets,
    to_inclusive,
    widen_boxes,
)


class LevelPooler(nn.Module):
    """Pools every region from every level: one RoIAlign for all regions of a level.

    Args:
        side: S.
        strides: L strides of the maps in pixels.
        sampling_ratio, aligned: as in Detectron2's `ROIAlign`.
        inclusive: regions end at the last pixel of a box, as those of legacy boxes.
    """

    def __init__(
        self,
        *,
        side: int,
        strides: list[int],
        sampling_ratio: int,
        aligned: bool,
        inclusive: bool = False,
    ) -> None:
        super().__init__()
        self.inclusive = inclusive
        self.levels = nn.ModuleList(
            ROIAlign((side, side), 1 / stride, sampling_ratio, aligned) for stride in strides
        )

    @classmethod
    def from_config(
        cls, cfg: CfgNode, node: CfgNode, input_shape: dict[str, ShapeSpec]
    ) -> LevelPooler:
        """Build the pooler of a head.

        Args:
            cfg: the whole config.
            node: its ROI_BOX_HEAD or ROI_MASK_HEAD.
            input_shape: of the maps, by name.
        """
        return cls(
            side=node.POOLER_RESOLUTION,
            strides=[input_shape[name].stride or 1 for name in cfg.MODEL.ROI_HEADS.IN_FEATURES],
            sampling_ratio=node.POOLER_SAMPLING_RATIO,
            aligned=node.POOLER_TYPE == "ROIAlignV2",
            inclusive=cfg.MODEL.PANET.LEGACY_BOXES,
        )

    def forward(self, maps: list[Tensor], boxes: list[Boxes]) -> list[Tensor]:
        """L maps (N, C, H, W) and N lists of boxes in pixels -> L tensors (R, C, S, S)."""
        if self.inclusive:
            boxes = [Boxes(to_inclusive(x.tensor)) for x in boxes]
        regions = convert_boxes_to_pooler_format(boxes)  # (R, 5) image index, XYXY
        return [level(features, regions) for level, features in zip(self.levels, maps, strict=True)]


@ROI_HEADS_REGISTRY.register()
class PANetROIHeads(StandardROIHeads):
    """Box and mask heads that see each region on all levels, whatever its size.

    Legacy boxes (the published weights) are exclusive in here, too: see `legacy.py`.

    Args:
        legacy_boxes: MODEL.PANET.LEGACY_BOXES.
        kwargs: those of `StandardROIHeads`.
    """

    @configurable
    def __init__(self, *, legacy_boxes: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.legacy_boxes = legacy_boxes
        if legacy_boxes:  # test-time augmentation asks for these
            self.resize_boxes, self.place_masks = resize_boxes, place_masks

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_panet_config(cfg)
        arguments = super().from_config(cfg, input_shape)
        return {**arguments, "legacy_boxes": cfg.MODEL.PANET.LEGACY_BOXES}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        pooler = LevelPooler.from_config(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        return {**super()._init_box_head(cfg, input_shape), "box_pooler": pooler}

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_mask_head(cfg, input_shape)
        if arguments:
            node = cfg.MODEL.ROI_MASK_HEAD
            arguments["mask_pooler"] = LevelPooler.from_config(cfg, node, input_shape)
        return arguments

    def forward(
        self,
        images: BatchImages,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in `StandardROIHeads`.

        In inference with legacy boxes, detections are those of the original images, and
        `pred_masks` is a mask form.
        """
        if not self.legacy_boxes:
            return super().forward(images, features, proposals, targets)
        if not self.training:
            detections = self._detect_legacy(images, features, proposals)
            return self._add_legacy_masks(images, features, detections), {}
        sampled = self.label_and_sample_proposals(proposals, shift_targets(images, targets or []))
        return sampled, self.compute_legacy_losses(images, features, sampled)

    def compute_legacy_losses(
        self, images: BatchImages, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of sampled proposals with their ground truth, all legacy boxes of the input."""
        predictions = self._predict_boxes(features, proposals)
        regions = self._move_to_outputs(images, proposals)
        for boxes in regions:  # a proposal may be narrower than a pixel of the original
            boxes.proposal_boxes = Boxes(widen_boxes(boxes.proposal_boxes.tensor))
        losses: dict[str, Tensor] = self.box_predictor.losses(predictions, regions)
        return losses | self._forward_mask(features, proposals)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if not (self.training and self.legacy_boxes and self.mask_on):
            return super()._forward_mask(features, instances)
        foreground, _ = select_foreground_proposals(instances, self.num_classes)
        maps = [features[name] for name in self.mask_in_features]
        pooled = self.mask_pooler(maps, [x.proposal_boxes for x in foreground])
        for regions in foreground:  # parity: exclusive boxes would hold all of a mask
            boxes = widen_boxes(to_inclusive(regions.proposal_boxes.tensor))
            regions.proposal_boxes = Boxes(boxes)
        return self.mask_head(pooled, foreground)

    def _predict_boxes(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        """Class logits and box deltas, as `box_predictor` takes them."""
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [x.proposal_boxes for x in proposals])
        return self.box_predictor(self.box_head(pooled))

    def _move_to_outputs(self, images: BatchImages, proposals: list[Instances]) -> list[Instances]:
        """Proposals, and their ground truth, in the original images, where deltas apply."""
        moved = []
        for found, size in zip(proposals, list_output_sizes(images), strict=True):
            copy = Instances(size, **found.get_fields())
            for name in {"proposal_boxes", "gt_boxes"} & found.get_fields().keys():
                boxes = resize_boxes(found.get(name).tensor, found.image_size, size)
                copy.set(name, Boxes(boxes))
            moved.append(copy)
        return moved

    def _detect_legacy(
        self, images: BatchImages, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Detections in the original images."""
        predictions = self._predict_boxes(features, proposals)
        regions, sizes = self._move_to_outputs(images, proposals), list_output_sizes(images)
        decoded = self.box_predictor.predict_boxes(predictions, regions)
        detections: list[Instances]
        detections, _ = fast_rcnn_inference(
            [
                clip_boxes(boxes.unflatten(1, (-1, 4)), size).flatten(1)
                for boxes, size in zip(decoded, sizes, strict=True)
            ],
            self.box_predictor.predict_probs(predictions, regions),
            sizes,
            self.box_predictor.test_score_thresh,
            just_below(self.box_predictor.test_nms_thresh),
            self.box_predictor.test_topk_per_image,
        )
        return detections

    def _add_legacy_masks(
        self, images: BatchImages, features: dict[str, Tensor], detections: list[Instances]
    ) -> list[Instances]:
        if not self.mask_on:
            return detections
        scaled = []
        for found, size in zip(detections, images.image_sizes, strict=True):
            boxes = resize_boxes(found.pred_boxes.tensor, found.image_size, size)
            scaled.append(Instances(size, pred_boxes=Boxes(boxes), pred_classes=found.pred_classes))
        with_scores = self.forward_with_given_boxes(features, scaled)
        for found, masks in zip(detections, with_scores, strict=True):
            found.pred_masks = place_masks(masks.pred_masks[:, 0], found.pred_boxes.tensor)
        return detections
