"""YOLACT (Bolya et al., arXiv 1904.02689) and YOLACT++ (arXiv 1912.06218).

A mask is a sum of prototypes, which all objects of an image share, with an object's own
coefficients.

Legend: N images, P anchors of all levels, K classes, D prototypes, H W size of the prototypes,
R positive anchors.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from instancezoo.layers.losses import zero_of_parameters
from instancezoo.modeling.dense import DenseSegmenter

from .config import check_yolact_config
from .decode import DecodeSettings, decode_outputs
from .head import YOLACTHead, YOLACTOutputs, build_head
from .losses import PositiveMasks, class_loss, crop_to_boxes, mask_loss
from .targets import AnchorSpec, MatchRules, YOLACTTargets, make_anchors, make_targets


@dataclass(frozen=True)
class LossSettings:
    """Settings of the losses.

    Attributes:
        neg_pos_ratio: hardest background anchors per positive one.
        masks_to_train: largest number of positive anchors of an image whose masks are trained.
        min_iou_area: objects of at most this many prototype cells do not train the mask IoU.
        box_weight, cls_weight, mask_weight, semantic_weight, mask_iou_weight: weights.
    """

    neg_pos_ratio: float = 3
    masks_to_train: int = 100
    min_iou_area: int = 25
    box_weight: float = 1.5
    cls_weight: float = 1.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    mask_iou_weight: float = 25.0


@META_ARCH_REGISTRY.register()
class YOLACT(DenseSegmenter[YOLACTOutputs, YOLACTTargets]):
    """An anchor detector that also predicts prototypes, and mask coefficients of each anchor.

    Args:
        anchors: of each cell.
        rules: which anchors are positive.
        num_classes: K.
        loss_settings: weights and numbers of samples.
        decode_settings: of inference.
        freeze_norm: if True, batch norms of the network below the pyramid are not trained; those
            that are synchronised between GPUs are.
        truncate_boxes: if True, final boxes are cut to whole pixels.
        kwargs: those of `DenseSegmenter`.
    """

    head: YOLACTHead
    keep_crowds = True  # anchors on them are no background

    @configurable
    def __init__(
        self,
        *,
        anchors: AnchorSpec,
        rules: MatchRules,
        num_classes: int,
        loss_settings: LossSettings,
        decode_settings: DecodeSettings,
        freeze_norm: bool = False,
        truncate_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.anchors = anchors
        self.rules = rules
        self.num_classes = num_classes
        self.loss_settings = loss_settings
        self.decode_settings = decode_settings
        self.truncate_boxes = truncate_boxes
        network = getattr(self.backbone, "bottom_up", self.backbone)
        self._frozen_norms = _find_batch_norms(network) if freeze_norm else []
        for norm in self._frozen_norms:
            norm.requires_grad_(False)

    def train(self, mode: bool = True) -> YOLACT:
        """Switch to training or inference; frozen norms stay in inference."""
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    def assign(
        self, outputs: YOLACTOutputs, images: ImageList, ground_truth: list[Instances]
    ) -> YOLACTTargets:
        """Class, box and mask of each anchor, see `make_targets`."""
        height, width = outputs.prototypes.shape[2:]
        return make_targets(
            ground_truth,
            self._make_anchors(outputs, images),
            self.rules,
            padded_size=_padded_size(images),
            prototype_size=(height, width),
            semantic_size=outputs.map_sizes[0],
            num_classes=self.num_classes,
        )

    def losses(self, outputs: YOLACTOutputs, targets: YOLACTTargets) -> dict[str, Tensor]:
        """`loss_box`, `loss_cls`, `loss_mask`, `loss_semantic`, and `loss_mask_iou` of YOLACT++."""
        settings = self.loss_settings
        num_positive = max(len(targets.anchor), 1)
        deltas = outputs.deltas[targets.image, targets.anchor].float()  # (R, 4)
        box = F.smooth_l1_loss(deltas, targets.deltas, reduction="sum")
        cls = class_loss(outputs.cls_logits, targets.labels, settings.neg_pos_ratio)
        images = self.predict_positive_masks(outputs, targets)
        masks = [
            image.factor * mask_loss(image.probs, image.masks, image.boxes) for image in images
        ]
        mask = torch.stack(masks).sum() if masks else box.new_zeros(())
        losses = {
            "loss_box": settings.box_weight * box / num_positive,
            "loss_cls": settings.cls_weight * cls / num_positive,
            "loss_mask": settings.mask_weight * mask / num_positive,
            "loss_semantic": settings.semantic_weight * _semantic_loss(outputs, targets),
        }
        if self.head.mask_iou is not None:
            error = self._mask_iou_loss(images)
            losses["loss_mask_iou"] = settings.mask_iou_weight * error / num_positive
        # Without positive anchors some predictions have no loss.
        losses["loss_cls"] = losses["loss_cls"] + zero_of_parameters(self.head)
        return losses

    def predict_positive_masks(
        self, outputs: YOLACTOutputs, targets: YOLACTTargets
    ) -> list[PositiveMasks]:
        """Masks of the positive anchors of each image that has some, cropped by their objects."""
        results = []
        for index, prototypes in enumerate(outputs.prototypes.float()):
            chosen, factor = self._choose_positive(targets, index)
            if len(chosen) == 0:
                continue
            instance = targets.instance[chosen]
            boxes = targets.boxes[index][instance]
            coefficients = outputs.coefficients[index, targets.anchor[chosen]].float()
            # In half precision a sigmoid is exactly 1 from 8 on, where it has no gradient.
            with torch.autocast(self.device.type, enabled=False):
                mask_logits = torch.einsum("rd,dhw->rhw", coefficients, prototypes)
                probs = crop_to_boxes(mask_logits.sigmoid(), boxes)
            results.append(
                PositiveMasks(
                    probs=probs,
                    masks=targets.masks[index][instance],
                    boxes=boxes,
                    classes=targets.classes[index][instance],
                    factor=factor,
                )
            )
        return results

    def _choose_positive(self, targets: YOLACTTargets, index: int) -> tuple[Tensor, float]:
        """Positive anchors of an image whose masks are trained, and their number per chosen one."""
        mine = (targets.image == index).nonzero().squeeze(1)
        limit = self.loss_settings.masks_to_train
        if len(mine) <= limit:
            return mine, 1.0
        order = torch.randperm(len(mine), device=mine.device)
        return mine[order[:limit]], len(mine) / limit

    def _mask_iou_loss(self, images: list[PositiveMasks]) -> Tensor:
        """Error of the predicted IoU of all images' masks, summed.

        parity: the input is not detached, so this loss trains prototypes and coefficients too.
        """
        assert self.head.mask_iou is not None
        total = self.pixel_mean.new_zeros(())
        for image in images:
            image = image.drop_small(self.loss_settings.min_iou_area)
            if len(image.classes) == 0:
                continue
            ious = self.head.mask_iou(image.probs[:, None]).float()  # (R, K)
            own = ious.gather(1, image.classes[:, None]).squeeze(1)
            total = total + F.smooth_l1_loss(own, image.measure_ious(), reduction="sum")
        return total

    def decode(self, outputs: YOLACTOutputs, images: ImageList) -> list[Instances]:
        """Detections after NMS, see `decode_outputs`."""
        return decode_outputs(
            outputs,
            self._make_anchors(outputs, images),
            images.image_sizes,
            _padded_size(images),
            self.head.mask_iou,
            self.decode_settings,
        )

    def postprocess(self, candidates: Instances, height: int, width: int) -> Instances:
        """See `DenseSegmenter.postprocess`; with mask re-scoring also `mask_scores`."""
        found = super().postprocess(candidates, height, width)
        if self.truncate_boxes:
            found.pred_boxes = Boxes(found.pred_boxes.tensor.trunc())
        if candidates.has("mask_scores"):
            found.mask_scores = candidates.mask_scores
        return found

    def _make_anchors(self, outputs: YOLACTOutputs, images: ImageList) -> Tensor:
        return make_anchors(outputs.map_sizes, _padded_size(images), self.anchors, self.device)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        node, shapes = cfg.MODEL.YOLACT, arguments["backbone"].output_shape()
        check_yolact_config(cfg, shapes)
        anchors = AnchorSpec(
            scales=[list(level) for level in node.ANCHOR_SCALES],
            aspect_ratios=list(node.ASPECT_RATIOS),
            square=node.SQUARE_ANCHORS,
        )
        batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        return {
            **arguments,
            "head": build_head(
                shapes[node.IN_FEATURES[0]].channels,
                num_classes=node.NUM_CLASSES,
                num_anchors=anchors.num_anchors,
                num_prototypes=node.NUM_PROTOTYPES,
                head_channels=node.HEAD_CHANNELS,
                proto_channels=node.PROTO_CHANNELS,
                mask_iou_channels=node.MASKIOU.CONV_CHANNELS if node.MASKIOU.ENABLED else (),
            ),
            "in_features": node.IN_FEATURES,
            "keep_empty_masks": True,  # parity: they have a box and a score
            "anchors": anchors,
            "rules": MatchRules(
                pos_iou=node.POS_IOU, neg_iou=node.NEG_IOU, crowd_share=node.CROWD_IOU
            ),
            "num_classes": node.NUM_CLASSES,
            "loss_settings": LossSettings(
                neg_pos_ratio=node.NEG_POS_RATIO,
                masks_to_train=node.MASKS_TO_TRAIN,
                min_iou_area=node.MASKIOU.MIN_AREA,
                box_weight=node.BOX_WEIGHT,
                cls_weight=node.CLS_WEIGHT,
                mask_weight=node.MASK_WEIGHT,
                semantic_weight=node.SEMANTIC_WEIGHT,
                mask_iou_weight=node.MASKIOU.WEIGHT,
            ),
            "decode_settings": _read_decode_settings(cfg),
            "freeze_norm": batch_size < node.FREEZE_NORM_BELOW,
            "truncate_boxes": node.TRUNCATE_BOXES,
        }


def _read_decode_settings(cfg: CfgNode) -> DecodeSettings:
    node, limit = cfg.MODEL.YOLACT, cfg.TEST.DETECTIONS_PER_IMAGE
    return DecodeSettings(
        candidate_thresh=node.SCORE_THRESH_TEST,
        score_thresh=node.FINAL_SCORE_THRESH,
        nms_type=node.NMS_TYPE,
        top_k=node.NMS_TOP_K,
        nms_thresh=node.NMS_THRESH,
        max_per_image=limit if limit >= 0 else sys.maxsize,
        rescore_boxes=node.MASKIOU.RESCORE_BOX,
    )


def _padded_size(images: ImageList) -> tuple[int, int]:
    height, width = images.tensor.shape[2:]
    return height, width


def _semantic_loss(outputs: YOLACTOutputs, targets: YOLACTTargets) -> Tensor:
    """Cross-entropy of where each class is, summed over classes, mean over cells and images."""
    assert outputs.semantic_logits is not None, "made by the head in training"
    logits = outputs.semantic_logits.float()  # (N, K, H, W)
    error = F.binary_cross_entropy_with_logits(logits, targets.semantic.float(), reduction="sum")
    # parity: not divided by the number of classes.
    return error / (len(logits) * logits.shape[2] * logits.shape[3])


def _find_batch_norms(module: nn.Module) -> list[nn.Module]:
    kinds, synchronised = nn.modules.batchnorm._BatchNorm, (nn.SyncBatchNorm, NaiveSyncBatchNorm)
    norms = [part for part in module.modules() if isinstance(part, kinds)]
    return [norm for norm in norms if not isinstance(norm, synchronised)]
