"""ROI heads of HTC: a cascade of box and mask heads that exchange features (section 3).

Legend: N images, R regions of all images, C channels, H W map size, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from instancezoo.modeling.adjustable import HEAD_SWITCHES, pad_gt_masks
from instancezoo.modeling.box_transform import build_box_transform
from instancezoo.modeling.matching import build_roi_matcher

from .config import check_htc_config
from .head import FusedSemanticHead, HTCMaskHead
from .targets import Sampling, label_boxes, log_counts, sample_boxes, select_positives

Predictions = tuple[Tensor, Tensor]  # (R, K + 1) class logits, (R, 4) deltas


@dataclass(frozen=True)
class Design:
    """What distinguishes HTC from a plain cascade; see the keys of `cfg.MODEL.HTC`."""

    stage_loss_weights: tuple[float, ...]
    interleaved: bool
    mask_info_flow: bool
    mask_merge: str
    score_merge: str
    add_gt_every_stage: bool
    resample_every_stage: bool
    semantic_fusion: tuple[str, ...]
    semantic_loss_weight: float
    semantic_ignore_value: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Design:
        """Read `cfg.MODEL.HTC`."""
        node = cfg.MODEL.HTC
        return cls(
            stage_loss_weights=tuple(node.STAGE_LOSS_WEIGHTS),
            interleaved=node.INTERLEAVED,
            mask_info_flow=node.MASK_INFO_FLOW,
            mask_merge=node.MASK_MERGE,
            score_merge=node.SCORE_MERGE,
            add_gt_every_stage=node.ADD_GT_EVERY_STAGE,
            resample_every_stage=node.RESAMPLE_EVERY_STAGE,
            semantic_fusion=tuple(node.SEMANTIC_FUSION),
            semantic_loss_weight=node.SEMANTIC_LOSS_WEIGHT,
            semantic_ignore_value=node.SEMANTIC_IGNORE_VALUE,
        )


@dataclass(frozen=True)
class Maps:
    """Feature maps that regions are pooled from.

    Attributes:
        pyramid: (N, C, H, W) each, finest first.
        semantic: (N, C, H, W), the embedding of the semantic branch; None without it.
    """

    pyramid: list[Tensor]
    semantic: Tensor | None


@ROI_HEADS_REGISTRY.register()
class HTCROIHeads(CascadeROIHeads):
    """Box heads in a cascade, each with a mask head, and a semantic branch.

    Args:
        design: which parts are used.
        pad_gt_masks: MODEL.ROI_HEADS.PAD_GT_MASKS.
        semantic_head: see `FusedSemanticHead`; None without the branch.
        semantic_pooler: pools its embedding to the size of the mask heads' regions.
        kwargs: those of `CascadeROIHeads`; `mask_head` is a list, one per stage.
    """

    switches = HEAD_SWITCHES

    @configurable
    def __init__(
        self,
        *,
        design: Design,
        pad_gt_masks: bool = False,
        semantic_head: FusedSemanticHead | None = None,
        semantic_pooler: ROIPooler | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.design = design
        self.pad_gt_masks = pad_gt_masks
        self.semantic_head = semantic_head
        self.semantic_pooler = semantic_pooler
        self.sampling = Sampling(
            self.num_classes, self.batch_size_per_image, self.positive_fraction
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_htc_config(cfg, input_shape)
        arguments = {**super().from_config(cfg, input_shape), "design": Design.from_config(cfg)}
        arguments["pad_gt_masks"] = cfg.MODEL.ROI_HEADS.PAD_GT_MASKS
        if cfg.MODEL.HTC.SEMANTIC_ON:
            node = cfg.MODEL.HTC
            stride = input_shape[node.SEMANTIC_IN_FEATURES[node.SEMANTIC_FUSION_LEVEL]].stride
            arguments["semantic_head"] = FusedSemanticHead.build(cfg, input_shape)
            arguments["semantic_pooler"] = ROIPooler(
                output_size=cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,
                scales=(1.0 / stride,),
                sampling_ratio=cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO,
                pooler_type=cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE,
            )
        return arguments

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        stages, switches = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS
        pairs = zip(arguments["box_predictors"], stages.BBOX_REG_WEIGHTS, strict=True)
        for predictor, weights in pairs:
            transform = build_box_transform(weights, switches.SYMMETRIC_DELTA_CLAMP)
            predictor.box2box_transform = transform
        matchers = [build_roi_matcher(iou, switches.LOW_QUALITY_MATCHES) for iou in stages.IOUS]
        return {**arguments, "proposal_matchers": matchers}

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_mask_head(cfg, input_shape)
        if not arguments:
            return arguments
        side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        channels = input_shape[arguments["mask_in_features"][0]].channels
        shape = ShapeSpec(channels=channels, height=side, width=side)
        heads = [arguments["mask_head"]]
        for _ in cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS[1:]:
            heads.append(HTCMaskHead(cfg, shape, takes_previous=cfg.MODEL.HTC.MASK_INFO_FLOW))
        return {**arguments, "mask_head": nn.ModuleList(heads)}

    def forward(
        self,
        images: Any,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Train or infer, as `ROIHeads` does.

        Args:
            images: in training `LabelledImages`.
            features: maps (N, C, H, W) by name.
            proposals: N Instances with `proposal_boxes`.
            targets: N Instances of ground truth; None in inference.

        Returns:
            In training the proposals and the losses, in inference the detections and {}.
        """
        maps, semantic_logits = self.make_maps(features)
        if not self.training:
            return self.predict_masks(maps, self.detect(maps, proposals)), {}
        assert targets is not None
        if self.pad_gt_masks:
            targets = pad_gt_masks(targets, images)
        losses = self.losses(maps, proposals, targets)
        if semantic_logits is not None:
            losses["loss_semantic"] = self.semantic_loss(semantic_logits, images.semantic_labels)
        return proposals, losses

    def make_maps(self, features: dict[str, Tensor]) -> tuple[Maps, Tensor | None]:
        """Maps to pool from, and the semantic logits (N, K', h, w) or None."""
        pyramid = [features[name] for name in self.box_in_features]
        if self.semantic_head is None:
            return Maps(pyramid, None), None
        logits, semantic = self.semantic_head(features)
        return Maps(pyramid, semantic), logits

    def losses(
        self, maps: Maps, proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """`loss_cls_stage0`, `loss_box_reg_stage0`, `loss_mask_stage0` ... of all stages."""
        losses: dict[str, Tensor] = {}
        boxes = [regions.proposal_boxes.tensor for regions in proposals]
        for stage, weight in enumerate(self.design.stage_loss_weights):
            samples = self.sample(boxes, targets, stage, is_first=stage == 0)
            with get_event_storage().name_scope(f"stage{stage}"):
                log_counts(samples, self.num_classes)
                predictions = self._run_stage(maps, samples, stage)
                stage_losses = self.box_predictor[stage].losses(predictions, samples)
                boxes = self.refine(predictions, samples, stage)
                if self.design.interleaved and self.mask_on:
                    samples = self.sample(boxes, targets, stage, is_first=False)
                if self.mask_on:
                    pairs = zip(samples, targets, strict=True)
                    positives = [select_positives(*pair, self.num_classes) for pair in pairs]
                    stage_losses |= self.mask_losses(maps, positives, stage)
            losses |= {f"{name}_stage{stage}": weight * x for name, x in stage_losses.items()}
        return losses

    @torch.no_grad()
    def sample(
        self, boxes: list[Tensor], targets: list[Instances], stage: int, *, is_first: bool
    ) -> list[Instances]:
        """Boxes of N images with the ground truth that a stage learns from.

        Args:
            boxes: (regions of the image, 4) each.
            targets: N Instances of ground truth.
            stage: index of the stage, whose IoU threshold applies.
            is_first: True for the proposals, which are always sampled.
        """
        # parity: added and sampled anew in every stage; Detectron2's cascade does both once.
        add_objects = self.proposal_append_gt if is_first else self.design.add_gt_every_stage
        matcher, samples = self.proposal_matchers[stage], []
        for own, objects in zip(boxes, targets, strict=True):
            labelled = label_boxes(own, objects, matcher, self.num_classes, add_objects=add_objects)
            if is_first or self.design.resample_every_stage:
                labelled = sample_boxes(labelled, self.sampling)
            samples.append(labelled)
        return samples

    @torch.no_grad()
    def refine(
        self, predictions: Predictions, samples: list[Instances], stage: int
    ) -> list[Tensor]:
        """Boxes that a stage hands to the next: decoded, clipped, without the added objects."""
        decoded = self.box_predictor[stage].predict_boxes(predictions, samples)
        refined = []
        for boxes, regions in zip(decoded, samples, strict=True):
            clipped = Boxes(boxes[~regions.is_added])
            clipped.clip(regions.image_size)
            refined.append(clipped.tensor)
        return refined

    def mask_losses(self, maps: Maps, positives: list[Instances], stage: int) -> dict[str, Tensor]:
        """`loss_mask`, the cross-entropy of a stage's masks on its positive boxes."""
        (logits,) = self.predict_positives(maps, positives, [stage])
        return {"loss_mask": self.compare_masks(logits, positives, stage)}

    def predict_positives(
        self, maps: Maps, positives: list[Instances], stages: Sequence[int]
    ) -> list[Tensor]:
        """Mask logits on boxes with their true classes, see `predict_stages`."""
        features = self.pool_masks(maps, [regions.proposal_boxes for regions in positives])
        classes = torch.cat([regions.gt_classes for regions in positives])
        return self.predict_stages(features, classes, stages)

    def compare_masks(self, logits: Tensor, positives: list[Instances], stage: int) -> Tensor:
        """Cross-entropy of (R, 1, 2S, 2S) logits with the masks of the boxes' objects."""
        return mask_rcnn_loss(logits, positives, self.mask_head[stage].vis_period)

    @property
    def merged_stages(self) -> list[int]:
        """The stages whose masks are merged in inference."""
        last = self.num_cascade_stages - 1
        return list(range(last + 1)) if self.design.mask_merge == "mean" else [last]

    def predict_stages(
        self, features: Tensor, classes: Tensor, stages: Sequence[int]
    ) -> list[Tensor]:
        """Mask logits of some stages.

        Args:
            features: (R, C, S, S), which all stages take.
            classes: (R,) long.
            stages: their indices, increasing.

        Returns:
            (R, 1, 2S, 2S) fp32 for each of them.
        """
        hidden: Tensor | None = None
        logits: list[Tensor] = []
        for index, head in enumerate(self.mask_head[: stages[-1] + 1]):
            is_needed = index in stages
            if is_needed or self.design.mask_info_flow:
                previous = hidden if self.design.mask_info_flow else None
                hidden, own = head(features, previous, classes if is_needed else None)
                logits += [own] if is_needed else []
        return logits

    def semantic_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (N, K', h, w) logits with (N, h, w) labels."""
        losses = F.cross_entropy(
            logits.float(),
            labels,
            ignore_index=self.design.semantic_ignore_value,
            reduction="none",
        )
        # parity: cells that are ignored count in the mean; leaving them out would be right.
        return self.design.semantic_loss_weight * losses.mean()

    def detect(self, maps: Maps, proposals: list[Instances]) -> list[Instances]:
        """Detections without masks."""
        sizes = [regions.image_size for regions in proposals]
        all_logits: list[Tensor] = []
        boxes: list[Tensor] = []
        for stage, predictor in enumerate(self.box_predictor):
            if stage:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(maps, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            all_logits.append(predictions[0])
        scores = merge_scores(torch.stack(all_logits), self.design.score_merge)
        detections, _ = fast_rcnn_inference(
            boxes,
            split_rows(scores, [len(regions) for regions in proposals]),
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return detections

    def predict_masks(self, maps: Maps, detections: list[Instances]) -> list[Instances]:
        """Add `pred_masks`, scores (n, 1, S, S) in the frame of each box, to detections."""
        if not self.mask_on:
            return detections
        features = self.pool_masks(maps, [found.pred_boxes for found in detections])
        classes = torch.cat([found.pred_classes for found in detections])
        logits = self.predict_stages(features, classes, self.merged_stages)
        probs = self._refine(maps, detections, logits)
        counts = [len(found) for found in detections]
        for found, own in zip(detections, split_rows(probs, counts), strict=True):
            found.pred_masks = own
        return detections

    def _refine(self, maps: Maps, detections: list[Instances], logits: list[Tensor]) -> Tensor:
        """Masks (R, 1, S, S) in [0, 1] from the logits of the merged stages."""
        return merge_masks(logits)

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add masks to boxes that are known, see `StandardROIHeads`."""
        return self.predict_masks(self.make_maps(features)[0], instances)

    def _run_stage(self, maps: Maps, proposals: list[Instances], stage: int) -> Predictions:
        regions = self.pool_boxes(maps, [x.proposal_boxes for x in proposals])
        return self.box_predictor[stage](self.box_head[stage](regions))

    def pool_boxes(self, maps: Maps, boxes: list[Boxes]) -> Tensor:
        """Features (R, C, S, S) for the box heads."""
        features = self.box_pooler(maps.pyramid, boxes)
        if self.semantic_pooler is None or "bbox" not in self.design.semantic_fusion:
            return features
        semantic = self.semantic_pooler([maps.semantic], boxes)
        return features + F.adaptive_avg_pool2d(semantic, features.shape[2:])

    def pool_masks(self, maps: Maps, boxes: list[Boxes]) -> Tensor:
        """Features (R, C, S, S) for the mask heads."""
        features = self.mask_pooler(maps.pyramid, boxes)
        if self.semantic_pooler is None or "mask" not in self.design.semantic_fusion:
            return features
        return features + self.semantic_pooler([maps.semantic], boxes)


def merge_scores(logits: Tensor, how: str) -> Tensor:
    """Class scores of several stages as one.

    Args:
        logits: (stages, R, K + 1).
        how: "logits" or "probs", see MODEL.HTC.SCORE_MERGE.

    Returns:
        (R, K + 1) in [0, 1].
    """
    # parity: MMDetection averages logits, Detectron2 probabilities.
    if how == "logits":
        return logits.float().mean(dim=0).softmax(dim=1)
    return logits.float().softmax(dim=2).mean(dim=0)


def merge_masks(logits: list[Tensor]) -> Tensor:
    """Mean of the stages' mask probabilities: (R, 1, H, W) logits each -> the same shape."""
    return torch.stack([own.sigmoid() for own in logits]).mean(dim=0)


def split_rows(rows: Tensor, counts: list[int]) -> tuple[Tensor, ...]:
    """Rows of each image; those of a single image as they are, whose number a trace leaves open."""
    return (rows,) if len(counts) == 1 else rows.split(counts)
