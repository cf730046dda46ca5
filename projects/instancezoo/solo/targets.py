"""Which grid cells answer for which objects (SOLO, section 3.3.1), and their mask targets.

Legend: N images, L levels, M objects of all images, R rows, S grid side, K classes, H W size.
A row is one (object, cell) pair; an object that several cells answer for has several rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.modeling.levels import level_offsets, match_scale_ranges

# Most cells that an object's centre region may take on each side of its centre cell.
_REACH = 1
# OpenCV keeps interpolation weights as multiples of 1 / 2048.
_OPENCV_ONE = 2048


@dataclass(frozen=True)
class Objects:
    """Ground truth of a batch in one piece.

    Attributes:
        boxes: (M, 4) XYXY in pixels of the network input.
        classes: (M,) long.
        masks: (M, H, W) bool, padded to the batch's canvas.
        image: (M,) long, ascending.
        image_sizes: N pairs (height, width) without padding.
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor
    image: Tensor
    image_sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class GridSpec:
    """What divides the work among cells.

    Attributes:
        num_grids: L grid sides S.
        scale_ranges: L pairs, lowest and highest object size in pixels, both included.
        center_fraction: share of the box around the mass centre whose cells are positive.
    """

    num_grids: Sequence[int]
    scale_ranges: Sequence[Sequence[float]]
    center_fraction: float = 0.2


@dataclass(frozen=True)
class CellTargets:
    """Rows in the order level, object, cell, and the class of every cell.

    Attributes:
        image, level, cell, instance: (R,) long. `cell` counts within the level, row-major;
            `instance` counts the objects of all images.
        classes: (N, cells of all levels) long; K where a cell answers for nothing.
        num_positive: (), number of distinct positive cells.
    """

    image: Tensor
    level: Tensor
    cell: Tensor
    instance: Tensor
    classes: Tensor
    num_positive: Tensor


def gather_objects(ground_truth: Sequence[Instances], canvas: tuple[int, int]) -> Objects:
    """Join the objects of a batch; masks are padded with zeros at the bottom and the right.

    Args:
        ground_truth: N Instances with `gt_boxes`, `gt_classes`, `gt_masks` (BitMasks).
        canvas: height and width of the padded batch.
    """
    masks = []
    for instances in ground_truth:
        mask = instances.gt_masks.tensor.bool()
        masks.append(F.pad(mask, (0, canvas[1] - mask.shape[2], 0, canvas[0] - mask.shape[1])))
    counts = torch.tensor([len(mask) for mask in masks], device=masks[0].device)
    return Objects(
        boxes=torch.cat([instances.gt_boxes.tensor for instances in ground_truth]),
        classes=torch.cat([instances.gt_classes for instances in ground_truth]),
        masks=torch.cat(masks),
        image=torch.arange(len(masks), device=counts.device).repeat_interleave(counts),
        image_sizes=[tuple(instances.image_size) for instances in ground_truth],
    )


