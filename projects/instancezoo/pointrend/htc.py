"""HTC whose masks are refined at points; the merged mask of its stages is the coarse one.

Legend: N images, R regions of all images, P points, S grid side.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from instancezoo.htc.roi_heads import HTCROIHeads, Maps, merge_masks
from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.points import (
    PointSampler,
    choose_points,
    measure_uncertainty,
    place_points,
    sample_masks,
)

from .config import check_roi_point_head_config
from .head import build_point_head
from .mask_head import Regions, list_bit_masks
from .settings import SubdivisionSettings, TrainingPoints
from .targets import compute_point_loss, sample_labels

# Probabilities closer to 0 or 1 than this make no larger logits.
_EPS = 1e-5


@ROI_HEADS_REGISTRY.register()
class HTCPointRendROIHeads(HTCROIHeads):
    """HTC's heads with a point head, which is trained on the boxes of the last stage.

    Args:
        point_head: takes fine features and one coarse logit.
        point_features: names of the maps that it reads.
        point_strides: their strides.
        training_points: numbers of points.
        subdivision: how masks are refined.
        kwargs: those of `HTCROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        point_head: nn.Module,
        point_features: list[str],
        point_strides: list[int],
        training_points: TrainingPoints,
        subdivision: SubdivisionSettings,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.point_head = point_head
        self.point_levels = [self.box_in_features.index(name) for name in point_features]
        self.point_strides = point_strides
        self.training_points = training_points
        self.subdivision = subdivision

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape)
        check_roi_point_head_config(cfg)
        names = list(cfg.MODEL.POINT_HEAD.IN_FEATURES)
        shape = ShapeSpec(channels=sum(input_shape[name].channels for name in names))
        overrides = {"coarse_channels": 1, "num_outputs": 1, "start_from_coarse": True}
        return {
            **arguments,
            "point_head": build_point_head(cfg, shape, **overrides),
            "point_features": names,
            "point_strides": [input_shape[name].stride for name in names],
            "training_points": TrainingPoints.from_config(cfg),
            "subdivision": SubdivisionSettings.from_config(cfg),
        }

    def mask_losses(self, maps: Maps, positives: list[Instances], stage: int) -> dict[str, Tensor]:
        """`loss_mask`, and of the last stage `loss_mask_point`."""
        if stage < self.num_cascade_stages - 1:
            return super().mask_losses(maps, positives, stage)
        logits = self.predict_positives(maps, positives, self.merged_stages)
        losses = {"loss_mask": self.compare_masks(logits[-1], positives, stage)}
        if not len(logits[-1]):
            return {**losses, "loss_mask_point": zero_of_parameters(self.point_head)}
        return {**losses, "loss_mask_point": self.point_loss(maps, positives, logits)}

    def point_loss(self, maps: Maps, positives: list[Instances], logits: list[Tensor]) -> Tensor:
        """Cross-entropy at points, most of them where the merged mask is uncertain."""
        regions = Regions.collect(positives, training=True)
        coarse = _find_coarse_logits(logits)
        rows = torch.arange(len(regions), device=coarse.device)
        candidates, fresh = self.training_points.sample(len(regions), coarse.device)
        at_candidates = sample_masks(coarse.detach(), rows, candidates * coarse.shape[-1])
        count = self.training_points.num_uncertain
        points = choose_points(candidates, measure_uncertainty(at_candidates), fresh, count)
        labels = sample_labels(list_bit_masks(positives), rows, place_points(points, regions.boxes))
        return compute_point_loss(self.predict_points(maps, regions, coarse, points), labels)

    def _refine(self, maps: Maps, detections: list[Instances], logits: list[Tensor]) -> Tensor:
        regions = Regions.collect(detections, training=False)
        coarse = _find_coarse_logits(logits)

        def evaluate(rows: Tensor, points: Tensor) -> Tensor:
            return self.predict_points(maps, regions[rows], coarse[rows], points)

        refined = self.subdivision.render(evaluate, len(regions), coarse.device)
        return refined.sigmoid()[:, None]

    def predict_points(
        self, maps: Maps, regions: Regions, coarse: Tensor, points: Tensor
    ) -> Tensor:
        """Logits (R, P) at points (R, P, 2) in the regions' frames; coarse ones (R, S, S)."""
        sampler = PointSampler([maps.pyramid[k] for k in self.point_levels], self.point_strides)
        fine = sampler(regions.owners, place_points(points, regions.boxes))
        rows = torch.arange(len(regions), device=points.device)
        at_points = sample_masks(coarse, rows, points * coarse.shape[-1])
        return self.point_head(fine, at_points[..., None], torch.zeros_like(regions.classes))


def _find_coarse_logits(stages: list[Tensor]) -> Tensor:
    """The logits of the merged mask: (R, 1, S, S) each -> (R, S, S)."""
    return merge_masks(stages)[:, 0].logit(eps=_EPS)
