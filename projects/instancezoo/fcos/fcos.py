"""FCOS (Tian et al., arXiv 1904.01355 and 2006.09214): each point in a box predicts the box.

Legend: N images, L levels, P points of all levels, K classes, R positive points.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from instancezoo.errors import ZooError
from instancezoo.layers.losses import class_focal_loss
from instancezoo.modeling.dense import DenseMethod
from instancezoo.modeling.distributed import average_over_ranks
from instancezoo.modeling.levels import flatten_levels
from instancezoo.modeling.point_assignment import PointSpec
from instancezoo.modeling.towers import Scale, build_level_tower, build_prediction

from .config import check_fcos_config
from .decode import DecodeSettings, detect
from .head import FCOSHead, FCOSOutputs
from .losses import (
    BOX_LOSSES,
    BOX_QUALITIES,
    CLASS_NORMALIZERS,
    compare_distances,
    compute_box_loss,
)
from .targets import FCOSTargets, assign_targets

# Running average of the number of positive points.
_MOMENTUM, _INITIAL_AVERAGE = 0.9, 100.0
_SMALLEST_WEIGHT = 1e-6


class FCOSProposals(DenseMethod[FCOSOutputs, FCOSTargets]):
    """Detects boxes on feature maps; alone, or as the first stage of other methods.

    Args:
        fcos_head: see `FCOSHead`.
        in_features: names of the head's L feature maps, finest first.
        points: which points are positive for which objects.
        num_classes: K.
        focal_alpha, focal_gamma, class_weight: of the class loss.
        class_normalizer: divisor of the class loss, one of `CLASS_NORMALIZERS`.
        box_loss: one of `BOX_LOSSES`.
        box_quality: target of the quality branch, one of `BOX_QUALITIES`.
        decode_settings, decode_settings_train: thresholds of inference, and of proposals in
            training.
        yield_proposal: if True, detect in training too.

    Raises:
        ValueError: unknown normalizer, box loss or quality.
    """

    moving_num_foreground: Tensor  # ()

    @configurable
    def __init__(
        self,
        *,
        fcos_head: FCOSHead,
        in_features: Sequence[str],
        points: PointSpec,
        num_classes: int,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        class_weight: float = 1.0,
        class_normalizer: str = "fg",
        box_loss: str = "giou",
        box_quality: str = "ctrness",
        decode_settings: DecodeSettings,
        decode_settings_train: DecodeSettings,
        yield_proposal: bool = False,
    ) -> None:
        super().__init__()
        for value, choices in (
            (class_normalizer, CLASS_NORMALIZERS),
            (box_loss, BOX_LOSSES),
            (box_quality, BOX_QUALITIES),
        ):
            if value not in choices:
                raise ValueError(f"'{value}' is none of: {', '.join(choices)}")
        self.fcos_head = fcos_head
        self.in_features = list(in_features)
        self.points = points
        self.num_classes = num_classes
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.class_weight, self.class_normalizer = class_weight, class_normalizer
        self.box_loss, self.box_quality = box_loss, box_quality
        self.decode_settings = decode_settings
        self.decode_settings_train = decode_settings_train
        self.yield_proposal = yield_proposal
        if class_normalizer == "moving_fg":
            # Saved, so that a resumed run equals an unbroken one; published files lack it.
            self.register_buffer("moving_num_foreground", torch.tensor(_INITIAL_AVERAGE))

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
        top_module: nn.Module | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Train or detect, as Detectron2's proposal generators do.

        Args:
            images: the padded batch.
            features: the backbone's maps.
            gt_instances: N Instances with `gt_boxes`, `gt_classes`; needed in training.
            top_module: one more layer on the box tower; detections carry its values.

        Returns:
            Detections from `decode` (in training only with `yield_proposal`), and in training the
            losses.

        Raises:
            ZooError: no `gt_instances` in training.
        """
        outputs = self.predict(features, top_module)
        if not self.training:
            return self.decode(outputs, images), {}
        if gt_instances is None:
            raise ZooError("training needs 'instances'; use a mapper built with is_train=True")
        losses = self.losses(outputs, self.assign(outputs, images, gt_instances))
        return self.decode(outputs, images) if self.yield_proposal else [], losses

    def predict(
        self, features: dict[str, Tensor], top_module: nn.Module | None = None
    ) -> FCOSOutputs:
        """Maps of the head."""
        return self.fcos_head([features[name] for name in self.in_features], top_module)

    def assign(
        self, outputs: FCOSOutputs, images: ImageList, ground_truth: list[Instances]
    ) -> FCOSTargets:
        """Targets of each point, see `assign_targets`; masks are not needed."""
        return assign_targets(ground_truth, outputs.map_sizes, self.points, self.num_classes)

    def losses(self, outputs: FCOSOutputs, targets: FCOSTargets) -> dict[str, Tensor]:
        """`loss_fcos_cls`, `loss_fcos_loc`, and `loss_fcos_ctr` or `loss_fcos_iou` (equation 2)."""
        positive = targets.image, targets.point
        num_positive = outputs.distances[0].new_tensor(float(len(targets.point)))
        num_positive = average_over_ranks(num_positive).clamp(min=1)
        predicted = flatten_levels(outputs.distances)[positive]  # (R, 4)
        quality = flatten_levels(outputs.quality_logits)[positive].float().squeeze(1)  # (R,)
        overlap = compare_distances(predicted, targets.distances / targets.strides[:, None])
        box_loss = compute_box_loss(overlap, self.box_loss)
        class_loss = class_focal_loss(
            flatten_levels(outputs.cls_logits),  # (N, P, K)
            targets.classes,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        ) / self._count_points(targets.classes, num_positive)
        losses = {"loss_fcos_cls": self.class_weight * class_loss}
        if self.box_quality == "iou":
            losses["loss_fcos_loc"] = box_loss.sum() / num_positive
            name, goal = "loss_fcos_iou", overlap.iou.detach()
        else:
            # Boxes of points far from the middle are seldom kept: they weigh less here.
            goal = targets.centerness
            total = average_over_ranks(goal.sum()).clamp(min=_SMALLEST_WEIGHT)
            losses["loss_fcos_loc"] = (box_loss * goal).sum() / total
            name = "loss_fcos_ctr"
        error = F.binary_cross_entropy_with_logits(quality, goal, reduction="sum")
        losses[name] = error / num_positive
        return losses

    def _count_points(self, classes: Tensor, num_positive: Tensor) -> Tensor:
        """What the class loss is divided by, ()."""
        if self.class_normalizer == "all":
            return average_over_ranks(num_positive.new_tensor(float(classes.numel())))
        if self.class_normalizer == "moving_fg":
            average = self.moving_num_foreground
            if torch.is_grad_enabled():  # losses on validation data leave it as it is
                average.mul_(_MOMENTUM).add_((1 - _MOMENTUM) * num_positive)
            return average.clone()
        return num_positive

    def decode(self, outputs: FCOSOutputs, images: ImageList) -> list[Instances]:
        """Detections after NMS, see `detect`; training has thresholds of its own, no gradients."""
        settings = self.decode_settings_train if self.training else self.decode_settings
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            return detect(outputs, images.image_sizes, self.points.strides, settings)

    def postprocess(self, candidates: Instances, height: int, width: int) -> Instances:
        """Scale the boxes to the original image, clip them and leave out empty ones."""
        return detector_postprocess(candidates, height, width)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_fcos_config(cfg, input_shape)
        node = cfg.MODEL.FCOS
        version = "v2" if cfg.MODEL.RESNETS.DEFORM_MODULATED else "v1"
        return {
            "fcos_head": build_head(node, input_shape[node.IN_FEATURES[0]].channels, version),
            "in_features": node.IN_FEATURES,
            "points": PointSpec(
                strides=list(node.FPN_STRIDES),
                sizes_of_interest=list(node.SIZES_OF_INTEREST),
                radius=node.POS_RADIUS if node.CENTER_SAMPLE else None,
            ),
            "num_classes": node.NUM_CLASSES,
            "focal_alpha": node.LOSS_ALPHA,
            "focal_gamma": node.LOSS_GAMMA,
            "class_weight": node.LOSS_WEIGHT_CLS,
            "class_normalizer": node.LOSS_NORMALIZER_CLS,
            "box_loss": node.LOC_LOSS_TYPE,
            "box_quality": node.BOX_QUALITY,
            "decode_settings": _read_decode_settings(node, "TEST"),
            "decode_settings_train": _read_decode_settings(node, "TRAIN"),
            "yield_proposal": node.YIELD_PROPOSAL,
        }


