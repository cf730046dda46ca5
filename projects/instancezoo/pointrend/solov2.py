"""SOLOv2 whose masks are refined at points: PointRend for a model without regions.

A detection's mask gives the box in which it is refined, and its logit at a point is the coarse
prediction there. The point head also reads the pyramid's finest map and the unified mask feature.

Legend: N images, R rows (object and cell) in training and detections in inference, P points,
C channels of the fine maps, D channels of the mask feature, H W its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

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
from instancezoo.solo.solo import GridTargets
from instancezoo.solov2.head import SOLOv2Head, build_head_parts
from instancezoo.solov2.masks import KernelMasks
from instancezoo.solov2.solov2 import SOLOv2, read_solov2_arguments

from .config import check_solov2_pointrend_config
from .head import build_point_head
from .settings import SubdivisionSettings, TrainingPoints
from .targets import compute_point_loss, sample_labels

# Limit of the point head's coarse logits; beyond it fp32 probabilities are too coarse near 1.
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

    def predict_points(self, fine: Tensor, mask_feature: Tensor, coarse: Tensor) -> Tensor:
        """Logits (R, P) of features (R, P, C), (R, P, D) and coarse logits (R, P)."""
        coarse = coarse.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)[..., None]
        classes = torch.zeros(len(fine), dtype=torch.long, device=fine.device)
        return self.point_head(torch.cat([fine, mask_feature], dim=2), coarse, classes)


@META_ARCH_REGISTRY.register()
class SOLOv2PointRend(SOLOv2):
    """SOLOv2 with masks that are rendered at their uncertain points.

    Args:
        point_strides: strides of the maps that the point head reads; the mask feature's is last.
        training_points: numbers of points.
        subdivision: how masks are refined.
        max_rows: maximum number of (object, cell) pairs of a batch that train the point head; a
            random choice in every step.
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
        check_solov2_pointrend_config(cfg)
        node, names = cfg.MODEL.SOLOV2, list(cfg.MODEL.POINT_HEAD.IN_FEATURES)
        shape = ShapeSpec(channels=len(names) * cfg.MODEL.FPN.OUT_CHANNELS + node.NUM_KERNELS)
        overrides = {"coarse_channels": 1, "num_outputs": 1, "start_from_coarse": True}
        head = RefinedSOLOv2Head(
            point_head=build_point_head(cfg, shape, **overrides),
            point_levels=[list(node.INSTANCE_IN_FEATURES).index(name) for name in names],
            **build_head_parts(cfg),
        )
        shapes = arguments["backbone"].output_shape()
        read = [*names, node.MASK_IN_FEATURES[0]]
        return {
            **arguments,
            "head": head,
            "point_strides": [int(shapes[name].stride) for name in read],
            "training_points": TrainingPoints.from_config(cfg),
            "subdivision": SubdivisionSettings.from_config(cfg),
        }

    def losses(self, outputs: Any, targets: GridTargets) -> dict[str, Tensor]:
        """The losses of SOLOv2, and `loss_mask_point`."""
        losses = super().losses(outputs, targets)
        return {**losses, "loss_mask_point": self.point_loss(outputs, targets)}

    def point_loss(self, outputs: RefinedOutputs, targets: GridTargets) -> Tensor:
        """Cross-entropy at points that cover the objects, most where their masks are uncertain."""
        objects, cells = targets
        rows = torch.randperm(len(cells.image), device=cells.image.device)[: self.max_rows]
        if not len(rows):
            return zero_of_parameters(self.head.point_head)
        owners, instance = cells.image[rows], cells.instance[rows]
        kernels = outputs.masks.kernels[owners, cells.cell[rows]]  # (R, D)
        boxes = self.add_margin(objects.boxes[instance])

        fine, mask_feature = self.make_samplers(outputs)
        candidates, fresh = self.training_points.sample(len(rows), rows.device)
        with torch.no_grad():
            features = mask_feature(owners, place_points(candidates, boxes))
            uncertainty = measure_uncertainty(apply_kernels(features, kernels))
        count = self.training_points.num_uncertain
        points = place_points(choose_points(candidates, uncertainty, fresh, count), boxes)
        features = mask_feature(owners, points)
        coarse = apply_kernels(features, kernels)
        logits = self.head.predict_points(fine(owners, points), features, coarse)
        return compute_point_loss(logits, sample_labels(objects.masks, instance, points))

    def decode(self, outputs: Any, images: ImageList) -> list[Instances]:
        """Detections of SOLOv2, with masks on a grid over a box around each."""
        results = super().decode(outputs, images)
        masks = torch.cat([found.pred_masks.scores for found in results])  # (R, H, W)
        counts = [len(found) for found in results]
        owners = index_images(counts, masks.device)
        stride, thresh = self.point_strides[-1], self.decode_settings.mask_thresh
        boxes = self.add_margin(boxes_from_masks(masks > thresh).to(masks.device) * stride)
        fine, mask_feature = self.make_samplers(outputs)
        coarse_logits = masks.logit(eps=1e-6)

        def evaluate(rows: Tensor, points: Tensor) -> Tensor:
            points, image = place_points(points, boxes[rows]), owners[rows]
            # Interpolating the map of logits is the same as applying the kernel at the point.
            coarse = sample_masks(coarse_logits, rows, points / stride)
            return self.head.predict_points(
                fine(image, points), mask_feature(image, points), coarse
            )

        probs = self.subdivision.render(evaluate, len(masks), masks.device).sigmoid()
        rendered = zip(results, probs.split(counts), boxes.split(counts), strict=True)
        for found, scores, place in rendered:
            found.pred_masks = BoxMasks(scores, place, thresh)
        return results

    def postprocess(self, candidates: Instances, height: int, width: int) -> Instances:
        """See `DenseMethod.postprocess`; boxes of the masks are scaled to the original image."""
        masks, (input_height, input_width) = candidates.pred_masks, candidates.image_size
        scale = masks.boxes.new_tensor([width / input_width, height / input_height] * 2)
        scaled = Instances(candidates.image_size, **candidates.get_fields())
        scaled.pred_masks = replace(masks, boxes=masks.boxes * scale)
        return super().postprocess(scaled, height, width)

    def make_samplers(self, outputs: RefinedOutputs) -> tuple[PointSampler, PointSampler]:
        """Samplers of the fine maps and of the mask feature, at points in pixels."""
        *strides, mask_stride = self.point_strides
        mask_feature = PointSampler([outputs.masks.mask_feature], [mask_stride])
        return PointSampler(outputs.fine, strides), mask_feature

    def add_margin(self, boxes: Tensor) -> Tensor:
        """Enlarge boxes (R, 4) by one cell of the mask map on each side: a mask may grow."""
        margin = self.point_strides[-1]
        return boxes.float() + boxes.new_tensor([-margin, -margin, margin, margin])


def apply_kernels(features: Tensor, kernels: Tensor) -> Tensor:
    """SOLOv2's dynamic convolution at points: (R, P, D) and (R, D) -> (R, P) fp32 logits."""
    with torch.autocast(features.device.type, enabled=False):
        return (features.float() @ kernels.float()[:, :, None])[:, :, 0]
