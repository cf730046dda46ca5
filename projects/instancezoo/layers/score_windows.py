"""Mask scores in a window of a grid each, enlarged to the image: only what a window reaches costs.

A pixel of the image is a bilinear mean of four cells. Where all four are on one side of the
threshold, so is the pixel; the others, along contours, are computed. Outside its window a mask's
scores are 0.

Legend: M masks, D prototypes, h w grid size, H W image size, S cells of all windows, B cells of all
windows with a border of one, G groups of pixels between the same four cells, P pixels, E ends of
runs, U unsure pixels.

Windows are (M, 4) long: first row, first column, end of the rows, end of the columns. Values of a
window lie row by row, those of all windows one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp

import torch
from torch import Tensor

from instancezoo.layers.extension import find_compiled, register_fake
from instancezoo.layers.resize_chain import Resize, weigh_samples
from instancezoo.layers.rle import cancel_pairs
from instancezoo.layers.runs import expand_counts, split_counts, split_ends

# How far rounding may move a pixel of scores in [0, 1]: both interpolations of torch's resize, with
# or without fused multiplications, and ours.
ROUNDING = 4 * torch.finfo(torch.float32).eps
# Pixels computed at once by the plain version; more leave a processor's cache.
_PIXELS_PER_CHUNK = 2**18


@dataclass(frozen=True)
class PixelAxis:
    """Pixels along one axis, each the mean of a cell of the grid and the next one.

    Attributes:
        cells: (H,) long, the first of both, ascending.
        weights: (H, 2) fp32, of both; 0 for a cell beyond the grid.
    """

    cells: Tensor
    weights: Tensor


def weigh_axes(
    grid: tuple[int, int], height: int, width: int, device: torch.device
) -> tuple[PixelAxis, PixelAxis]:
    """Rows and columns of a bilinear resize (`align_corners=False`), with torch's own weights.

    Args:
        grid: h and w.
        height, width: size of the image in pixels.
        device: that of the scores.
    """
    by_rows, by_columns = weigh_samples(grid, [Resize(height, width)], device)
    return _read_weights(by_rows), _read_weights(by_columns)


def _read_weights(by_cell: Tensor) -> PixelAxis:
    """(H, h) weights of all cells, of which at most two neighbours are not 0."""
    cells = (by_cell != 0).to(torch.uint8).argmax(dim=1)  # (H,)
    beyond = by_cell.new_zeros(len(by_cell), 1)
    pairs = torch.stack([cells, cells + 1], dim=1)  # (H, 2)
    return PixelAxis(cells, torch.cat([by_cell, beyond], dim=1).gather(1, pairs))


def find_windows(boxes: Tensor, grid: tuple[int, int], pad: float) -> Tensor:
    """Cells p with x1 - pad <= p < x2 + pad, and the same of the rows (YOLACT, section 3).

    Args:
        boxes: (M, 4) XYXY in cells, of any order and not clipped; one with a coordinate that is not
            finite has no cell.
        grid: h and w.
        pad: in cells.

    Returns:
        (M, 4) long, windows within the grid.
    """
    boxes = boxes.detach().float()
    size = boxes.new_tensor(grid).flip(0)  # w, h
    first = torch.minimum(boxes[:, :2], boxes[:, 2:]) - pad  # (M, 2) x, y
    stop = torch.maximum(boxes[:, :2], boxes[:, 2:]) + pad
    first = torch.minimum(first.ceil().clamp(min=0), size)
    stop = torch.minimum(stop.ceil(), size)
    exists = (first < stop).all(dim=1) & boxes.isfinite().all(dim=1)
    windows = torch.cat([first.flip(1), stop.flip(1)], dim=1)
    return torch.where(exists[:, None], windows, 0.0).long()


def multiply_in_windows(prototypes: Tensor, coefficients: Tensor, windows: Tensor) -> Tensor:
    """Sums of prototypes, weighted for each mask, in the window of each.

    Args:
        prototypes: (D, h, w) fp32.
        coefficients: (M, D) fp32.
        windows: (M, 4) long, within the grid.

    Returns:
        (S,) fp32.
    """
    multiply = find_compiled("multiply_in_windows", prototypes.device) or _multiply_in_windows
    products: Tensor = multiply(prototypes, coefficients, windows)
    return products


def find_score_runs(
    scores: Tensor, windows: Tensor, rows: PixelAxis, columns: PixelAxis, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Enlarge scores and find the runs of pixels above the threshold.

    Args:
        scores: (S,) fp32, values in [0, 1]; NaN is not above.
        windows: (M, 4) long, within the grid.
        rows, columns: from `weigh_axes`.
        threshold: in [0, 1).

    Returns:
        Positions (E,) long and lengths (M,) long of the runs, as `layers/runs.py` has them; and
        (U, 3) long, mask, row and column of pixels within `ROUNDING` of the threshold, whose side
        depends on how a processor rounds. The runs have them by the sum of rounded products.
    """
    find = find_compiled("find_score_runs", scores.device) or _find_score_runs
    axes = rows.cells, rows.weights, columns.cells, columns.weights
    runs: tuple[Tensor, Tensor, Tensor] = find(scores, windows, *axes, threshold, ROUNDING)
    return runs


