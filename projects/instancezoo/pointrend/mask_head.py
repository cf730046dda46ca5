"""PointRend for two-stage models (Kirillov et al., arXiv 1912.08193): masks rendered from points.

Legend: N images, R regions of all images, P points, K classes, S grid side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances, PolygonMasks
from torch import Tensor, nn

from instancezoo.errors import ZooError
from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.points import (
    PointSampler,
    choose_points,
    make_grid_points,
    measure_uncertainty,
    place_points,
    sample_masks,
)
from instancezoo.modeling.objects import index_images

from .config import check_pointrend_config
from .head import CoarseMaskHead, build_point_head
from .settings import SubdivisionSettings, TrainingPoints
from .targets import compute_point_loss, sample_labels


@dataclass(frozen=True)
class Regions:
    """The boxes of a batch in one piece.

    Attributes:
        boxes: (R, 4) XYXY in pixels of the network input.
        owners: (R,) long, index of the image, ascending.
        classes: (R,) long.
    """

    boxes: Tensor
    owners: Tensor
    classes: Tensor

    @classmethod
    def collect(cls, instances: list[Instances], *, training: bool) -> Regions:
        """Join the proposals and their ground truth, or in inference the detections, of images."""
        names = ("proposal_boxes", "gt_classes") if training else ("pred_boxes", "pred_classes")
        boxes = torch.cat([x.get(names[0]).tensor for x in instances])
        classes = torch.cat([x.get(names[1]) for x in instances]).long()
        return cls(boxes, index_images([len(x) for x in instances], boxes.device), classes)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Tensor) -> Regions:
        return Regions(self.boxes[rows], self.owners[rows], self.classes[rows])


@ROI_MASK_HEAD_REGISTRY.register()
class PointRendMaskHeadBatched(nn.Module):
    """PointRend's mask head: coarse masks, refined at their uncertain points.

    It computes what the official `PointRendMaskHead` computes, for all images at once, and in
    inference for the predicted class alone. It takes whole feature maps: `POOLER_TYPE` is "".

    Args:
        coarse_head: see `CoarseMaskHead`.
        point_head: see `StandardPointHead`; None ends with the coarse mask.
        coarse_features, point_features: names of the maps that each of the two reads.
        strides: stride of each named map in pixels.
        pooler_side: side of the grid of features that the coarse head takes.
        training_points: numbers of points.
        subdivision: how masks are refined.
        vis_period: as in Detectron2's mask heads.
    """

    @configurable
    def __init__(
        self,
        *,
        coarse_head: nn.Module,
        point_head: nn.Module | None,
        coarse_features: list[str],
        point_features: list[str],
        strides: dict[str, int],
        pooler_side: int,
        training_points: TrainingPoints,
        subdivision: SubdivisionSettings,
        vis_period: int = 0,
    ) -> None:
        super().__init__()
        self.coarse_head = coarse_head
        self.point_head = point_head
        self.coarse_features = coarse_features
        self.point_features = point_features
        self.strides = strides
        self.pooler_side = pooler_side
        self.training_points = training_points
        self.subdivision = subdivision
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_pointrend_config(cfg, input_shape)
        node = cfg.MODEL.ROI_MASK_HEAD
        coarse_head = CoarseMaskHead(
            in_channels=sum(input_shape[name].channels for name in node.IN_FEATURES),
            conv_dim=node.CONV_DIM,
            pooler_side=node.POOLER_RESOLUTION,
            fc_dim=node.FC_DIM,
            num_fc=node.NUM_FC,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            side=node.OUTPUT_SIDE_RESOLUTION,
        )
        point_head, point_features = None, []
        if node.POINT_HEAD_ON:
            point_features = list(cfg.MODEL.POINT_HEAD.IN_FEATURES)
            channels = sum(input_shape[name].channels for name in point_features)
            point_head = build_point_head(cfg, ShapeSpec(channels=channels))
        return {
            "coarse_head": coarse_head,
            "point_head": point_head,
            "coarse_features": list(node.IN_FEATURES),
            "point_features": point_features,
            "strides": {name: shape.stride for name, shape in input_shape.items()},
            "pooler_side": node.POOLER_RESOLUTION,
            "training_points": TrainingPoints.from_config(cfg),
            "subdivision": SubdivisionSettings.from_config(cfg),
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """Train or infer, as Detectron2's mask heads do.

        Args:
            features: maps (N, C, H, W) by name.
            instances: N Instances; in training foreground proposals with their ground truth, in
                inference detections.

        Returns:
            In training a dict of losses; in inference `instances` with `pred_masks`, scores
            (n, 1, S, S) in the frame of each box.
        """
        if not self.training:
            return self.inference(features, instances)
        count = sum(len(regions) for regions in instances)
        device = next(iter(features.values())).device
        return self.losses(features, instances, *self.training_points.sample(count, device))

    def losses(
        self,
        features: dict[str, Tensor],
        instances: list[Instances],
        candidates: Tensor,
        fresh: Tensor,
    ) -> dict[str, Tensor]:
        """`loss_mask` of the coarse masks and `loss_mask_point` of the point head.

        Args:
            features: maps by name.
            instances: foreground proposals with their ground truth; any of the N may be empty.
            candidates, fresh: points from `TrainingPoints.sample`.

        Raises:
            ZooError: the masks are polygons.
        """
        if not any(len(regions) for regions in instances):
            zero = zero_of_parameters(self)
            names = ["loss_mask"] + ["loss_mask_point"] * (self.point_head is not None)
            return dict.fromkeys(names, zero)
        regions = Regions.collect(instances, training=True)
        coarse_sampler, point_sampler = self.make_samplers(features)
        coarse = self.predict_coarse(coarse_sampler, regions)
        losses = {"loss_mask": mask_rcnn_loss(coarse, instances, self.vis_period)}
        if self.point_head is not None:
            points = self.choose_points(coarse.detach(), regions.classes, candidates, fresh)
            rows = torch.arange(len(regions), device=points.device)
            image_points = place_points(points, regions.boxes)
            labels = sample_labels(list_bit_masks(instances), rows, image_points)
            logits = self.predict_points(point_sampler, regions, coarse, points)
            losses["loss_mask_point"] = compute_point_loss(logits, labels)
        return losses

    def inference(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add `pred_masks` to detections (section 3.2)."""
        regions = Regions.collect(instances, training=False)
        coarse_sampler, point_sampler = self.make_samplers(features)
        coarse = self.predict_coarse(coarse_sampler, regions)
        if self.point_head is None:
            mask_rcnn_inference(coarse, instances)
            return instances

        def evaluate(rows: Tensor, points: Tensor) -> Tensor:
            return self.predict_points(point_sampler, regions[rows], coarse[rows], points)

        # All classes' coarse logits feed the point head, but only the predicted class is refined:
        # enlarging and choosing cells touch each class by itself.
        logits = self.subdivision.render(evaluate, len(regions), coarse.device)
        counts = [len(detections) for detections in instances]
        for detections, probs in zip(instances, logits.sigmoid().split(counts), strict=True):
            detections.pred_masks = probs[:, None]
        return instances

    def predict_coarse(self, sampler: PointSampler, regions: Regions) -> Tensor:
        """Coarse logits (R, K, S, S) from a regular grid of features in each box."""
        grid = make_grid_points(self.pooler_side, regions.boxes.device).expand(len(regions), -1, -1)
        features = sampler(regions.owners, place_points(grid, regions.boxes))
        maps = features.transpose(1, 2).unflatten(2, (self.pooler_side, self.pooler_side))
        return self.coarse_head(maps)  # (R, C, side, side)

    def choose_points(
        self, coarse: Tensor, classes: Tensor, candidates: Tensor, fresh: Tensor
    ) -> Tensor:
        """Points to train on, (R, P, 2) in the boxes' frame, by the coarse logits of the class."""
        rows = torch.arange(len(classes), device=classes.device)
        # Interpolated logits are measured; interpolated uncertainties would be wrong.
        logits = sample_masks(coarse[rows, classes], rows, candidates * coarse.shape[-1])
        count = self.training_points.num_uncertain
        return choose_points(candidates, measure_uncertainty(logits), fresh, count)

    def predict_points(
        self, sampler: PointSampler, regions: Regions, coarse: Tensor, points: Tensor
    ) -> Tensor:
        """Logits of each region's own class at points in its frame, (R, P)."""
        rows = torch.arange(len(regions), device=points.device)
        fine = sampler(regions.owners, place_points(points, regions.boxes))
        at_points = PointSampler([coarse], [1 / coarse.shape[-1]])(rows, points)
        return self.point_head(fine, at_points, regions.classes)  # type: ignore[misc]

    def make_samplers(self, features: dict[str, Tensor]) -> tuple[PointSampler, PointSampler]:
        """Samplers of the coarse and the point head; one object if both read the same maps."""
        coarse = self.make_sampler(features, self.coarse_features)
        if self.point_features == self.coarse_features:
            return coarse, coarse
        return coarse, self.make_sampler(features, self.point_features)

    def make_sampler(self, features: dict[str, Tensor], names: list[str]) -> PointSampler:
        """Reads the named maps, one after the other in the channels, at points of the images."""
        maps = [features[name] for name in names]
        return PointSampler(maps, [self.strides[name] for name in names])


def list_bit_masks(instances: list[Instances]) -> list[Tensor]:
    """Ground truth of the images that have any, (regions, H, W) bool each.

    Raises:
        ZooError: the masks are polygons.
    """
    masks = [regions.gt_masks for regions in instances if len(regions)]
    if any(isinstance(form, PolygonMasks) for form in masks):
        raise ZooError(
            "PointRend samples the ground truth at points, but its masks are polygons: set "
            "INPUT.MASK_FORMAT to 'bitmask'"
        )
    return [form.tensor for form in masks]
