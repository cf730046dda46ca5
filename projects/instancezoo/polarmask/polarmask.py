"""PolarMask (Xie et al., arXiv 1909.13226): a mask is a polygon, given by its rays.

Legend: N images, L levels, P locations of all levels, K classes, Q positives, R rays.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.dense import DenseSegmenter
from instancezoo.modeling.levels import check_levels, flatten_levels
from instancezoo.modeling.masks import masks_for_output
from instancezoo.modeling.towers import (
    NORMS,
    PRIOR_LIMITS,
    build_tower,
    check_group_norm,
    init_normal,
    prior_bias,
)

from .decode import DecodeSettings, find_candidates, select_detections
from .head import PolarMaskHead, PolarMaskOutputs
from .losses import box_iou_loss, polar_iou_loss, weighted_mean
from .targets import PolarTargets, TargetRules, gather_objects, make_targets

_CHOICES = {
    "NORM": NORMS,
    "CENTER": ("mass", "box"),
    "RAY_TARGETS": ("nearest_bin", "intersection"),
    "NMS_BOX": ("branch", "polygon"),
}
_LIMITS = {
    "NUM_CLASSES": (1, math.inf),
    "NUM_RAYS": (3, 360),
    "SIZE_DIVISIBILITY": (0, math.inf),
    "NUM_CONVS": (0, math.inf),
    "PRIOR_PROB": PRIOR_LIMITS,
    "CENTER_RADIUS": (0, math.inf),
    "TOPK_CANDIDATES_TEST": (1, math.inf),
    "NMS_THRESH_TEST": (0, 1),
}


@META_ARCH_REGISTRY.register()
class PolarMask(DenseSegmenter):
    """FCOS whose locations also predict the distances to their object's contour along rays.

    Args:
        rules: how targets are made.
        num_classes: K.
        decode: settings of inference.
        input_size: height and width in pixels that every image is stretched to in inference; None
            leaves them as they come.
        size_divisibility: images are padded to a multiple of this, if it is not 0, and of what the
            backbone needs.
        focal_alpha, focal_gamma: of the classification loss.
        kwargs: those of `DenseSegmenter`.
    """

    head: PolarMaskHead

    @configurable
    def __init__(
        self,
        *,
        rules: TargetRules,
        num_classes: int,
        decode: DecodeSettings,
        input_size: tuple[int, int] | None = None,
        size_divisibility: int = 0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rules = rules
        self.num_classes = num_classes
        self.decode = decode
        self.input_size = input_size
        self.size_divisibility = size_divisibility
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.POLARMASK
        backbone = build_backbone(cfg)
        _check_options(node)
        check_group_norm(node.NORM, {"MODEL.FPN.OUT_CHANNELS": cfg.MODEL.FPN.OUT_CHANNELS})
        check_levels(node, "MODEL.POLARMASK", backbone.output_shape())
        return {
            "backbone": backbone,
            "head": build_head(cfg),
            "in_features": list(node.IN_FEATURES),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "mask_output": cfg.MODEL.MASK_OUTPUT,
            "rules": TargetRules(
                strides=list(node.FPN_STRIDES),
                sizes_of_interest=list(node.SIZES_OF_INTEREST),
                center_radius=node.CENTER_RADIUS,
                center=node.CENTER,
                num_rays=node.NUM_RAYS,
                ray_targets=node.RAY_TARGETS,
                ray_wrap=node.RAY_WRAP,
                fill_missed_rays=node.FILL_MISSED_RAYS,
                plus_one=node.LEGACY_PLUS_ONE,
            ),
            "num_classes": node.NUM_CLASSES,
            "decode": DecodeSettings(
                topk_candidates=node.TOPK_CANDIDATES_TEST,
                score_thresh=node.SCORE_THRESH_TEST,
                centerness_offset=node.CENTERNESS_OFFSET,
                nms_box=node.NMS_BOX,
                nms_thresh=node.NMS_THRESH_TEST,
                max_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
                plus_one=node.LEGACY_PLUS_ONE,
                output_plus_one=node.OUTPUT_PLUS_ONE,
            ),
            "input_size": tuple(cfg.INPUT.FIXED_SIZE) or None,
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "focal_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_gamma": node.FOCAL_LOSS_GAMMA,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """See `DenseSegmenter.forward`; in inference images are stretched to `input_size`."""
        if not self.training and self.input_size is not None:
            batched_inputs = [stretch_image(image, self.input_size) for image in batched_inputs]
        return super().forward(batched_inputs)

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them with zeros to one size."""
        images = super().preprocess(batched_inputs)
        divisor = math.lcm(max(self.backbone.size_divisibility, 1), max(self.size_divisibility, 1))
        height, width = images.tensor.shape[2:]
        padding = (0, -width % divisor, 0, -height % divisor)
        return ImageList(F.pad(images.tensor, padding), images.image_sizes)

    def losses(
        self, outputs: PolarMaskOutputs, images: ImageList, ground_truth: list[Instances]
    ) -> dict[str, Tensor]:
        """`loss_cls`, `loss_centerness`, `loss_mask`, and `loss_bbox` with a box branch."""
        targets = self.assign(outputs, ground_truth)
        positions, weights = targets.positions, targets.centerness
        ctr_logits = _pick(outputs.ctr_logits, positions)[:, 0].float()  # (Q,)
        centerness = F.binary_cross_entropy_with_logits(ctr_logits, weights, reduction="sum")
        mask = polar_iou_loss(_pick(outputs.rays, positions), targets.rays)
        losses = {
            "loss_cls": self._class_loss(outputs, targets),
            "loss_centerness": centerness / max(len(positions), 1),
            "loss_mask": weighted_mean(mask, weights),
        }
        if outputs.boxes:
            boxes = _pick(outputs.boxes, positions)
            box = box_iou_loss(boxes, targets.boxes, self.rules.plus_one)
            losses["loss_bbox"] = weighted_mean(box, weights)
        return losses

    def assign(self, outputs: PolarMaskOutputs, ground_truth: list[Instances]) -> PolarTargets:
        """Targets of a batch; `outputs` only tell the sizes of the maps."""
        map_sizes = [(logits.shape[2], logits.shape[3]) for logits in outputs.cls_logits]
        objects = gather_objects(ground_truth, self.rules.plus_one)
        return make_targets(objects, map_sizes, self.rules, num_classes=self.num_classes)

    def _class_loss(self, outputs: PolarMaskOutputs, targets: PolarTargets) -> Tensor:
        logits = flatten_levels(outputs.cls_logits).float()  # (N, P, K)
        one_hot = F.one_hot(targets.classes, self.num_classes + 1)[..., :-1].to(logits.dtype)
        total = sigmoid_focal_loss(
            logits, one_hot, alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="sum"
        )
        # The number of images keeps it finite where nothing is positive.
        return total / (len(targets.positions) + len(logits))

    def inference(self, outputs: PolarMaskOutputs, images: ImageList) -> list[Instances]:
        """Candidates before NMS, which needs the original sizes and follows in `finish`."""
        return find_candidates(outputs, self.rules.strides, images.image_sizes, self.decode)

    def finish(self, detections: Instances, height: int, width: int) -> Instances:
        """See `DenseSegmenter.finish`.

        Returns:
            Instances with `pred_boxes`, `scores` (which may exceed 1), `pred_classes`,
            `pred_masks`, and `pred_polygons` (N, 2, R), rows x and y in pixels of the image.
        """
        kept = select_detections(detections, height, width, self.decode)
        masks = kept.pred_masks
        kept.pred_polygons = masks.vertices.transpose(1, 2)
        kept.remove("pred_masks")
        kept.pred_masks = masks_for_output(masks, height, width, self.mask_output)
        return kept


