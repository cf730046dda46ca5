"""Outer borders and mass centres of masks.

Legend: M instances, H W image size, B border points of all instances or of one, E edges between
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from instancezoo.layers.extension import find_compiled, register_fake


@dataclass
class Borders:
    """Border points of M instances, one instance after the other.

    Attributes:
        points: (B, 2) int32 x and y of border pixels, row by row within an instance, none twice.
        offsets: (M + 1,) long; instance m owns `points[offsets[m]:offsets[m + 1]]`.
        centers: (M, 2) fp32 x and y of the mass centres, truncated to whole pixels.
    """

    points: Tensor
    offsets: Tensor
    centers: Tensor

    def __len__(self) -> int:
        return len(self.centers)

    def to(self, device: torch.device) -> Borders:
        """The same borders on a device."""
        return Borders(*(part.to(device) for part in (self.points, self.offsets, self.centers)))


def find_borders(masks: Tensor) -> Borders:
    """Border and mass centre of the largest part of each mask, holes filled (PolarMask, 3.2).

    The size of an 8-connected part is the area of the polygon through the centres of its outermost
    pixels; among equal parts the one whose first pixel (row by row) comes last is taken, which
    OpenCV lists first. Border: the pixels with one of their four neighbours outside of the filled
    part or of the image. Centre: the centroid of the polygon, in exact integers, or the mean over a
    walk around it if the polygon has no area.

    Args:
        masks: (M, H, W) bool.

    Returns:
        The borders, on the masks' device. An instance without pixels has no points and the
        centre (0, 0).

    Raises:
        ValueError: masks of another shape.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must be (M, H, W), got {tuple(masks.shape)}")
    # Parts are found run by run, one after the other: a task for the CPU.
    find = find_compiled("find_borders", torch.device("cpu")) or _find_borders
    found = find(masks.detach().to("cpu", torch.bool))
    return Borders(*(part.to(masks.device) for part in found))


def link_borders(borders: Borders) -> tuple[Tensor, Tensor]:
    """Edges between border points that touch; a single point is an edge to itself.

    These are the edges of the polygon around each instance, and a few more within it.

    Args:
        borders: of M instances, in the order of `find_borders`.

    Returns:
        (E, 2) long indices of border points, instance by instance, and (M + 1,) long offsets;
        instance m owns the edges `offsets[m]:offsets[m + 1]`.
    """
    points = borders.points.long()
    lengths = borders.offsets.diff()
    owner = torch.repeat_interleave(lengths)  # (B,)
    if len(points) == 0:
        return points.new_zeros((0, 2)), borders.offsets
    lowest = points.amin(dim=0) - 1
    width, height = points.amax(dim=0) - lowest + 2
    # Pixels around each instance, numbered over all instances: ascending, as points are sorted.
    numbers = (owner * height + points[:, 1] - lowest[1]) * width + points[:, 0] - lowest[0]
    index = torch.arange(len(points), device=points.device)
    alone = index[(lengths == 1)[owner]]
    parts = [torch.stack([alone, alone], dim=1)]
    for step_x, step_y in ((1, 0), (-1, 1), (0, 1), (1, 1)):
        wanted = numbers + step_y * width + step_x
        found = torch.searchsorted(numbers, wanted).clamp(max=len(points) - 1)
        linked = numbers[found] == wanted
        parts.append(torch.stack([index[linked], found[linked]], dim=1))
    edges = torch.cat(parts)
    edges = edges[owner[edges[:, 0]].argsort(stable=True)]
    counts = torch.bincount(owner[edges[:, 0]], minlength=len(lengths))
    return edges, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _find_borders(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plain version: OpenCV traces the borders. Points, offsets, centres."""
    points = [torch.zeros((0, 2), dtype=torch.int32)]
    centers = torch.zeros((len(masks), 2))
    for center, mask in zip(centers, masks.contiguous().numpy().view(np.uint8), strict=True):
        walk = _trace_largest_part(mask)
        center[:] = torch.tensor(_find_centroid(walk))
        pixels = np.unique(walk[:, 1] * mask.shape[1] + walk[:, 0])
        y, x = np.divmod(pixels, max(1, mask.shape[1]))
        points.append(torch.from_numpy(np.stack([x, y], axis=1).astype(np.int32)))
    offsets = torch.tensor([len(part) for part in points]).cumsum(0)
    return torch.cat(points), offsets, centers


@register_fake("find_borders")
def _shape_borders(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_points = torch.library.get_ctx().new_dynamic_size()
    return (
        masks.new_empty((num_points, 2), dtype=torch.int32),
        masks.new_empty((len(masks) + 1,), dtype=torch.int64),
        masks.new_empty((len(masks), 2), dtype=torch.float32),
    )


def _trace_largest_part(mask: np.ndarray) -> np.ndarray:
    """Walk around the largest part of a mask (H, W) uint8: (B, 2) int64, pixels may repeat."""
    if not mask.any():
        return np.zeros((0, 2), dtype=np.int64)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    walks = [contour[:, 0].astype(np.int64) for contour in contours]
    return max(walks, key=lambda walk: abs(_cross_with_previous(walk).sum()))


def _find_centroid(walk: np.ndarray) -> tuple[int, int]:
    """Centroid of the polygon with corners (B, 2), truncated to whole pixels."""
    cross = _cross_with_previous(walk)
    double_area = int(cross.sum())
    if double_area != 0:
        sums = (cross[:, None] * (walk + np.roll(walk, 1, axis=0))).sum(axis=0)
        x, y = sums // (3 * double_area)
    else:
        x, y = walk.sum(axis=0) // max(1, len(walk))
    return int(x), int(y)


def _cross_with_previous(walk: np.ndarray) -> np.ndarray:
    before = np.roll(walk, 1, axis=0)
    return walk[:, 0] * before[:, 1] - walk[:, 1] * before[:, 0]
