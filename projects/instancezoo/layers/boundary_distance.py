"""Distance of every pixel of an object to the nearest pixel outside it.

Legend: N maps, H W map size, M objects of a map, P pixels that are still searched for.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@torch.no_grad()
def measure_boundary_distance(labels: Tensor) -> Tensor:
    """Euclidean distance to the nearest pixel with another label; what is beyond the map is none.

    OpenCV works on the CPU, within the box of one object after the other; on another device all
    maps are worked on together, in a number of steps that is the largest distance.

    Args:
        labels: (N, H, W) long, 0 for pixels of no object.

    Returns:
        (N, H, W) fp32, 0 outside objects, `inf` for an object that fills its map.
    """
    if labels.numel() == 0:
        return torch.zeros(labels.shape, device=labels.device)
    if labels.device.type == "cpu":
        return torch.from_numpy(np.stack([_measure_by_opencv(ids) for ids in labels.numpy()]))
    return _measure_by_steps(labels)


def _measure_by_opencv(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """(H, W) on the CPU -> fp32."""
    distances = np.zeros(labels.shape, np.float32)
    for label, (y0, x0, y1, x1) in zip(*_find_boxes(labels), strict=True):
        # One pixel more on each side, where the map has one: it is outside.
        window = (slice(max(0, y0 - 1), y1 + 1), slice(max(0, x0 - 1), x1 + 1))
        mask = labels[window] == label
        if mask.all():
            distances[window] = np.inf
            continue
        near = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # OpenCV rounds the root; squares of distances are whole numbers.
        distances[window][mask] = np.sqrt(np.rint(np.square(near[mask])))
    return distances


def _find_boxes(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels (M,) of a map and their boxes (M, 4): first row and column, those after the last."""
    size = int(labels.max()) + 1
    boxes = np.zeros((size, 4), np.int64)
    for axis, image in enumerate((labels, labels.T)):
        # Pixels come in the order of their rows: the last one that is written has the end.
        places, across = image.nonzero()
        owners = image[places, across]
        boxes[owners, axis + 2] = places + 1
        boxes[owners[::-1], axis] = places[::-1]
    found = boxes[:, 2].nonzero()[0]
    return found, boxes[found]


def _measure_by_steps(labels: Tensor) -> Tensor:
    """(N, H, W) long -> fp32, on any device: along the columns, then along the rows."""
    _, height, width = labels.shape
    never = 2 * (height + width)
    below = _count_rows(labels, never)
    above = _count_rows(labels.flip(1), never).flip(1)
    vertical = torch.minimum(above, below).square().flatten()  # (N*H*W,)
    flat, nearest = labels.flatten(), vertical.clone()
    pixels = flat.nonzero().squeeze(1)
    columns = pixels % width
    for step in range(1, width):
        # A pixel at this step or beyond it is at least so far away.
        far = nearest[pixels] > step**2
        pixels, columns = pixels[far], columns[far]  # (P,)
        if not len(pixels):
            break
        for shift in (-step, step):
            inside = (columns + shift >= 0) & (columns + shift < width)
            here = pixels[inside]
            there = here + shift
            found = vertical[there].where(flat[there] == flat[here], 0) + step**2
            nearest[here] = torch.minimum(nearest[here], found)
    distances = nearest.float().sqrt().where(nearest < never**2, torch.inf)
    return distances.where(flat > 0, 0).view(labels.shape)


def _count_rows(labels: Tensor, never: int) -> Tensor:
    """Rows up to the nearest other label above each pixel: (N, H, W) long, `never` if none."""
    height = labels.shape[1]
    rows = torch.arange(height, device=labels.device)[:, None].expand_as(labels)
    changes = torch.full_like(labels, -never)
    changes[:, 1:] = rows[:, 1:].where(labels[:, 1:] != labels[:, :-1], -never)
    starts = changes.cummax(dim=1).values  # first row of the run that a pixel belongs to
    return (rows - starts + 1).clamp(max=never)