def locate_cells(windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, row and column (S,) long each of all cells of windows (M, 4)."""
    heights, widths = (windows[:, 2:] - windows[:, :2]).unbind(1)
    owners, within = expand_counts(heights * widths)
    # `index_select` is several times faster than an index in brackets.
    top, left, width = (
        part.contiguous().index_select(0, owners) for part in (*windows.T[:2], widths)
    )
    y = within.div(width, rounding_mode="floor")
    return owners, top + y, left + within - y * width


def _multiply_in_windows(prototypes: Tensor, coefficients: Tensor, windows: Tensor) -> Tensor:
    """The plain version of the operator."""
    owners, y, x = locate_cells(windows)
    cells = y * prototypes.shape[2] + x
    by_cell = prototypes.flatten(1).T.contiguous()  # (h*w, D)
    size = max(1, _PIXELS_PER_CHUNK // max(1, by_cell.shape[1]))
    products = prototypes.new_empty(len(cells))
    parts = zip(products.split(size), cells.split(size), owners.split(size), strict=True)
    for part, cell, owner in parts:
        factors = coefficients.index_select(0, owner)
        torch.sum(by_cell.index_select(0, cell).mul_(factors), dim=1, out=part)
    return products


def _find_score_runs(
    scores: Tensor,
    windows: Tensor,
    row_cells: Tensor,
    row_weights: Tensor,
    column_cells: Tensor,
    column_weights: Tensor,
    threshold: float,
    margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain version of the operator."""
    rows, columns = PixelAxis(row_cells, row_weights), PixelAxis(column_cells, column_weights)
    num_pixels = len(row_cells) * len(column_cells)
    groups = _group_pixels(scores, windows, rows, columns)
    least, most = groups.corners.amin(dim=0), groups.corners.amax(dim=0)  # NaN stays
    is_above = least > threshold + margin
    counts = groups.height * groups.width
    unknown = (~(is_above | (most < threshold - margin)) & (counts > 0)).nonzero().squeeze(1)
    # A mean of values up to a power of two does not exceed it, however it is rounded.
    is_flat = (most <= threshold) & (frexp(threshold)[0] in (0.0, 0.5))
    ends = [_find_known_ends(groups, is_above, windows, len(row_cells), num_pixels)]
    unsure = [windows.new_zeros(0, 3)]
    parts = split_counts(counts[unknown], _PIXELS_PER_CHUNK)
    for chosen in unknown.split(parts) if parts else ():
        some = groups.select(chosen)
        pixels = _compute_pixels(some, rows, columns)
        ends.append(_find_ends(some, pixels, threshold, len(row_cells), num_pixels))
        near = ((pixels.values - threshold).abs() <= margin).nonzero().squeeze(1)
        near = near[~is_flat[chosen[pixels.group[near]]]]
        owner = some.owner[pixels.group[near]]
        unsure.append(torch.stack([owner, pixels.y[near], pixels.x[near]], dim=1))
    return (
        *split_ends(cancel_pairs(torch.cat(ends).sort().values), len(windows), num_pixels),
        torch.cat(unsure),
    )


@dataclass(frozen=True)
class _Groups:
    """Groups of pixels between the same four cells; some have no pixels.

    Attributes:
        owner: (G,) long, mask.
        corners: (4, G) scores of the upper left, upper right, lower left and lower right cell.
        y, x: (G,) long, row and column of the first pixel.
        height, width: (G,) long, pixels down and across.
    """

    owner: Tensor
    corners: Tensor
    y: Tensor
    x: Tensor
    height: Tensor
    width: Tensor

    def select(self, chosen: Tensor) -> _Groups:
        return _Groups(*(part.index_select(-1, chosen) for part in vars(self).values()))


@dataclass(frozen=True)
class _Pixels:
    """Pixels of groups, column by column in each.

    Attributes:
        values: (P,)
        group: (P,) long.
        y, x: (P,) long, row and column in the image.
        is_first, is_last: (P,) bool, of the group's rows.
    """

    values: Tensor
    group: Tensor
    y: Tensor
    x: Tensor
    is_first: Tensor
    is_last: Tensor


def _group_pixels(scores: Tensor, windows: Tensor, rows: PixelAxis, columns: PixelAxis) -> _Groups:
    """Groups of all windows, row by row in each; those at its border reach one cell beyond it."""
    bordered = windows + windows.new_tensor([-1, -1, 1, 1])
    heights, widths = (bordered[:, 2:] - bordered[:, :2]).unbind(1)  # (M,)
    # Number of the cell (0, 0) of the grid if all cells of the bordered windows lie in one row.
    starts = (heights * widths).cumsum(0) - heights * widths
    starts = starts - bordered[:, 0] * widths - bordered[:, 1]
    owner, y, x = locate_cells(windows)
    padded = scores.new_zeros(int((heights * widths).sum()))  # (B,)
    padded[starts.index_select(0, owner) + y * widths.index_select(0, owner) + x] = scores
    bordered[:, 2:] -= 1  # a group is named by its upper left cell
    owner, y, x = locate_cells(bordered)
    width = widths.index_select(0, owner)
    upper = starts.index_select(0, owner) + y * width + x
    corners = [padded.index_select(0, upper + step) for step in (0, 1, width, width + 1)]
    top, left = (torch.searchsorted(a.cells, cell) for a, cell in ((rows, y), (columns, x)))
    bottom, right = (
        torch.searchsorted(a.cells, cell, right=True) for a, cell in ((rows, y), (columns, x))
    )
    return _Groups(owner, torch.stack(corners), top, left, bottom - top, right - left)


def _compute_pixels(groups: _Groups, rows: PixelAxis, columns: PixelAxis) -> _Pixels:
    group, within = expand_counts(groups.height * groups.width)
    height = groups.height.index_select(0, group)
    across = within.div(height, rounding_mode="floor")
    down = within - across * height
    y = groups.y.index_select(0, group) + down
    x = groups.x.index_select(0, group) + across
    left, right = (weight.index_select(0, x) for weight in columns.weights.unbind(1))
    top, bottom = (weight.index_select(0, y) for weight in rows.weights.unbind(1))
    corners = [corner.index_select(0, group) for corner in groups.corners]
    # Torch interpolates along rows first, then between them.
    upper = corners[0] * left + corners[1] * right
    lower = corners[2] * left + corners[3] * right
    return _Pixels(upper * top + lower * bottom, group, y, x, down == 0, down + 1 == height)


def _find_ends(
    groups: _Groups, pixels: _Pixels, threshold: float, height: int, num_pixels: int
) -> Tensor:
    """Ends of the runs in each group's columns, see `encode_ends`; at borders they are in pairs."""
    inside = pixels.values > threshold
    changes = torch.ones_like(inside)
    changes[1:] = inside[1:] != inside[:-1]
    begins = (inside & (changes | pixels.is_first)).nonzero().squeeze(1)
    stops = (inside & (changes.roll(-1) | pixels.is_last)).nonzero().squeeze(1)
    ends = []
    for chosen, step in ((begins, 0), (stops, 1)):
        owner = groups.owner[pixels.group[chosen]]
        number = pixels.x[chosen] * height + pixels.y[chosen] + step
        ends.append(owner * (num_pixels + 1) + number)
    return torch.cat(ends)


def _find_known_ends(
    groups: _Groups, is_above: Tensor, windows: Tensor, height: int, num_pixels: int
) -> Tensor:
    """Ends of the runs of groups that are above the threshold as a whole."""
    index = is_above.nonzero().squeeze(1)
    window = windows[groups.owner[index]]
    to_next_row = window[:, 3] - window[:, 1] + 1
    # The first and the last row of a window's groups have cells of 0: they are never above.
    begins = index[~is_above[index - to_next_row]]
    stops = index[~is_above[index + to_next_row]]
    ends = []
    for some, is_stop in ((groups.select(begins), 0), (groups.select(stops), 1)):
        group, within = expand_counts(some.width)
        y = (some.y + is_stop * some.height)[group]
        ends.append(some.owner[group] * (num_pixels + 1) + (some.x[group] + within) * height + y)
    return torch.cat(ends)


@register_fake("multiply_in_windows")
def _shape_products(prototypes: Tensor, coefficients: Tensor, windows: Tensor) -> Tensor:
    return prototypes.new_empty((torch.library.get_ctx().new_dynamic_size(),))


@register_fake("find_score_runs")
def _shape_runs(
    scores: Tensor,
    windows: Tensor,
    row_cells: Tensor,
    row_weights: Tensor,
    column_cells: Tensor,
    column_weights: Tensor,
    threshold: float,
    margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    num_ends, num_unsure = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    return (
        windows.new_empty((num_ends,)),
        windows.new_empty((len(windows),)),
        windows.new_empty((num_unsure, 3)),
    )
