"""Where enlarged maps cross a threshold, without computing most of their pixels.

Bilinear interpolation is a convex combination: if all samples that reach a tile of pixels are on
one side of the threshold, so are the pixels. Only the other tiles, along contours, are computed.

Legend: M maps, h w grid size, H W image size, T tiles (along an axis, or chosen ones), A pixels of
a tile along an axis, Q samples that reach it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Samples along a tile's side: small tiles follow the contour, large ones share more samples.
_SAMPLES_PER_TILE = 4
# Maps compared at once; more leave a processor's cache.
_MAPS_PER_CHUNK = 4


@dataclass(frozen=True)
class TileAxis:
    """Tiles along one axis; the last may reach beyond the image.

    Attributes:
        size: pixels from one tile to the next.
        weights: (T, A, Q) fp64, 0 beyond the image.
        samples: (T, Q) long, grid positions that the weights belong to.
        is_inside: (T, A) bool, which pixels lie in the image.
    """

    size: int
    weights: Tensor
    samples: Tensor
    is_inside: Tensor


def split_axis(weights: Tensor, lead: int = 0) -> TileAxis:
    """Cut an axis into tiles.

    Args:
        weights: (H, h) or (W, w) from `weigh_samples`.
        lead: pixels before a tile that belong to it as well, and beyond the image's last pixel.
    """
    length, device = len(weights), weights.device
    num_samples = int((weights != 0).any(dim=0).sum())  # the others lie in the padding
    size = max(1, round(_SAMPLES_PER_TILE * length / num_samples))
    steps = torch.arange(size + lead, device=device) - lead
    pixels = torch.arange(0, length + lead, size, device=device)[:, None] + steps
    is_inside = (pixels >= 0) & (pixels < length)
    weights = weights[pixels.clamp(0, length - 1)] * is_inside[..., None]  # (T, A, h or w)
    is_used = (weights != 0).any(dim=1).to(torch.uint8)  # (T, h or w)
    last = weights.shape[2] - 1
    first, stop = is_used.argmax(dim=1), last - is_used.flip(1).argmax(dim=1)
    count = int((stop - first).max()) + 1
    samples = first.clamp(max=last + 1 - count)[:, None] + torch.arange(count, device=device)
    chosen = samples[:, None, :].expand(-1, weights.shape[1], -1)
    return TileAxis(size, weights.gather(2, chosen).double(), samples, is_inside)


def find_sides(
    scores: Tensor, rows: TileAxis, columns: TileAxis, threshold: float, margin: Tensor
) -> Tensor:
    """Find the side of a threshold on which all samples of each tile are.

    Args:
        scores: (M, h, w).
        rows, columns: tiles along both axes.
        threshold: of the scores.
        margin: (M,) distance from the threshold at which a sample is on a side; nearer ones and NaN
            are on none.

    Returns:
        (M, tiles down, tiles across) int8: 1 above, -1 below, 0 otherwise.
    """
    by_rows = _count_samples(rows, scores.shape[1])
    by_columns = _count_samples(columns, scores.shape[2])
    all_samples = rows.samples.shape[1] * columns.samples.shape[1]
    sides = scores.new_zeros((len(scores), len(by_rows), len(by_columns)), dtype=torch.int8)
    for start in range(0, len(scores), _MAPS_PER_CHUNK):
        some = slice(start, start + _MAPS_PER_CHUNK)
        # 1 above, -1 below, 0 within the margin
        sign = ((scores[some] - threshold) / margin[some, None, None]).clamp_(-1, 1).trunc_()
        with torch.autocast(scores.device.type, enabled=False):
            total = by_rows @ sign @ by_columns.T  # whole numbers: exact
        sides[some] = (total / all_samples).trunc_().nan_to_num_()
    return sides


def _count_samples(axis: TileAxis, length: int) -> Tensor:
    """Which samples of an axis reach each tile: (T, h or w) fp32, 0 or 1."""
    counts = torch.zeros(len(axis.samples), length, device=axis.samples.device)
    return counts.scatter_(1, axis.samples, 1.0)


def compute_tiles(scores: Tensor, rows: TileAxis, columns: TileAxis, tiles: Tensor) -> Tensor:
    """Compute the pixels of some tiles.

    Args:
        scores: (M, h, w).
        rows, columns: tiles along both axes.
        tiles: (T, 3) long: map, tile row, tile column.

    Returns:
        (T, A, A') fp64, pixels down and across, 0 beyond the image.
    """
    owner, down, across = tiles.unbind(1)
    y, x = rows.samples[down][:, :, None], columns.samples[across][:, None, :]
    patch = scores[owner[:, None, None], y, x]  # (T, Q, Q'), samples down and across
    return rows.weights[down] @ patch.double() @ columns.weights[across].transpose(1, 2)
