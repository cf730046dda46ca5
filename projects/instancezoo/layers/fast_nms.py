"""Box NMS over class probabilities: Fast NMS, its variant across classes, and greedy NMS (YOLACT).

All take one image and give detections by score; equal scores keep the order of rows, then classes.

Legend: P rows (boxes), K classes, M detections, E entries (pairs of a row and a class), J pairs of
entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nextafter

import torch
from torch import Tensor

from instancezoo.layers.nms import nms_per_class

# Entries decided in one round, as a multiple of the detections wanted.
_SHARE_PER_ROUND = 10
# Pairs of boxes compared at once; more leave a processor's cache.
_PAIRS_PER_CHUNK = 2**16


def fast_nms(
    boxes: Tensor,
    class_probs: Tensor,
    *,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS (YOLACT, section 3.3): within a class, whatever is suppressed still suppresses.

    Each class ranks all rows and considers its `top_k` best; an entry is kept if its IoU with all
    entries of the class that rank higher is at most the threshold. There is no score threshold:
    every row competes in every class. Whether an entry is kept depends on higher scores only, so
    the best entries of all classes are decided first, and lower ones not at all if those are
    enough.

    Args:
        boxes: (P, 4) XYXY, any unit. Two boxes without area count as overlapping.
        class_probs: (P, K) without background, of rows that are worth considering.
        iou_threshold: in [0, 1].
        top_k: rows considered per class.
        max_detections: detections returned at most.

    Returns:
        Rows (M,) long, classes (M,) long and scores (M,), best first.

    Raises:
        ValueError: other shapes, or a limit below 1.
    """
    _check_input(boxes, class_probs, top_k=top_k, max_detections=max_detections)
    entries = _find_candidates(class_probs.detach().float(), top_k)
    num_classes = max(1, class_probs.shape[1])
    rows = entries.div(num_classes, rounding_mode="floor")
    classes = entries - rows * num_classes
    kept, step = entries[:0], _SHARE_PER_ROUND * max_detections
    for start in range(0, len(entries), step):
        stop = start + step
        suppressed = _find_suppressed(boxes[rows[:stop]], classes[:stop], iou_threshold, start)
        kept = torch.cat([kept, (~suppressed).nonzero().squeeze(1) + start])
        if len(kept) >= max_detections:
            break
    rows, classes = rows[kept[:max_detections]], classes[kept[:max_detections]]
    return rows, classes, class_probs[rows, classes]


def cross_class_fast_nms(
    boxes: Tensor, class_probs: Tensor, *, iou_threshold: float = 0.5, top_k: int = 200
) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS among all classes: each row has its best class only.

    Args:
        boxes: (P, 4) XYXY, any unit. Two boxes without area count as overlapping.
        class_probs: (P, K) without background, of rows that are worth considering; K >= 1.
        iou_threshold: in [0, 1].
        top_k: rows considered.

    Returns:
        As `fast_nms`; all that are kept.

    Raises:
        ValueError: other shapes, or a limit below 1.
    """
    _check_input(boxes, class_probs, top_k=top_k)
    best, classes = class_probs.detach().float().max(dim=1)  # (P,)
    rows = best.argsort(descending=True, stable=True)[:top_k]
    rows = rows[~_find_suppressed(boxes[rows], torch.zeros_like(rows), iou_threshold)]
    return rows, classes[rows], class_probs[rows, classes[rows]]


def exact_nms(
    boxes: Tensor,
    class_probs: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    pixel: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy NMS in each class, as YOLACT's code has it beside Fast NMS.

    Args:
        boxes: (P, 4) XYXY in pixels.
        class_probs: (P, K) without background.
        score_threshold: an entry needs a higher score.
        iou_threshold: a box is dropped if its IoU with a better, kept one is as large or larger.
        max_detections: detections returned at most.
        pixel: added to a box's width and height: 1 for boxes that include their last pixel.

    Returns:
        As `fast_nms`.

    Raises:
        ValueError: other shapes, or a limit below 1.
    """
    _check_input(boxes, class_probs, max_detections=max_detections)
    probs = class_probs.detach().float()
    rows, classes = (probs > score_threshold).nonzero().unbind(1)
    grown = boxes.detach().float()[rows]
    grown = torch.cat([grown[:, :2], grown[:, 2:] + pixel], dim=1)
    # `nms_per_class` drops what is above its threshold, in double precision.
    limit = nextafter(iou_threshold, -inf)
    kept = nms_per_class(grown, probs[rows, classes], classes, limit).sort().values
    order = probs[rows[kept], classes[kept]].argsort(descending=True, stable=True)
    kept = kept[order[:max_detections]]
    return rows[kept], classes[kept], class_probs[rows[kept], classes[kept]]