def build_head(cfg: CfgNode) -> PolarMaskHead:
    """The network behind the pyramid, from `cfg.MODEL.POLARMASK`."""
    node, channels = cfg.MODEL.POLARMASK, cfg.MODEL.FPN.OUT_CHANNELS

    def tower() -> nn.Module:
        options: dict[str, Any] = {"norm": node.NORM}
        if node.USE_DEFORMABLE:
            options |= {"deformable": "v2", "bias": True}  # parity: a bias under the norm
        return build_tower(channels, channels, node.NUM_CONVS, **options)

    def predict(out_channels: int, bias: float = 0.0) -> nn.Module:
        conv = Conv2d(channels, out_channels, kernel_size=3, padding=1)
        init_normal(conv, bias=bias)
        return conv

    return PolarMaskHead(
        cls_tower=tower(),
        mask_tower=tower(),
        bbox_tower=tower() if node.BOX_BRANCH else None,
        cls_logits=predict(node.NUM_CLASSES, prior_bias(node.PRIOR_PROB)),
        ctrness=predict(1),
        ray_pred=predict(node.NUM_RAYS),
        bbox_pred=predict(4) if node.BOX_BRANCH else None,
        num_levels=len(node.IN_FEATURES),
    )


def stretch_image(record: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Resize a model input bilinearly to one size, whatever its aspect ratio.

    Args:
        record: with `image` (C, H, W).
        size: height and width in pixels.

    Returns:
        A new record; `height` and `width` name the result's size as before, or that of `image`.
    """
    image = record["image"]
    old = tuple(image.shape[1:])
    if old == tuple(size):
        return record
    stretched = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    return {"height": old[0], "width": old[1], **record, "image": stretched[0]}


def _pick(maps: list[Tensor], positions: Tensor) -> Tensor:
    """Values at locations that are counted over all images: L maps (N, C, H, W) -> (Q, C)."""
    return flatten_levels(maps).flatten(0, 1)[positions]


def _check_options(node: CfgNode) -> None:
    """Raise `ConfigError` for values that do not go together."""
    for key, choices in _CHOICES.items():
        check_choice(f"MODEL.POLARMASK.{key}", node[key], choices)
    check_numbers("MODEL.POLARMASK", node, _LIMITS)
    if 360 % node.NUM_RAYS:
        raise ConfigError(f"MODEL.POLARMASK.NUM_RAYS is {node.NUM_RAYS}; it must divide 360")
    if node.NMS_BOX == "branch" and not node.BOX_BRANCH:
        raise ConfigError(
            "MODEL.POLARMASK.BOX_BRANCH False leaves no boxes for NMS_BOX 'branch'; set "
            "MODEL.POLARMASK.NMS_BOX 'polygon'"
        )
