"""SOLOv2 whose masks are refined at points: PointRend for a model without regions.

A detection's mask gives the box in which it is refined, and its logit at a point is the coarse
prediction there. The point head also sees the pyramid's finest map and the unified mask feature.

Legend: N images, R rows (object and cell) in training and detections in inference, P points,
C channels of the fine maps, D of the mask feature, h w its size, S grid side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from instancezoo.errors import ConfigError
from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.points import (
    PointSampler,
    choose_points,
    measure_uncertainty,
    place_points,
    sample_masks,
)
from instancezoo.modeling.masks import BoxMasks, boxes_from_masks
from instancezoo.modeling.objects import index_images
from instancezoo.solo.config import find_levels
from instancezoo.solo.solo import GridTargets
from instancezoo.solo.targets import CellTargets, GridObjects
from instancezoo.solov2.head import SOLOv2Head, build_head_parts
from instancezoo.solov2.masks import KernelMasks
from instancezoo.solov2.solov2 import SOLOv2, read_solov2_arguments

from .head import build_point_head
from .settings import SubdivisionSettings, TrainingPoints
from .targets import compute_point_loss

# Logits of probabilities nearer to 0 or 1 are not told apart in fp32; the point head sees none.
_LARGEST_LOGIT = 12.0


class RefinedOutputs(NamedTuple):
    """`GridOutputs` of SOLOv2, and the maps that the point head reads beside the mask feature."""

    cls_logits: list[Tensor]
    masks: KernelMasks
    fine: list[Tensor]


class RefinedSOLOv2Head(SOLOv2Head):
    """SOLOv2's head with a point head.

    Args:
        point_head: takes C + D fine channels and one coarse logit.
        point_levels: indices of the pyramid's levels that it reads.
        kwargs: those of `SOLOv2Head`.
    """

    def __init__(
        self, *, point_head: nn.Module, point_levels: Sequence[int], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.point_head = point_head
        self.point_levels = list(point_levels)

    def forward(self, pyramid: list[Tensor]) -> Any:
        """Feature maps p2 .. p6, each (N, C, H, W)."""
        outputs: Any = super().forward(pyramid)
        fine = [pyramid[index] for index in self.point_levels]
        return RefinedOutputs(outputs.cls_logits, outputs.masks, fine)

    def predict_points(self, features: Tensor, coarse: Tensor) -> Tensor:
        """Logits (R, P) of features (R, P, C + D) and coarse logits (R, P)."""
        coarse = coarse.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)[..., None]
        classes = torch.zeros(len(features), dtype=torch.long, device=features.device)
        return self.point_head(features, coarse, classes)


class FinePoints:
    """What the point head calls fine: features at points of a batch's images.

    Args:
        outputs: of the head.
        strides: of the fine maps, and last of the mask feature.
    """

    def __init__(self, outputs: RefinedOutputs, strides: Sequence[int]) -> None:
        *fine_strides, mask_stride = strides
        self.fine = PointSampler(outputs.fine, fine_strides)
        self.mask_feature = PointSampler([outputs.masks.mask_feature], [mask_stride])

    def __call__(self, owners: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) images and (R, P, 2) pixels -> (R, P, C + D) features, and (R, P, D) of these."""
        mask_feature = self.mask_feature(owners, points)
        return torch.cat([self.fine(owners, points), mask_feature], dim=2), mask_feature