def _check_input(boxes: Tensor, class_probs: Tensor, **limits: int) -> None:
    if class_probs.ndim != 2 or boxes.shape != (len(class_probs), 4):
        raise ValueError(
            f"boxes must be (P, 4) and class_probs (P, K), got {tuple(boxes.shape)} and "
            f"{tuple(class_probs.shape)}"
        )
    for name, value in limits.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _find_candidates(probs: Tensor, top_k: int) -> Tensor:
    """The `top_k` best entries of each class.

    Args:
        probs: (P, K).
        top_k: rows of a class.

    Returns:
        (E,) long, row * K + class, best first, equal ones in ascending order.
    """
    num_rows, num_classes = probs.shape
    entries = torch.arange(probs.numel(), device=probs.device)
    if top_k < num_rows:
        best = probs.T.contiguous().topk(top_k, dim=1, sorted=False).values  # (K, top_k)
        entries = (probs >= best.amin(dim=1)).flatten().nonzero().squeeze(1)
    entries = entries[probs.flatten()[entries].argsort(descending=True, stable=True)]
    if len(entries) > num_classes * top_k:  # several equal the last of a class
        by_class, ranks = _rank_in_class(entries % num_classes)
        entries = entries[by_class[ranks < top_k].sort().values]
    return entries


def _rank_in_class(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (E,) in the order of their class, and the number of those before with the same."""
    by_class = classes.argsort(stable=True)
    counts = classes.bincount()
    starts = counts.cumsum(0) - counts
    places = torch.arange(classes.shape[0], device=classes.device)
    return by_class, places - starts[classes[by_class]]


def _find_suppressed(
    boxes: Tensor, classes: Tensor, iou_threshold: float, start: int = 0
) -> Tensor:
    """Which entries overlap an earlier one of their class.

    Args:
        boxes: (E, 4) of the entries, best first.
        classes: (E,) long.
        iou_threshold: in [0, 1].
        start: entries before it are not asked for.

    Returns:
        (E - start,) bool.
    """
    by_class, ranks = _rank_in_class(classes)
    sides = boxes.detach().float()[by_class].T.contiguous()  # (4, E)
    counts = torch.where(by_class >= start, ranks, 0)
    lower = torch.repeat_interleave(counts)  # (J,) an entry, once for each better one
    # The last of an entry's pairs is with its neighbour, the others are with those before that.
    shifts = torch.arange(ranks.shape[0], device=lower.device) - counts.cumsum(0)
    higher = torch.arange(lower.shape[0], device=lower.device) + shifts.index_select(0, lower)
    suppressed = torch.zeros_like(ranks, dtype=torch.bool)
    pairs = zip(lower.split(_PAIRS_PER_CHUNK), higher.split(_PAIRS_PER_CHUNK), strict=True)
    for one, other in pairs if len(lower) else ():
        ious = _find_ious(*([side.index_select(0, i) for side in sides] for i in (one, other)))
        # A comparison with NaN is false: 0 / 0 counts as an overlap.
        suppressed.index_fill_(0, one.masked_select(~(ious <= iou_threshold)), 1)
    result = torch.empty_like(suppressed)
    result[by_class] = suppressed
    return result[start:]


def _find_ious(boxes: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """IoU (J,) of pairs of boxes, x0, y0, x1, y1 (J,) each; NaN if both are empty."""
    x0, y0 = (torch.maximum(boxes[i], others[i]) for i in (0, 1))
    x1, y1 = (torch.minimum(boxes[i], others[i]) for i in (2, 3))
    shared = (x1 - x0).clamp_(min=0) * (y1 - y0).clamp_(min=0)
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)
