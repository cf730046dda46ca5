"""From category maps and mask scores to detections (SOLO, section 3.3.3; SOLOv2, section 3.3).

No mask has full resolution here, and soft masks exist for a chunk of cells at a time: Matrix NMS
works on packed bits on the stride-4 map.

Legend: N images, L levels, S grid side, K classes, P cells, M candidates or detections, B bytes of
a row, H W stride-4 map size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.mass_centers import count_pixels
from instancezoo.layers.nms import matrix_nms, pack_masks, point_nms
from instancezoo.modeling.levels import flatten_levels

from .masks import CellMasks

# Bytes per pixel of soft masks and their intermediates.
_BYTES_PER_PIXEL = 8


@dataclass(frozen=True)
class DecodeSettings:
    """Thresholds of inference.

    Attributes:
        score_thresh: candidates have a higher probability.
        mask_thresh: mask pixels have a higher probability.
        num_candidates: maximum number that enters Matrix NMS.
        nms_kernel, nms_sigma: see `matrix_nms`.
        update_thresh: minimum score after Matrix NMS.
        max_per_image: maximum number of detections.
    """

    score_thresh: float = 0.1
    mask_thresh: float = 0.5
    num_candidates: int = 500
    nms_kernel: str = "gaussian"
    nms_sigma: float = 2.0
    update_thresh: float = 0.05
    max_per_image: int = 100


@dataclass(frozen=True)
class Candidates:
    """Masks of one image, best score first.

    Attributes:
        cells: (M,) long, index over all levels. A cell may hold several classes, with one mask.
        classes: (M,) long.
        scores: (M,)
        areas: (M,) long, pixels of the stride-4 map.
        packed_masks: (M, H, B) uint8, see `pack_masks`.
    """

    cells: Tensor
    classes: Tensor
    scores: Tensor
    areas: Tensor
    packed_masks: Tensor


def compute_cell_probs(cls_logits: list[Tensor]) -> Tensor:
    """Probability of each class in each cell; 0 where a neighbour is better.

    Args:
        cls_logits: L tensors (N, K, S, S).

    Returns:
        (N, cells of all levels, K) fp32.
    """
    return flatten_levels([point_nms(logits.float().sigmoid()) for logits in cls_logits])


def rank_candidates(
    probs: Tensor,
    strides: Tensor,
    cell_masks: CellMasks,
    image: int,
    settings: DecodeSettings,
    budget: int = DEFAULT_BUDGET,
) -> Candidates:
    """Candidates of one image that may enter Matrix NMS.

    Args:
        probs: (cells, K) from `compute_cell_probs`.
        strides: (cells,) stride of each cell's level; masks must have more pixels than that.
        cell_masks: of the batch.
        image: index in the batch.
        settings: thresholds.
        budget: bytes that soft masks may take at once.
    """
    position, classes = (probs > settings.score_thresh).nonzero(as_tuple=True)
    # Classes of one cell share its mask: each mask is made once.
    cells, owner = position.unique(return_inverse=True)
    packed, areas, totals = _pack_soft_masks(cell_masks, image, cells, settings.mask_thresh, budget)
    is_large = areas > strides[cells]
    # Mean probability inside the mask. Empty ones are too small; NaN would reach every gradient.
    maskness = totals / areas.clamp(min=1)
    scores = probs[position, classes] * maskness[owner]
    order = scores.argsort(descending=True, stable=True)
    order = order[is_large[owner[order]]][: settings.num_candidates]
    owner = owner[order]
    return Candidates(position[order], classes[order], scores[order], areas[owner], packed[owner])


def select_detections(
    candidates: Candidates, cell_masks: CellMasks, image: int, settings: DecodeSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix NMS, thresholds, and the soft masks of what is left.

    Args:
        candidates: from `rank_candidates`.
        cell_masks, image, settings: those that `rank_candidates` got.

    Returns:
        scores (M,) descending, classes (M,) long, soft masks (M, H, W).
    """
    scores = suppress(candidates, settings)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= settings.update_thresh][: settings.max_per_image]
    cells, owner = candidates.cells[order].unique(return_inverse=True)
    masks = cell_masks.probs(image, cells)[owner]
    return scores[order], candidates.classes[order], masks


def suppress(candidates: Candidates, settings: DecodeSettings) -> Tensor:
    """Scores after Matrix NMS, (M,), in the candidates' order."""
    return matrix_nms(
        candidates.packed_masks,
        candidates.areas,
        candidates.scores,
        candidates.classes,
        kernel=settings.nms_kernel,
        sigma=settings.nms_sigma,
    )


def _pack_soft_masks(
    cell_masks: CellMasks, image: int, cells: Tensor, threshold: float, budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per cell: packed mask (P, H, B), area (P,) long, sum of probabilities inside it (P,)."""
    # A call without cells costs nothing and gives the size of the map.
    height, width = cell_masks.probs(image, cells[:0]).shape[1:]
    packed = cells.new_zeros((len(cells), height, -(-width // 8)), dtype=torch.uint8)
    areas, totals = cells.new_zeros(len(cells)), cells.new_zeros(len(cells), dtype=torch.float32)
    chunk = max(1, budget // (_BYTES_PER_PIXEL * height * width))
    for start in range(0, len(cells), chunk):
        some = slice(start, start + chunk)
        probs = cell_masks.probs(image, cells[some])
        masks = probs > threshold
        packed[some] = pack_masks(masks)
        areas[some] = count_pixels(masks)[1].sum(dim=1)
        # Masks are large: a copy is made only where gradients need the factors.
        inside = probs * masks if probs.requires_grad else probs.mul_(masks)
        totals[some] = inside.sum(dim=(1, 2))
    return packed, areas, totals
