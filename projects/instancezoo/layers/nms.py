"""Suppression of duplicates: box NMS per class, point NMS, Matrix NMS and greedy mask NMS.

Legend: N images, K classes, S grid side, M masks sorted by score, H W map size, B bytes of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.double import find_double_device


def nms_per_class(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS among the boxes of each class.

    torchvision's `batched_nms` shifts each class by a multiple of the largest coordinate. With
    negative coordinates, boxes of neighbouring classes would overlap; here none are negative.

    Args:
        boxes: (M, 4) XYXY, any coordinates.
        scores: (M,)
        classes: (M,) long.
        iou_threshold: a box is dropped if its IoU with a better, kept one is larger.

    Returns:
        (at most M,) long, indices of the kept boxes, best score first.
    """
    if len(boxes) == 0:
        return classes.new_zeros(0)
    # In fp32 the shifts of many classes would round the coordinates.
    device = find_double_device(boxes.device)
    boxes, scores = boxes.to(device).double(), scores.to(device).double()
    kept = batched_nms(boxes - boxes.min(), scores, classes.to(device), iou_threshold)
    return kept.to(classes.device)


def point_nms(heat: Tensor) -> Tensor:
    """Zero every cell that is smaller than its left, upper or upper left neighbour.

    Args:
        heat: (N, K, S, S), probabilities.

    Returns:
        (N, K, S, S); equal neighbours survive both.
    """
    # Max pooling pads with -inf, so border cells compete with existing neighbours only.
    peaks = F.max_pool2d(heat, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return torch.where(peaks == heat, heat, torch.zeros_like(heat))


def matrix_nms(
    packed_masks: Tensor,
    areas: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
) -> Tensor:
    """Decay the score of each mask by its overlap with better ones (SOLOv2, section 3.3.2).

    Args:
        packed_masks: (M, H, B) uint8 from `pack_masks`, best score first.
        areas: (M,) pixels of each mask.
        scores: (M,) descending.
        classes: (M,) long; masks of different classes do not affect each other.
        kernel: "gaussian" exp(-sigma * IoU^2) or "linear" 1 - IoU.
        sigma: of the Gaussian kernel, a factor in the exponent as in the official code.

    Returns:
        (M,) decayed scores, same order.

    Raises:
        ValueError: unknown kernel.
    """
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f"Matrix NMS kernel is '{kernel}'; it must be 'gaussian' or 'linear'")
    if len(scores) == 0:
        return scores
    intersections = count_intersections(packed_masks)  # (M, M)
    areas = areas.to(intersections.dtype)
    unions = (areas[:, None] + areas[None, :] - intersections).clamp(min=1)  # of empty masks: 0
    better = torch.ones_like(intersections, dtype=torch.bool).triu(diagonal=1)
    comparable = better & (classes[:, None] == classes[None, :])
    ious = torch.where(comparable, intersections / unions, 0.0)  # row i suppresses column j > i
    compensation = ious.amax(dim=0)[:, None]  # (M, 1) how much i itself is suppressed
    if kernel == "gaussian":
        # min_i exp(-sigma iou^2) / exp(-sigma compensation^2), as one exponential
        return scores * torch.exp(-sigma * (ious.square() - compensation.square()).amax(dim=0))
    # An exact duplicate i of a better mask adds nothing to that mask's decay: skip it.
    decay = torch.where(compensation < 1, (1 - ious) / (1 - compensation), torch.inf)
    return scores * decay.amin(dim=0)


def greedy_mask_nms(packed_masks: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS of masks of any shape, among those of each class.

    Args:
        packed_masks: (M, H, B) uint8 from `pack_masks`, best score first.
        classes: (M,) long; equal for all to compare all.
        iou_threshold: a mask is dropped if its IoU with a better, kept one is larger.

    Returns:
        (at most M,) long, indices of the kept masks, ascending.
    """
    intersections = count_intersections(packed_masks)  # (M, M)
    areas = intersections.diagonal()
    unions = (areas[:, None] + areas - intersections).clamp(min=1)  # of empty masks: 0
    drops = (intersections / unions > iou_threshold) & (classes[:, None] == classes)
    drops = drops.triu(diagonal=1).cpu()  # row i drops column j > i
    is_kept = torch.ones(len(classes), dtype=torch.bool)
    for row in range(len(classes)):
        if is_kept[row]:
            is_kept &= ~drops[row]
    return is_kept.nonzero().squeeze(1).to(classes.device)


def pack_masks(masks: Tensor) -> Tensor:
    """Store eight pixels of a row in one byte.

    Args:
        masks: (M, H, W) bool.

    Returns:
        (M, H, B) uint8, B = ceil(W / 8), first pixel in the lowest bit.
    """
    eights = F.pad(masks, (0, -masks.shape[2] % 8)).unflatten(2, (-1, 8))  # (M, H, B, 8)
    bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=masks.device)
    return (eights * bits).sum(dim=3, dtype=torch.uint8)


def unpack_masks(packed_masks: Tensor) -> Tensor:
    """Undo `pack_masks`; rows are padded to whole bytes.

    Args:
        packed_masks: (M, H, B) uint8.

    Returns:
        (M, H, 8 * B) bool.
    """
    shifts = torch.arange(8, device=packed_masks.device, dtype=torch.uint8)
    return (packed_masks[..., None] >> shifts).bitwise_and_(1).bool().flatten(2)


def count_intersections(packed_masks: Tensor, budget: int = DEFAULT_BUDGET) -> Tensor:
    """Number of pixels that each pair of masks shares, exact, computed in bands of rows.

    Only masks with a pixel in a band take part in its product, so that many small masks cost
    little.

    Args:
        packed_masks: (M, H, B) uint8.
        budget: bytes of one band's unpacked masks.

    Returns:
        (M, M) fp32, symmetric; exact below 2**24 pixels.
    """
    num_masks, height, num_bytes = packed_masks.shape
    counts = packed_masks.new_zeros((num_masks, num_masks), dtype=torch.float32)
    # A pixel is unpacked to uint8, bool and fp32.
    bytes_per_row = max(1, num_masks * num_bytes * 8 * 6)
    rows = max(1, min(height, budget // bytes_per_row))
    for band in packed_masks.split(rows, dim=1):
        present = band.flatten(1).any(dim=1).nonzero().squeeze(1)
        pixels = unpack_masks(band[present]).flatten(1).float()
        with torch.autocast(pixels.device.type, enabled=False):
            shared = pixels @ pixels.T
        counts[present[:, None], present[None, :]] += shared
    return counts
