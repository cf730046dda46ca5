"""The losses of YOLACT (section 3 and the appendix of YOLACT++).

Legend: N images, P anchors, K classes, D prototypes, H W size of the prototypes, R positive
anchors of an image whose masks are trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.score_windows import find_windows
from instancezoo.modeling.masks import CROP_PAD

from .targets import BACKGROUND

_MASK_THRESH = 0.5


@dataclass(frozen=True)
class PositiveMasks:
    """Masks that are trained in one image.

    Attributes:
        probs: (R, H, W) in [0, 1], predicted, cropped.
        masks: (R, H, W) bool, of the objects.
        boxes: (R, 4) XYXY of the objects, in cells.
        classes: (R,) long.
        factor: positive anchors of the image per trained mask.
    """

    probs: Tensor
    masks: Tensor
    boxes: Tensor
    classes: Tensor
    factor: float

    def drop_small(self, area: int) -> PositiveMasks:
        """Without the objects of at most `area` cells."""
        is_large = self.masks.sum(dim=(1, 2)) > area
        return PositiveMasks(
            self.probs[is_large],
            self.masks[is_large],
            self.boxes[is_large],
            self.classes[is_large],
            self.factor,
        )

    def measure_ious(self) -> Tensor:
        """IoU of each predicted mask, at 0.5, with its object: (R,)."""
        predicted = self.probs > _MASK_THRESH
        shared = (predicted & self.masks).sum(dim=(1, 2))
        return shared / (predicted | self.masks).sum(dim=(1, 2)).clamp(min=1)


def find_hard_negatives(background_loss: Tensor, labels: Tensor, ratio: float) -> Tensor:
    """Background anchors that the network is most wrong about (SSD, section 2.2).

    Args:
        background_loss: (N, P), -log of the background's probability.
        labels: (N, P) long, see `YOLACTTargets`.
        ratio: their number per positive anchor of the image.

    Returns:
        (N, P) bool.
    """
    is_background = labels == BACKGROUND
    # parity: other anchors take part in the ranking, as the last, and are left out afterwards.
    order = torch.where(is_background, background_loss, 0.0).argsort(
        dim=1, descending=True, stable=True
    )
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    num_positive = (labels > BACKGROUND).sum(dim=1, keepdim=True)
    return is_background & (rank < ratio * num_positive)


def class_loss(cls_logits: Tensor, labels: Tensor, ratio: float) -> Tensor:
    """Cross-entropy of the positive anchors and the hardest background ones, summed.

    Args:
        cls_logits: (N, P, K + 1), background first.
        labels: (N, P) long.
        ratio: see `find_hard_negatives`.

    Returns:
        () fp32.
    """
    with torch.no_grad():
        logits = cls_logits.detach().float()
        background_loss = logits.logsumexp(dim=2) - logits[:, :, 0]
        chosen = (labels > BACKGROUND) | find_hard_negatives(background_loss, labels, ratio)
    return F.cross_entropy(cls_logits[chosen].float(), labels[chosen], reduction="sum")


def crop_to_boxes(mask_probs: Tensor, boxes: Tensor) -> Tensor:
    """Zero what is outside each box and the cells around it, as inference does.

    Args:
        mask_probs: (R, H, W)
        boxes: (R, 4) XYXY in cells.

    Returns:
        (R, H, W).
    """
    height, width = mask_probs.shape[1:]
    windows = find_windows(boxes, (height, width), CROP_PAD)
    top, left, bottom, right = windows[:, :, None].unbind(dim=1)  # (R, 1) each
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    in_row = (rows >= top) & (rows < bottom)  # (R, H)
    in_column = (columns >= left) & (columns < right)  # (R, W)
    return mask_probs * (in_row[:, :, None] & in_column[:, None, :])


def mask_loss(mask_probs: Tensor, masks: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy of cropped masks, divided by the areas of the boxes, summed.

    An object's cell outside the crop costs 100, the limit of PyTorch's logarithm.

    Args:
        mask_probs: (R, H, W) in [0, 1], cropped.
        masks: (R, H, W) bool.
        boxes: (R, 4) XYXY in cells.

    Returns:
        () fp32.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    with torch.autocast(mask_probs.device.type, enabled=False):
        errors = F.binary_cross_entropy(mask_probs.float(), masks.float(), reduction="none")
        return (errors.sum(dim=(1, 2)) / sizes.prod(dim=1)).sum()