def find_mass_centers(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean pixel index of each mask, zeros if it is empty, and its number of pixels.

    Args:
        masks: (M, H, W) bool.

    Returns:
        (M, 2) fp32, x and y in pixels; (M,) long.
    """
    # Integer sums are exact at any size; fp32 sums of indices are not.
    columns, rows = count_pixels(masks)  # (M, W), (M, H)
    x = (columns * torch.arange(columns.shape[1], device=masks.device)).sum(dim=1)
    y = (rows * torch.arange(rows.shape[1], device=masks.device)).sum(dim=1)
    pixels = rows.sum(dim=1)
    centers = torch.stack([x, y], dim=1).double() / pixels[:, None].clamp(min=1)
    return centers.float(), pixels


def count_pixels(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground pixels of each column and of each row.

    Args:
        masks: (M, H, W) bool.

    Returns:
        (M, W) and (M, H), long.
    """
    width = masks.shape[2]
    # Eight pixels are added at once, as the bytes of one integer: some 40 times faster on a CPU.
    padded = F.pad(masks, (0, -width % 8)) if width % 8 else masks
    eights = padded.contiguous().view(torch.int64)  # (M, H, W / 8)
    columns = _sum_bytes(eights, dim=1)[:, :width]
    return columns, _sum_bytes(eights, dim=2).unflatten(1, (-1, 8)).sum(dim=2)


def _sum_bytes(eights: Tensor, dim: int) -> Tensor:
    """Sum 0/1 bytes over one dimension of (M, A, B) int64: (M, 8 * what is left of A, B) long."""
    most = 255  # more would carry over into the next byte
    sums = [part.sum(dim=dim).view(torch.uint8).long() for part in eights.split(most, dim=dim)]
    return torch.stack(sums).sum(dim=0)


def assign_cells(
    objects: Objects,
    grid: GridSpec,
    *,
    num_classes: int,
    one_object_per_cell: bool,
) -> CellTargets:
    """Find the cells around each object's mass centre on the levels of its size.

    Args:
        objects: ground truth of the batch.
        grid: see `GridSpec`.
        num_classes: K.
        one_object_per_cell: whether only the last of the objects that claim a cell keeps its row
            (SOLO), or all do (SOLOv2). The cell's class is the last one's in both.
    """
    offsets = level_offsets(grid.num_grids)
    rows = _list_rows(objects, grid)  # (R, 4) level, object, row, column
    level, instance = rows[:, 0], rows[:, 1]
    sides = torch.tensor(grid.num_grids, device=rows.device)
    cell = rows[:, 2] * sides[level] + rows[:, 3]
    image = objects.image[instance]

    # Objects come in annotation order, so the last one has the largest index.
    num_images = len(objects.image_sizes)
    position = image * offsets[-1] + torch.tensor(offsets, device=rows.device)[level] + cell
    owner = rows.new_full((num_images * offsets[-1],), -1)
    owner = owner.scatter_reduce(0, position, instance, "amax")
    classes = torch.full_like(owner, num_classes)
    is_positive = owner >= 0
    classes[is_positive] = objects.classes[owner[is_positive]]
    if one_object_per_cell:
        kept = owner[position] == instance
        image, level, cell, instance = image[kept], level[kept], cell[kept], instance[kept]
    return CellTargets(
        image, level, cell, instance, classes.view(num_images, -1), is_positive.sum()
    )


def _list_rows(objects: Objects, grid: GridSpec) -> Tensor:
    """All (level, object, grid row, grid column) that are positive, (R, 4) long, in that order."""
    boxes, (height, width) = objects.boxes.float(), objects.masks.shape[1:]
    extent = boxes[:, 2:] - boxes[:, :2]  # (M, 2) width, height
    ranges = boxes.new_tensor(grid.scale_ranges).view(-1, 2)
    on_level = match_scale_ranges(extent.prod(dim=1).clamp(min=0).sqrt(), ranges)  # (M, L)
    centers, pixels = find_mass_centers(objects.masks)  # (M, 2), (M,)
    on_level &= (pixels > 0)[:, None]

    canvas = boxes.new_tensor([width, height])
    half = 0.5 * grid.center_fraction * extent
    last = torch.tensor(grid.num_grids, device=boxes.device)[:, None] - 1  # (L, 1)
    center = _find_cell(centers / canvas, grid.num_grids)  # (M, L, 2) column, row
    low = _find_cell((centers - half) / canvas, grid.num_grids).clamp(min=0)
    high = torch.minimum(_find_cell((centers + half) / canvas, grid.num_grids), last)

    steps = torch.arange(-_REACH, _REACH + 1, device=boxes.device)
    candidates = center[..., None] + steps  # (M, L, 2, 3)
    inside = (candidates >= low[..., None]) & (candidates <= high[..., None])
    chosen = inside[:, :, 1, :, None] & inside[:, :, 0, None, :]  # (M, L, 3, 3) row, column
    chosen &= on_level[:, :, None, None]
    level, instance, row, column = chosen.transpose(0, 1).nonzero(as_tuple=True)
    row = candidates[instance, level, 1, row]
    column = candidates[instance, level, 0, column]
    return torch.stack([level, instance, row, column], dim=1)


def _find_cell(position: Tensor, num_grids: Sequence[int]) -> Tensor:
    """Cell index of relative positions (M, 2) on each level, (M, L, 2) long."""
    # parity: a floor division by 1/S in fp32, which differs from floor(position * S) on edges.
    cells = position.new_tensor([1 / side for side in num_grids])
    return torch.div(position[:, None], cells[:, None], rounding_mode="floor").long()


def reduce_masks(objects: Objects, stride: int, rule: str = "padded") -> Tensor:
    """Ground-truth masks at a map's resolution.

    Args:
        objects: ground truth of the batch.
        stride: pixels per map position, even.
        rule: "padded", the 2 x 2 rule on the canvas, or "opencv", OpenCV's resize of the mask
            without padding (see `MODEL.SOLO.TARGET_RESIZE`).

    Returns:
        (M, H / stride, W / stride) bool.

    Raises:
        ValueError: unknown rule.
    """
    if rule == "padded":
        return reduce_by_center_pixels(objects.masks, stride)
    if rule != "opencv":
        raise ValueError(f"TARGET_RESIZE is '{rule}'; it must be 'padded' or 'opencv'")
    height, width = (side // stride for side in objects.masks.shape[1:])
    reduced = []
    for index, size in enumerate(objects.image_sizes):
        masks = objects.masks[objects.image == index, : size[0], : size[1]]
        small = reduce_as_opencv(masks, stride)[:, :height, :width]
        reduced.append(F.pad(small, (0, width - small.shape[2], 0, height - small.shape[1])))
    return torch.cat(reduced)


def reduce_by_center_pixels(masks: Tensor, stride: int) -> Tensor:
    """Bilinear reduction rounded half up: two of the four central pixels of a block are enough.

    Args:
        masks: (M, H, W) bool, sides divisible by `stride`.
        stride: even.

    Returns:
        (M, H / stride, W / stride) bool.
    """
    before, after = stride // 2 - 1, stride // 2
    count = sum(
        masks[:, y::stride, x::stride].to(torch.uint8)
        for y in (before, after)
        for x in (before, after)
    )
    return count >= 2  # type: ignore[return-value, operator]


def reduce_as_opencv(masks: Tensor, stride: int) -> Tensor:
    """What `cv2.resize` (uint8, INTER_LINEAR) makes of 0/1 masks whose size need not divide.

    Args:
        masks: (M, H, W) bool.
        stride: pixels per position of the result.

    Returns:
        (M, int(H / stride + 0.5), int(W / stride + 0.5)) bool.
    """
    rows, row_weights = _list_opencv_taps(masks.shape[1], stride, masks.device)
    columns, column_weights = _list_opencv_taps(masks.shape[2], stride, masks.device)
    taps = masks[:, :, columns].int()  # (M, H, 2, w)
    horizontal = (taps * column_weights).sum(dim=2, dtype=torch.int32)  # (M, H, w)
    taps = horizontal[:, rows] >> 4  # (M, 2, h, w)
    vertical = (taps * row_weights[..., None]) >> 16
    return (vertical.sum(dim=1) + 2) >> 2 > 0


def _list_opencv_taps(size: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Source positions and integer weights of each output position, both (2, n)."""
    num_out = int(size / stride + 0.5)
    positions = torch.arange(num_out, device=device, dtype=torch.float64)
    source = ((positions + 0.5) * (size / max(num_out, 1)) - 0.5).float().clamp(0, size - 1)
    first = source.floor()
    share = source - first
    weights = torch.stack([1 - share, share]).mul(_OPENCV_ONE).round().int()
    first = first.long()
    return torch.stack([first, (first + 1).clamp(max=size - 1)]), weights