@META_ARCH_REGISTRY.register()
class SOLOv2PointRend(SOLOv2):
    """SOLOv2 with masks that are rendered at their uncertain points.

    Args:
        point_strides: strides of the maps that the point head reads; the mask feature's is last.
        training_points: how points are sampled.
        subdivision: how masks are refined.
        max_rows: largest number of (object, cell) pairs of a batch that train the point head,
            sampled anew in every step.
        kwargs: those of `SOLOv2`.
    """

    head: RefinedSOLOv2Head

    @configurable
    def __init__(
        self,
        *,
        point_strides: Sequence[int],
        training_points: TrainingPoints,
        subdivision: SubdivisionSettings,
        max_rows: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.point_strides = list(point_strides)
        self.training_points = training_points
        self.subdivision = subdivision
        self.max_rows = max_rows

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = read_solov2_arguments(cfg)
        shapes = arguments["backbone"].output_shape()
        names = [*cfg.MODEL.POINT_HEAD.IN_FEATURES, cfg.MODEL.SOLOV2.MASK_IN_FEATURES[0]]
        return {
            **arguments,
            "head": build_refined_head(cfg),
            "point_strides": [int(shapes[name].stride) for name in names],
            "training_points": TrainingPoints.from_config(cfg),
            "subdivision": SubdivisionSettings.from_config(cfg),
        }

    def losses(self, outputs: Any, targets: GridTargets) -> dict[str, Tensor]:
        """The losses of SOLOv2, and `loss_mask_point`."""
        return {
            **super().losses(outputs, targets),
            "loss_mask_point": self.point_loss(outputs, targets.objects, targets.cells),
        }

    def point_loss(
        self, outputs: RefinedOutputs, objects: GridObjects, targets: CellTargets
    ) -> Tensor:
        """Cross-entropy at points that cover the objects, most where their masks are uncertain."""
        rows = torch.randperm(len(targets.image), device=targets.image.device)[: self.max_rows]
        if not len(rows):
            return zero_of_parameters(self.head.point_head)
        owners, instance = targets.image[rows], targets.instance[rows]
        kernels = outputs.masks.select_kernels(targets, rows)  # (R, D)
        boxes = self.add_margin(objects.boxes[instance])

        fine = FinePoints(outputs, self.point_strides)
        candidates, fresh = self.training_points.draw(len(rows), rows.device)
        with torch.no_grad():
            found = fine.mask_feature(owners, place_points(candidates, boxes))
            uncertainty = measure_uncertainty(apply_kernels(found, kernels))
        count = self.training_points.num_uncertain
        points = place_points(choose_points(candidates, uncertainty, fresh, count), boxes)
        features, mask_feature = fine(owners, points)
        logits = self.head.predict_points(features, apply_kernels(mask_feature, kernels))
        return compute_point_loss(logits, read_labels(objects.masks, instance, points))

    def decode(self, outputs: Any, images: ImageList) -> list[Instances]:
        """Detections of SOLOv2, with masks on a grid over a box around each."""
        results = super().decode(outputs, images)
        masks = torch.cat([found.pred_masks.scores for found in results])  # (R, h, w)
        counts = [len(found) for found in results]
        owners = index_images(counts, masks.device)
        stride = self.point_strides[-1]
        boxes = boxes_from_masks(masks > self.decode_settings.mask_thresh).to(masks.device) * stride
        boxes = self.add_margin(boxes)
        fine, coarse_logits = FinePoints(outputs, self.point_strides), masks.logit(eps=1e-6)

        def evaluate(rows: Tensor, points: Tensor) -> Tensor:
            points = place_points(points, boxes[rows])
            features, _ = fine(owners[rows], points)
            # Interpolating the map of logits is the same as applying the kernel at the point.
            coarse = sample_masks(coarse_logits, rows, points / stride)
            return self.head.predict_points(features, coarse)

        probs = self.subdivision.render(evaluate, len(masks), masks.device).sigmoid()
        for found, scores, place in zip(
            results, probs.split(counts), boxes.split(counts), strict=True
        ):
            found.pred_masks = BoxMasks(scores, place, self.decode_settings.mask_thresh)
        return results

    def postprocess(self, candidates: Instances, height: int, width: int) -> Instances:
        """See `DenseMethod.postprocess`."""
        masks, (input_height, input_width) = candidates.pred_masks, candidates.image_size
        scale = masks.boxes.new_tensor([width / input_width, height / input_height] * 2)
        fields = {
            **candidates.get_fields(),
            "pred_masks": BoxMasks(masks.scores, masks.boxes * scale, masks.threshold),
        }
        return super().postprocess(Instances(candidates.image_size, **fields), height, width)

    def add_margin(self, boxes: Tensor) -> Tensor:
        """Boxes (R, 4) with one cell of the mask map more on each side: a mask may grow."""
        margin = self.point_strides[-1]
        return boxes.float() + boxes.new_tensor([-margin, -margin, margin, margin])


def build_refined_head(cfg: CfgNode) -> RefinedSOLOv2Head:
    """SOLOv2's head with the point head of `cfg.MODEL.POINT_HEAD`. Raises `ConfigError`."""
    node, names = cfg.MODEL.SOLOV2, list(cfg.MODEL.POINT_HEAD.IN_FEATURES)
    levels = list(node.INSTANCE_IN_FEATURES)
    if not names:
        raise ConfigError(f"MODEL.POINT_HEAD.IN_FEATURES is empty; name some of {levels}")
    point_levels = find_levels(names, levels, "MODEL.POINT_HEAD.IN_FEATURES")
    channels = len(names) * cfg.MODEL.FPN.OUT_CHANNELS + node.NUM_KERNELS
    point_head = build_point_head(
        cfg,
        ShapeSpec(channels=channels),
        coarse_channels=1,
        num_outputs=1,
        start_from_coarse=True,
    )
    parts = build_head_parts(node, cfg.MODEL.FPN.OUT_CHANNELS)
    return RefinedSOLOv2Head(point_head=point_head, point_levels=point_levels, **parts)


def apply_kernels(features: Tensor, kernels: Tensor) -> Tensor:
    """SOLOv2's dynamic convolution at points: (R, P, D) and (R, D) -> (R, P) fp32 logits."""
    with torch.autocast(features.device.type, enabled=False):
        return (features.float() @ kernels.float()[:, :, None])[:, :, 0]


def read_labels(masks: Sequence[Tensor], instance: Tensor, points: Tensor) -> Tensor:
    """Soft labels at points.

    Args:
        masks: of N images, (M, H, W) bool each.
        instance: (R,) long, the object of each row, counted over all images.
        points: (R, P, 2), in pixels.

    Returns:
        (R, P) fp32 in [0, 1].
    """
    labels = points.new_zeros(points.shape[:2])
    start = 0
    for own in masks:
        is_here = (instance >= start) & (instance < start + len(own))
        rows = is_here.nonzero().squeeze(1)
        labels[rows] = sample_masks(own, instance[rows] - start, points[rows])
        start += len(own)
    return labels