def build_head(node: CfgNode, channels: int, deformable: str) -> FCOSHead:
    """The network behind the pyramid.

    Args:
        node: `cfg.MODEL.FCOS`.
        channels: C of the pyramid and of the towers.
        deformable: "v1" or "v2", used if `node.USE_DEFORMABLE`.
    """
    num_levels = len(node.IN_FEATURES)
    make_tower = partial(build_level_tower, channels, num_levels=num_levels, norm=node.NORM)
    last = deformable if node.USE_DEFORMABLE else ""
    return FCOSHead(
        share_tower=make_tower(node.NUM_SHARE_CONVS),
        cls_tower=make_tower(node.NUM_CLS_CONVS, deformable=last),
        bbox_tower=make_tower(node.NUM_BOX_CONVS, deformable=last),
        cls_logits=build_prediction(channels, node.NUM_CLASSES, prior=node.PRIOR_PROB),
        bbox_pred=build_prediction(channels, 4),
        ctrness=build_prediction(channels, 1),
        scales=nn.ModuleList(Scale() for _ in range(num_levels if node.USE_SCALE else 0)),
        keep_box_features=node.YIELD_BOX_FEATURES,
    )


def _read_decode_settings(node: CfgNode, phase: str) -> DecodeSettings:
    return DecodeSettings(
        score_thresh=node[f"INFERENCE_TH_{phase}"],
        thresh_with_quality=node.THRESH_WITH_CTR,
        num_candidates=node[f"PRE_NMS_TOPK_{phase}"],
        nms_thresh=node.NMS_TH,
        max_per_image=node[f"POST_NMS_TOPK_{phase}"],
    )


@PROPOSAL_GENERATOR_REGISTRY.register()
def FCOS(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> FCOSProposals:
    """Build `FCOSProposals` for MODEL.PROPOSAL_GENERATOR.NAME "FCOS"."""
    return FCOSProposals(cfg, input_shape)
