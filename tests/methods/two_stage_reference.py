"""Mask R-CNN and Cascade Mask R-CNN as MMDetection defines them, box by box in plain loops.

It reads the weights of one of our models and computes everything else anew: one image, every
labelled anchor and box takes part in training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align

_STRIDES = (4, 8, 16, 32, 64)
_RATIOS = (0.5, 1.0, 2.0)
_LARGEST_DELTA = math.log(1000 / 16)


def measure_iou(a: Tensor, b: Tensor) -> float:
    """IoU of two boxes (4,)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(inter / (both - inter))


def decode(box: Tensor, delta: Tensor, stds: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """Decode one delta and clip the box to the image."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = (value * std for value, std in zip(delta, stds, strict=True))
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    width = width * dw.clamp(-_LARGEST_DELTA, _LARGEST_DELTA).exp()
    height = height * dh.clamp(-_LARGEST_DELTA, _LARGEST_DELTA).exp()
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    limits = corners.new_tensor([size[1], size[0]] * 2)
    return torch.minimum(corners.clamp(min=0), limits)


def encode(box: Tensor, target: Tensor, stds: tuple[float, ...]) -> Tensor:
    """Delta that leads from a box to its target."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx = ((target[0] + target[2]) / 2 - (box[0] + box[2]) / 2) / width
    dy = ((target[1] + target[3]) / 2 - (box[1] + box[3]) / 2) / height
    dw = ((target[2] - target[0]) / width).log()
    dh = ((target[3] - target[1]) / height).log()
    return torch.stack([dx, dy, dw, dh]) / torch.tensor(stds)


def smooth_l1(delta: Tensor, target: Tensor, beta: float) -> Tensor:
    """Sum over the four values; beta 0 is L1."""
    total = torch.zeros(())
    for difference in (delta - target).abs():
        is_small = difference < beta
        total = total + (difference**2 / (2 * beta) if is_small else difference - beta / 2)
    return total


def pool(pyramid: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    """Features of each box from the level that suits its size."""
    pooled = []
    for box in boxes:
        length = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        level = min(max(math.floor(math.log2(length / 56 + 1e-6)), 0), 3)
        region = torch.cat([torch.zeros(1), box])[None]
        pooled.append(roi_align(pyramid[level], region, side, 1 / _STRIDES[level], 0, aligned=True))
    return torch.cat(pooled)


class Reference:
    """The model around the weights of ours, for one image.

    Args:
        model: ours.
        stds: of the deltas, one tuple per stage.
        thresholds: IoU of each stage.
        weights: factor of each stage's losses.
        betas: of the smooth L1 loss of anchors, then of boxes.
    """

    def __init__(self, model, *, stds, thresholds, weights, betas) -> None:
        self.state = model.state_dict()
        self.stds, self.thresholds, self.weights = stds, thresholds, weights
        self.betas = betas
        self.is_cascade = len(stds) > 1
        self.num_classes = model.roi_heads.num_classes

    def _read(self, name: str, stage: int | None = None) -> tuple[Tensor, Tensor]:
        if stage is not None and self.is_cascade:
            part, rest = name.split(".", 1)
            name = f"{part}.{stage}.{rest}"
        prefix = "proposal_generator.rpn_head." if stage is None else "roi_heads."
        return tuple(self.state[f"{prefix}{name}.{kind}"] for kind in ("weight", "bias"))

    # Region proposals

    def list_anchors(self, features: list[Tensor]) -> list[list[Tensor]]:
        """Anchors of each level, in the order of the predictions."""
        levels = []
        for stride, feature in zip(_STRIDES, features, strict=True):
            anchors = []
            for i in range(feature.shape[2]):
                for j in range(feature.shape[3]):
                    for ratio in _RATIOS:
                        width = 8 * stride / math.sqrt(ratio)
                        height = 8 * stride * math.sqrt(ratio)
                        x, y = j * stride, i * stride
                        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                        anchors.append(torch.tensor(corners))
            levels.append(anchors)
        return levels

    def predict_anchors(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (A,) and deltas (A, 4) of a level."""
        hidden = F.relu(F.conv2d(feature, *self._read("conv"), padding=1))
        logits = F.conv2d(hidden, *self._read("objectness_logits"))[0]  # (3, H, W)
        deltas = F.conv2d(hidden, *self._read("anchor_deltas"))[0]  # (12, H, W)
        deltas = deltas.unflatten(0, (3, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
        return logits.permute(1, 2, 0).flatten(), deltas

    def find_proposals(self, features: list[Tensor], size: tuple[int, int], count: int) -> Tensor:
        """Boxes of an inference, best first."""
        kept_boxes, kept_scores = [], []
        for feature, anchors in zip(features, self.list_anchors(features), strict=True):
            logits, deltas = self.predict_anchors(feature)
            scores, order = logits.sigmoid().sort(descending=True)
            boxes = [decode(anchors[k], deltas[k], (1.0,) * 4, size) for k in order[:count]]
            boxes, scores = torch.stack(boxes), scores[:count]
            is_whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            boxes, scores = boxes[is_whole], scores[is_whole]
            keep = nms(boxes, scores, 0.7)
            kept_boxes.append(boxes[keep])
            kept_scores.append(scores[keep])
        order = torch.cat(kept_scores).argsort(descending=True)[:count]
        return torch.cat(kept_boxes)[order]

    def anchor_losses(
        self, features: list[Tensor], objects: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Losses of logits and deltas."""
        anchors, logits, deltas = [], [], []
        for feature, own in zip(features, self.list_anchors(features), strict=True):
            level_logits, level_deltas = self.predict_anchors(feature)
            for anchor, logit, delta in zip(own, level_logits, level_deltas, strict=True):
                inside = anchor[0] >= 0 and anchor[1] >= 0
                if inside and anchor[2] < size[1] and anchor[3] < size[0]:
                    anchors.append(anchor)
                    logits.append(logit)
                    deltas.append(delta)
        owners, ious = self._assign(anchors, objects)
        labels = [1 if iou >= 0.7 else 0 if iou < 0.3 else -1 for iou in ious]
        self._rescue(anchors, objects, owners, labels, floor=0.3)
        classification, regression = torch.zeros(()), torch.zeros(())
        for k, label in enumerate(labels):
            if label >= 0:
                target = torch.tensor(float(label))
                classification += F.binary_cross_entropy_with_logits(logits[k], target)
            if label == 1:
                target = encode(anchors[k], objects[owners[k]], (1.0,) * 4)
                regression += smooth_l1(deltas[k], target, self.betas[0])
        count = sum(label >= 0 for label in labels)
        return classification / count, regression / count

    @staticmethod
    def _assign(boxes, objects: Tensor) -> tuple[list[int], list[float]]:
        owners, ious = [], []
        for box in boxes:
            values = [measure_iou(box, other) for other in objects]
            owners.append(max(range(len(values)), key=values.__getitem__))
            ious.append(max(values))
        return owners, ious

    @staticmethod
    def _rescue(boxes, objects: Tensor, owners, labels, floor: float) -> None:
        for index, other in enumerate(objects):
            values = [measure_iou(box, other) for box in boxes]
            for k, value in enumerate(values):
                if value == max(values) >= floor:
                    labels[k], owners[k] = 1, index

    # Boxes and masks

    def run_box_head(self, pyramid: list[Tensor], boxes: Tensor, stage: int):
        """Logits (R, K + 1) and deltas (R, 4 or 4 K)."""
        hidden = pool(pyramid, boxes, 7).flatten(1)
        for name in ("box_head.fc1", "box_head.fc2"):
            hidden = F.relu(F.linear(hidden, *self._read(name, stage)))
        names = "box_predictor.cls_score", "box_predictor.bbox_pred"
        return tuple(F.linear(hidden, *self._read(name, stage)) for name in names)

    def run_mask_head(self, pyramid: list[Tensor], boxes: Tensor, stage: int) -> Tensor:
        """Logits (R, K, 28, 28)."""
        hidden = pool(pyramid, boxes, 14)
        for k in range(1, 5):
            hidden = F.relu(
                F.conv2d(hidden, *self._read(f"mask_head.mask_fcn{k}", stage), padding=1)
            )
        weight, bias = self._read("mask_head.deconv", stage)
        hidden = F.relu(F.conv_transpose2d(hidden, weight, bias, stride=2))
        return F.conv2d(hidden, *self._read("mask_head.predictor", stage))

    def select_delta(self, delta: Tensor, label: int) -> Tensor:
        """The class' four values; a cascade has four for all classes."""
        return delta if self.is_cascade else delta[4 * label : 4 * label + 4]

    def detect(
        self, pyramid, proposals: Tensor, size: tuple[int, int], threshold: float, count: int
    ):
        """Detections (score, class, box, mask probabilities), best first."""
        boxes, total = proposals, torch.zeros(())
        for stage, stds in enumerate(self.stds):
            logits, deltas = self.run_box_head(pyramid, boxes, stage)
            total = total + logits
            if self.is_cascade:
                pairs = zip(boxes, deltas, strict=True)
                boxes = torch.stack([decode(box, delta, stds, size) for box, delta in pairs])
        probs = (total / len(self.stds)).softmax(dim=1)
        found = []
        for label in range(self.num_classes):
            rows = [k for k in range(len(boxes)) if probs[k, label] > threshold]
            if not rows:
                continue
            own = boxes[rows]
            if not self.is_cascade:
                parts = [self.select_delta(deltas[k], label) for k in rows]
                pairs = zip(own, parts, strict=True)
                own = torch.stack([decode(box, delta, stds, size) for box, delta in pairs])
            for k in nms(own, probs[rows, label], 0.5):
                found.append((probs[rows[k], label].item(), label, own[k]))
        found = sorted(found, key=lambda row: -row[0])[:count]
        places = torch.stack([box for _, _, box in found])
        masks = torch.zeros(())
        for stage in range(len(self.stds)):
            masks = masks + self.run_mask_head(pyramid, places, stage).sigmoid()
        masks = masks / len(self.stds)
        return [(*row, masks[k, row[1]]) for k, row in enumerate(found)]

    def stage_losses(self, pyramid, proposals: Tensor, objects: Tensor, classes, masks, size):
        """[classification, regression, mask] of each stage, weighted."""
        result = []
        boxes = proposals
        for stage, (stds, threshold) in enumerate(zip(self.stds, self.thresholds, strict=True)):
            owners, ious = self._assign(boxes, objects)
            labels = [
                int(classes[owner]) if iou >= threshold else self.num_classes
                for owner, iou in zip(owners, ious, strict=True)
            ]
            # Ground truth comes first, each box as its own match.
            owners = [*range(len(objects)), *owners]
            labels = [*map(int, classes), *labels]
            samples = torch.cat([objects, boxes])
            logits, deltas = self.run_box_head(pyramid, samples, stage)
            truth = owners, labels, objects, masks
            parts = self._stage(pyramid, samples, truth, logits, deltas, stage)
            result.append([self.weights[stage] * part for part in parts])
            refined = zip(samples[len(objects) :], deltas[len(objects) :], strict=True)
            if self.is_cascade:
                boxes = torch.stack([decode(box, delta, stds, size) for box, delta in refined])
        return result

    def _stage(self, pyramid, samples, truth, logits, deltas, stage):
        owners, labels, objects, masks = truth
        classification = F.cross_entropy(logits, torch.tensor(labels), reduction="sum")
        regression, crossed, cells = torch.zeros(()), torch.zeros(()), 0
        for k, label in enumerate(labels):
            if label == self.num_classes:
                continue
            target = encode(samples[k], objects[owners[k]], self.stds[stage])
            regression += smooth_l1(self.select_delta(deltas[k], label), target, self.betas[1])
            own = self.run_mask_head(pyramid, samples[k][None], stage)[0, label]
            region = torch.cat([torch.zeros(1), samples[k]])[None]
            whole = masks[owners[k]][None, None].float()
            soft = roi_align(whole, region, 28, 1.0, 0, aligned=True)[0, 0]
            target = (soft >= 0.5).float()
            crossed += F.binary_cross_entropy_with_logits(own, target, reduction="sum")
            cells += own.numel()
        count = len(labels)
        return classification / count, regression / count, crossed / cells
