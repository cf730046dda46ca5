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

from instancezoo.layers.budget import DEFAULT_BUDGET
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
    y = within.div(widths[owners], rounding_mode="floor")
    x = within - y * widths[owners]
    return owners, windows[owners, 0] + y, windows[owners, 1] + x


def _multiply_in_windows(prototypes: Tensor, coefficients: Tensor, windows: Tensor) -> Tensor:
    """The plain version of the operator."""
    owners, y, x = locate_cells(windows)
    cells = y * prototypes.shape[2] + x
    by_cell = prototypes.flatten(1).T.contiguous()  # (h*w, D)
    size = max(1, _PIXELS_PER_CHUNK // max(1, by_cell.shape[1]))
    products = prototypes.new_empty(len(cells))
    parts = zip(products.split(size), cells.split(size), owners.split(size), strict=True)
    for part, cell, owner in parts:
        torch.sum(by_cell[cell].mul_(coefficients[owner]), dim=1, out=part)
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
    least, most = groups.corners.amin(dim=1), groups.corners.amax(dim=1)  # NaN stays
    is_above = least > threshold + margin
    counts = groups.size.prod(dim=1)
    unknown = (~(is_above | (most < threshold - margin)) & (counts > 0)).nonzero().squeeze(1)
    ends = [_find_known_ends(groups, is_above, windows, len(row_cells), num_pixels)]
    unsure = [windows.new_zeros(0, 3)]
    parts = split_counts(counts[unknown], _PIXELS_PER_CHUNK)
    for chosen in unknown.split(parts) if parts else ():
        some = groups.select(chosen)
        pixels = _compute_pixels(some, rows, columns)
        inside = pixels.values > threshold
        ends.append(_find_ends(some, pixels, inside, len(row_cells), num_pixels))
        # A mean of values up to a power of two does not exceed it, however it is rounded.
        is_flat = (most[chosen] <= threshold) & (frexp(threshold)[0] in (0.0, 0.5))
        is_near = ((pixels.values - threshold).abs() <= margin) & ~is_flat[pixels.group]
        place = some.first[pixels.group] + torch.stack([pixels.y, pixels.x], dim=1)  # (P, 2)
        unsure.append(torch.cat([some.owner[pixels.group, None], place], dim=1)[is_near])
    return (
        *split_ends(cancel_pairs(torch.cat(ends).sort().values), len(windows), num_pixels),
        torch.cat(unsure),
    )


@dataclass(frozen=True)
class _Groups:
    """Groups of pixels between the same four cells; some have no pixels.

    Attributes:
        owner: (G,) long, mask.
        corners: (G, 4) scores of the upper left, upper right, lower left and lower right cell.
        first: (G, 2) long, row and column of the first pixel.
        size: (G, 2) long, pixels down and across.
    """

    owner: Tensor
    corners: Tensor
    first: Tensor
    size: Tensor

    def select(self, chosen: Tensor) -> _Groups:
        return _Groups(
            self.owner[chosen], self.corners[chosen], self.first[chosen], self.size[chosen]
        )


@dataclass(frozen=True)
class _Pixels:
    """Pixels of groups, column by column in each.

    Attributes:
        values: (P,)
        group: (P,) long.
        y, x: (P,) long, place in the group.
    """

    values: Tensor
    group: Tensor
    y: Tensor
    x: Tensor


def _group_pixels(
    scores: Tensor, windows: Tensor, rows: PixelAxis, columns: PixelAxis
) -> _Groups:
    """Groups of all windows, row by row in each; those at its border reach one cell beyond it."""
    bordered = windows + windows.new_tensor([-1, -1, 1, 1])
    sides = bordered[:, 2:] - bordered[:, :2]  # (M, 2)
    starts = sides.prod(dim=1).cumsum(0) - sides.prod(dim=1)
    owners, y, x = locate_cells(windows)
    padded = scores.new_zeros(int(sides.prod(dim=1).sum()))  # (B,)
    inner = (y - bordered[owners, 0]) * sides[owners, 1] + x - bordered[owners, 1]
    padded[starts[owners] + inner] = scores
    bordered[:, 2:] -= 1  # a group is named by its upper left cell
    owner, y, x = locate_cells(bordered)
    width = sides[owner, 1]
    upper = starts[owner] + (y - bordered[owner, 0]) * width + x - bordered[owner, 1]
    corner = torch.stack([upper, upper + 1, upper + width, upper + width + 1], dim=1)  # (G, 4)
    place = [
        torch.searchsorted(axis.cells, torch.stack([cell, cell + 1]))
        for axis, cell in ((rows, y), (columns, x))
    ]
    first = torch.stack([place[0][0], place[1][0]], dim=1)
    stop = torch.stack([place[0][1], place[1][1]], dim=1)
    return _Groups(owner, padded[corner], first, stop - first)


def _compute_pixels(groups: _Groups, rows: PixelAxis, columns: PixelAxis) -> _Pixels:
    group, within = expand_counts(groups.size.prod(dim=1))
    heights = groups.size[group, 0]
    x = within.div(heights, rounding_mode="floor")
    y = within - x * heights
    # Torch interpolates along rows first, then between them.
    left, right = columns.weights[groups.first[group, 1] + x].unbind(1)
    top, bottom = rows.weights[groups.first[group, 0] + y].unbind(1)
    upper_left, upper_right, lower_left, lower_right = groups.corners[group].unbind(1)
    upper = upper_left * left + upper_right * right
    lower = lower_left * left + lower_right * right
    return _Pixels(upper * top + lower * bottom, group, y, x)


def _find_ends(
    groups: _Groups, pixels: _Pixels, inside: Tensor, height: int, num_pixels: int
) -> Tensor:
    """Ends of the runs in each group's columns, see `encode_ends`; at borders they are in pairs."""
    group, y = pixels.group, pixels.y
    number = (groups.first[group, 1] + pixels.x) * height + groups.first[group, 0] + y
    number += groups.owner[group] * (num_pixels + 1)
    changes = torch.ones_like(inside)
    changes[1:] = inside[1:] != inside[:-1]
    begins = inside & (changes | (y == 0))
    stops = inside & (changes.roll(-1) | (y + 1 == groups.size[group, 0]))
    return torch.cat([number[begins], number[stops] + 1])


def _find_known_ends(
    groups: _Groups, is_above: Tensor, windows: Tensor, height: int, num_pixels: int
) -> Tensor:
    """Ends of the runs of groups that are above the threshold as a whole."""
    below = windows[groups.owner, 3] - windows[groups.owner, 1] + 1  # groups to the one below
    index = is_above.nonzero().squeeze(1)
    width = below[index]
    # The first and the last row of a window's groups have cells of 0: they are never above.
    begins, stops = index[~is_above[index - width]], index[~is_above[index + width]]
    ends = []
    for chosen, is_stop in ((begins, 0), (stops, 1)):
        some = groups.select(chosen)
        group, within = expand_counts(some.size[:, 1])
        x = some.first[group, 1] + within
        y = some.first[group, 0] + is_stop * some.size[group, 0]
        ends.append(some.owner[group] * (num_pixels + 1) + x * height + y)
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
