"""Checks of a SOLO model's grids and scale ranges against the sizes and places of objects.

Cells are claimed as in training, with two approximations: an object's mass centre is its box's
centre, so that masks need not be read, and each image is padded alone, not with its batch.

Legend: N images, L levels, M objects, R rows (object, cell), S grid side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, inf, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch

from instancezoo.doctor.context import Context, DatasetFacts, InputSize
from instancezoo.doctor.findings import Finding, ok, warning
from instancezoo.modeling.levels import level_offsets, match_scale_ranges

from .targets import GridSpec, claim_cells, find_last_claims

MAX_UNCAUGHT_SHARE = 0.01
# Share of a level's objects (when a grid is proposed), or of all (when one is checked), whose cells
# may all belong to others.
MAX_LOST_SHARE = 0.03
OVERLAP, OPEN_END = 2.0, 2048  # of the published ranges
MIN_STEP = 1.25  # smallest ratio of a range's lower limit to that of the range before
# Grid sides to choose from; the published ones are 12 to 40. SOLO has S * S mask channels.
SIDES = (8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64)


class PlacedObjects(NamedTuple):
    """Objects at the network's input, of each image in annotation order."""

    boxes: np.ndarray  # (M, 4) float XYXY in pixels
    image: np.ndarray  # (M,) int
    canvases: np.ndarray  # (N, 2) int, width and height of each image with its padding

    @property
    def sizes(self) -> np.ndarray:
        """(M,) root of the box area in pixels."""
        return np.sqrt(np.prod(np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0), axis=1))

    def select(self, chosen: np.ndarray) -> PlacedObjects:
        """The objects that a (M,) bool array chooses."""
        return PlacedObjects(self.boxes[chosen], self.image[chosen], self.canvases)


@dataclass(frozen=True)
class GridFit:
    """Shares of objects."""

    caught: np.ndarray  # (L,) of all: in each level's range
    lost: np.ndarray  # (L,) of the level's: all their cells are taken by others
    cut: np.ndarray  # (L,) of the level's: some of their cells are taken by others
    uncaught: float  # of all: in no range
    hidden: float  # of all: without a cell of their own on any level
    num_objects: int

    @property
    def is_good(self) -> bool:
        """If True, nearly all objects have a level and a cell.

        Levels without objects are no fault: in data of small objects only fine levels have any.
        """
        return self.uncaught <= MAX_UNCAUGHT_SHARE and self.hidden <= MAX_LOST_SHARE

    def __str__(self) -> str:
        shares = zip(self.caught, self.lost, self.cut, strict=True)
        levels = " | ".join(f"{a:.1%} ({b:.1%}, {c:.1%})" for a, b, c in shares)
        return (
            f"objects by level (of these, all or some cells lost to others): {levels}; "
            f"{round(self.uncaught * self.num_objects)} of {self.num_objects} in no range, "
            f"{self.hidden:.1%} without a cell on any level"
        )


def check_grids(context: Context, key: str) -> Iterator[Finding]:
    """Report objects without a level or without a cell, and propose grids that fit better.

    Args:
        context: with a model that has a grid, else there are no findings.
        key: of the config node that holds the grid's keys.
    """
    model: Any = context.model
    grid = getattr(model, "grid", None)
    if not isinstance(grid, GridSpec):
        return
    divisor = max(1, model.backbone.size_divisibility)
    objects = place_objects(context.train, context.train_size, divisor)
    if not len(objects.boxes):
        return
    fit = measure_grid(objects, grid)
    better = propose_grid(objects, model.level_strides, grid.center_fraction)
    overrides = format_overrides(key, better)
    if fit.is_good:
        yield ok(f"{fit}. Grids that share the objects among all levels: {overrides}")
        return
    advice, expected = [], measure_grid(objects, better)
    if overrides != format_overrides(key, grid):
        advice.append(f"set {overrides} for {expected}")
    if not expected.is_good:
        advice.append(
            f"raise {context.train_size.keys}: feature maps of strides "
            f"{model.level_strides} are too coarse for objects this small and dense"
        )
    yield warning(str(fit), "; then ".join(advice))


