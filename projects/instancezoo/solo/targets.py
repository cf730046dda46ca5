"""Which grid cells predict which objects (SOLO, section 3.3.1), and their mask targets.

Legend: N images, L levels, M objects of all images, R rows, S grid side, K classes, H W size.
A row is one (object, cell) pair; an object that several cells predict has several rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.double import find_double_device
from instancezoo.layers.mass_centers import find_mass_centers
from instancezoo.modeling.levels import level_offsets, match_scale_ranges
from instancezoo.modeling.objects import Objects, join_objects

RESIZE_RULES = ("padded", "opencv")
# Most cells that an object's centre region may take on each side of its centre cell.
_REACH = 1
# OpenCV keeps interpolation weights as multiples of 1 / 2048.
_OPENCV_ONE = 2048
# Bytes of masks that are reduced at once; with more the intermediates leave a processor's cache.
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class GridObjects(Objects):
    """Ground truth of a batch on the canvas that the grid divides.

    Attributes:
        canvas: height and width of the padded batch.
        resize_rule: how masks are reduced, see `reduce_masks`.
    """

    canvas: tuple[int, int]
    resize_rule: str = "padded"


@dataclass(frozen=True)
class GridSpec:
    """Which cells predict which objects.

    Attributes:
        num_grids: L grid sides S.
        scale_ranges: L pairs, smallest and largest object size in pixels, both included.
        center_fraction: epsilon, share of the box around the mass centre whose cells are positive.
        one_object_per_cell: if True, only the last of the objects that claim a cell has a mask
            loss there (SOLO), else all have (SOLOv2). The cell's class is the last one's in both.
    """

    num_grids: Sequence[int]
    scale_ranges: Sequence[Sequence[float]]
    center_fraction: float = 0.2
    one_object_per_cell: bool = True


@dataclass(frozen=True)
class CellTargets:
    """Rows in the order level, object, cell, and the class of every cell.

    Attributes:
        image, level, cell, instance: (R,) long. `cell` is an index over all levels, row-major
            within a level; `instance` counts the objects of all images.
        classes: (N, cells of all levels) long; K where a cell predicts nothing.
        num_positive: (), number of distinct positive cells.
    """

    image: Tensor
    level: Tensor
    cell: Tensor
    instance: Tensor
    classes: Tensor
    num_positive: Tensor


def gather_objects(
    ground_truth: Sequence[Instances], canvas: tuple[int, int], resize_rule: str = "padded"
) -> GridObjects:
    """Join the objects of a batch, see `join_objects` and `GridObjects`."""
    joined = vars(join_objects(ground_truth))
    return GridObjects(**joined, canvas=canvas, resize_rule=resize_rule)


def assign_cells(objects: GridObjects, grid: GridSpec, *, num_classes: int) -> CellTargets:
    """Find the cells around each object's mass centre on the levels of its size.

    Args:
        objects: ground truth of the batch.
        grid: see `GridSpec`.
        num_classes: K.
    """
    parts = [find_mass_centers(masks) for masks in objects.masks]
    centers, pixels = (torch.cat(part) for part in zip(*parts, strict=True))
    canvas = centers.new_tensor(objects.canvas).flip(0)
    rows = claim_cells(objects.boxes, centers, canvas, grid)
    rows = rows[(pixels > 0)[rows[:, 1]]]  # an empty mask has no centre
    level, instance, cell = rows.unbind(dim=1)
    image = objects.image[instance]

    num_cells = level_offsets(grid.num_grids)[-1]
    position = image * num_cells + cell
    is_last = find_last_claims(position)
    classes = position.new_full((objects.num_images * num_cells,), num_classes)
    classes[position[is_last]] = objects.classes[instance[is_last]]
    if grid.one_object_per_cell:
        image, level, cell, instance = (part[is_last] for part in (image, level, cell, instance))
    return CellTargets(
        image, level, cell, instance, classes.view(objects.num_images, -1), is_last.sum()
    )


def claim_cells(boxes: Tensor, centers: Tensor, canvas: Tensor, grid: GridSpec) -> Tensor:
    """Cells around each object's mass centre, on the levels of its size.

    Args:
        boxes: (M, 4) XYXY in pixels of the network input.
        centers: (M, 2) fp32, x and y of the mass centres in pixels.
        canvas: (2,) or (M, 2) fp32, width and height of the padded input.
        grid: see `GridSpec`.

    Returns:
        (R, 3) long, sorted: level, object, index of the cell over all levels.
    """
    extent = boxes[:, 2:].float() - boxes[:, :2].float()  # (M, 2) width, height
    ranges = extent.new_tensor(grid.scale_ranges).view(-1, 2)
    on_level = match_scale_ranges(extent.prod(dim=1).clamp(min=0).sqrt(), ranges)  # (M, L)
    half = 0.5 * grid.center_fraction * extent
    sides = torch.tensor(grid.num_grids, device=boxes.device)
    center = _find_cell(centers / canvas, grid.num_grids)  # (M, L, 2) column, row
    low = _find_cell((centers - half) / canvas, grid.num_grids).clamp(min=0)
    high = torch.minimum(_find_cell((centers + half) / canvas, grid.num_grids), sides[:, None] - 1)

    steps = torch.arange(-_REACH, _REACH + 1, device=boxes.device)
    candidates = center[..., None] + steps  # (M, L, 2, 3)
    inside = (candidates >= low[..., None]) & (candidates <= high[..., None])
    chosen = inside[:, :, 1, :, None] & inside[:, :, 0, None, :]  # (M, L, 3, 3) row, column
    chosen &= on_level[:, :, None, None]
    level, instance, row, column = chosen.transpose(0, 1).nonzero(as_tuple=True)
    row, column = candidates[instance, level, 1, row], candidates[instance, level, 0, column]
    starts = torch.tensor(level_offsets(grid.num_grids), device=boxes.device)
    return torch.stack([level, instance, starts[level] + row * sides[level] + column], dim=1)


def find_last_claims(position: Tensor) -> Tensor:
    """Mark the last of the rows that claim one cell; objects come in annotation order.

    Args:
        position: (R,) long, a number that identifies the cell.

    Returns:
        (R,) bool.
    """
    ordered, order = position.sort(stable=True)
    is_last = torch.ones_like(position, dtype=torch.bool)
    is_last[order[:-1]] = ordered[1:] != ordered[:-1]
    return is_last


def _find_cell(position: Tensor, num_grids: Sequence[int]) -> Tensor:
    """Cell index of relative positions (M, 2) on each level, (M, L, 2) long."""
    # parity: a floor division by 1/S in fp32, which differs from floor(position * S) on edges.
    cells = position.new_tensor([1 / side for side in num_grids])
    return torch.div(position[:, None], cells[:, None], rounding_mode="floor").long()


def reduce_masks(objects: GridObjects, stride: int) -> Tensor:
    """Ground-truth masks at a map's resolution, padded with zeros at the bottom and the right.

    Args:
        objects: ground truth of the batch; `resize_rule` is "padded", the 2 x 2 rule on the
            canvas, or "opencv", OpenCV's resize of the mask without padding.
        stride: pixels per map position, even.

    Returns:
        (M, H / stride, W / stride) bool.

    Raises:
        ValueError: unknown rule.
    """
    if objects.resize_rule not in RESIZE_RULES:
        raise ValueError(f"resize rule '{objects.resize_rule}' is none of {RESIZE_RULES}")
    reduce = reduce_by_center_pixels if objects.resize_rule == "padded" else reduce_as_opencv
    height, width = (side // stride for side in objects.canvas)
    reduced = objects.image.new_zeros((len(objects.image), height, width), dtype=torch.bool)
    size = max(1, _CHUNK_BYTES // max(1, objects.canvas[0] * objects.canvas[1]))
    start = 0
    for chunk in (part for masks in objects.masks for part in masks.split(size)):
        small = reduce(chunk, stride)[:, :height, :width]
        reduced[start : start + len(chunk), : small.shape[1], : small.shape[2]] = small
        start += len(chunk)
    return reduced


def reduce_by_center_pixels(masks: Tensor, stride: int) -> Tensor:
    """Bilinear reduction rounded half up: two of the four central pixels of a block are enough.

    Args:
        masks: (M, H, W) bool. Pixels that a block at the right or lower edge lacks are background.
        stride: even.

    Returns:
        (M, h, w) bool, h = H / stride rounded, blocks without their central pixels left out.
    """
    before, after = stride // 2 - 1, stride // 2
    upper, lower = (masks[:, start::stride].to(torch.uint8) for start in (before, after))
    rows = upper + F.pad(lower, (0, 0, 0, upper.shape[1] - lower.shape[1]))  # (M, h, W)
    left, right = rows[:, :, before::stride], rows[:, :, after::stride]
    return left + F.pad(right, (0, left.shape[2] - right.shape[2])) >= 2


def reduce_as_opencv(masks: Tensor, stride: int) -> Tensor:
    """Result of `cv2.resize` (uint8, INTER_LINEAR) for 0/1 masks of any size.

    Args:
        masks: (M, H, W) bool.
        stride: pixels per position of the result.

    Returns:
        (M, int(H / stride + 0.5), int(W / stride + 0.5)) bool.
    """
    rows, row_weights = _list_opencv_taps(masks.shape[1], stride, masks.device)
    columns, column_weights = _list_opencv_taps(masks.shape[2], stride, masks.device)
    pairs = masks[:, rows][..., columns]  # (M, 2, h, 2, w)
    horizontal = (pairs * column_weights).sum(dim=3, dtype=torch.int32) >> 4
    vertical = (horizontal * row_weights[..., None] >> 16).sum(dim=1)  # (M, h, w)
    return (vertical + 2) >> 2 > 0


def _list_opencv_taps(size: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Source positions and integer weights of each output position, both (2, n)."""
    num_out = int(size / stride + 0.5)
    positions = torch.arange(num_out, device=find_double_device(device), dtype=torch.float64)
    source = ((positions + 0.5) * (size / max(num_out, 1)) - 0.5).float().to(device)
    source = source.clamp(0, size - 1)
    first = source.long()
    share = source - first
    weights = torch.stack([1 - share, share]).mul(_OPENCV_ONE).round().int()
    return torch.stack([first, (first + 1).clamp(max=size - 1)]), weights