def place_objects(datasets: Sequence[DatasetFacts], size: InputSize, divisor: int) -> PlacedObjects:
    """Join the objects of data sets at the network's input size; `divisor` of padded sides."""
    boxes, owners, shapes, num_images = [np.zeros((0, 4))], [np.zeros(0, np.int64)], [], 0
    for facts in datasets:
        rows = {image["id"]: num_images + i for i, image in enumerate(facts.clean["images"])}
        boxes.append(facts.resize_boxes(size))
        owners.append(np.array([rows[a["image_id"]] for a in facts.objects], dtype=np.int64))
        shapes.append(size.resize(facts.image_sizes)[:, ::-1])
        num_images += len(rows)
    canvases = -(-np.concatenate([np.zeros((0, 2), np.int64), *shapes]) // divisor) * divisor
    return PlacedObjects(np.concatenate(boxes), np.concatenate(owners), canvases)


def measure_grid(objects: PlacedObjects, grid: GridSpec) -> GridFit:
    """How well a grid serves objects, of which there must be one at least."""
    on_level = match_levels(objects.sizes, grid.scale_ranges)  # (M, L)
    claimed, kept = count_cells(objects, grid)
    counts = np.maximum(on_level.sum(axis=0), 1)
    return GridFit(
        caught=on_level.mean(axis=0),
        lost=(on_level & (kept == 0)).sum(axis=0) / counts,
        cut=((kept > 0) & (kept < claimed)).sum(axis=0) / counts,
        uncaught=float((~on_level.any(axis=1)).mean()),
        hidden=float((kept == 0).all(axis=1).mean()),
        num_objects=len(kept),
    )


def match_levels(sizes: np.ndarray, scale_ranges: Sequence[Sequence[float]]) -> np.ndarray:
    """(M, L) bool: levels that predict objects of the sizes (M,), in fp32 as in training."""
    ranges = torch.tensor(scale_ranges, dtype=torch.float32).view(-1, 2)
    return match_scale_ranges(torch.from_numpy(sizes).float(), ranges).numpy()


def count_cells(objects: PlacedObjects, grid: GridSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cells of each object on each level; the last object that claims a cell keeps it.

    Returns:
        (M, L) and (M, L) int, cells claimed and cells kept.
    """
    boxes, image = torch.from_numpy(objects.boxes).float(), torch.from_numpy(objects.image)
    # Mass centres are means of pixel indices: half a pixel less than coordinates.
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5
    canvas = torch.from_numpy(objects.canvases)[image].float()
    level, owner, cell = claim_cells(boxes, centers, canvas, grid).unbind(dim=1)
    is_kept = find_last_claims(image[owner] * level_offsets(grid.num_grids)[-1] + cell)
    num_levels = len(grid.num_grids)
    place = owner * num_levels + level
    claimed, kept = (
        torch.bincount(part, minlength=len(boxes) * num_levels).view(-1, num_levels).numpy()
        for part in (place, place[is_kept])
    )
    return claimed, kept


def propose_grid(
    objects: PlacedObjects, level_strides: Sequence[int], center_fraction: float
) -> GridSpec:
    """Scale ranges and grid sides for objects, of which there must be one at least."""
    ranges = propose_scale_ranges(objects.sizes, level_strides)
    longest = float(np.median(objects.canvases.max(axis=1)))
    sides = [
        propose_num_grid(objects.select(chosen), ceil(longest / stride), center_fraction)
        for chosen, stride in zip(match_levels(objects.sizes, ranges).T, level_strides, strict=True)
    ]
    return GridSpec(sides, ranges, center_fraction)


def propose_scale_ranges(sizes: np.ndarray, level_strides: Sequence[int]) -> list[list[int]]:
    """Ranges that share the objects evenly among levels, small ones first.

    As in the published ranges neighbours overlap by a factor of 2; by less where that would put an
    object on three levels. A level gets no object that is smaller than its stride, so if all are
    small the first levels get more.

    Args:
        sizes: (M,) pixels.
        level_strides: L, ascending.

    Returns:
        L pairs, lowest and highest size; the first from 1, the last open-ended.
    """
    borders = [1.0]
    for level, stride in enumerate(level_strides[1:], start=1):
        rest = sizes[sizes > borders[-1]]
        fair = float(np.quantile(rest, 1 / (len(level_strides) - level + 1))) if len(rest) else 0.0
        borders.append(max(fair, stride, borders[-1] * MIN_STEP))
    reach = sqrt(OVERLAP)
    lows = [max(b / reach, sqrt(a * b)) for a, b in pairwise(borders)]
    highs = [min(a * reach, sqrt(a * b)) for a, b in pairwise([*borders[1:], inf])]
    last = max(OPEN_END, ceil(max(sizes.max(initial=0), borders[-1] * OVERLAP)))
    ends = zip([1, *map(floor, lows)], [*map(ceil, highs), last], strict=True)
    return [[low, high] for low, high in ends]


def propose_num_grid(objects: PlacedObjects, largest: int, center_fraction: float) -> int:
    """Smallest side at which few objects of a level lose all cells, else the one with fewest such.

    No side exceeds `largest`, the side of the feature map: a finer grid would only interpolate.
    """
    shares = {}
    for side in [*(side for side in SIDES if side < largest), min(largest, SIDES[-1])]:
        kept = count_cells(objects, GridSpec([side], [[0, inf]], center_fraction))[1]
        shares[side] = float((kept == 0).mean()) if len(kept) else 0.0
        if shares[side] <= MAX_LOST_SHARE:
            return side
    return min(shares, key=shares.__getitem__)


def format_overrides(key: str, grid: GridSpec) -> str:
    """A grid as `KEY "VALUE"` pairs for a command line."""
    ranges = [list(pair) for pair in grid.scale_ranges]
    return f'{key}.NUM_GRIDS "{list(grid.num_grids)}" {key}.FPN_SCALE_RANGES "{ranges}"'
