"""Masks that are segments of one map of labels: no two share a cell (bottom-up methods).

Legend: M masks, h w size of the map, H W image size, E ends of runs, U pixels between segments.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from instancezoo.errors import check_choice
from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.resize_chain import Resize, resize_at_points
from instancezoo.layers.runs import encode_runs, fill_runs, set_pixels
from instancezoo.layers.score_windows import ROUNDING, weigh_axes

from .form import MaskForm

RESIZES = ("bilinear", "nearest")
# Products of two multiples of this are exact in fp32.
_EXACT_STEP = 2.0**-11


@dataclass(frozen=True, eq=False, repr=False)
class LabelMasks(MaskForm):
    """Segments of a map of labels over the padded network input.

    The map is enlarged to the padded input (nearest cell) and cut to the image. From there to the
    original size, either the labels are resized (nearest), or the 0/1 map of each segment is,
    bilinearly (`align_corners=False`), and pixels of 0.5 or more belong to the segment. Those equal
    torch's own resize of each map alone; but all segments are found in one pass over the image.

    Args:
        ids: (M,) long, the labels of the masks in the map, 1 or more.
        labels: (h, w) long; cells with other labels belong to no mask.
        padded_size: height and width of the padded network input in pixels.
        image_size: height and width without padding.
        resize: "bilinear" or "nearest".

    Raises:
        ValueError: another shape, or an image larger than its padding.
        ConfigError: another resize.
    """

    SHARED = "labels"

    ids: Tensor
    labels: Tensor
    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    _: KW_ONLY
    resize: str = "bilinear"

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.labels.ndim != 2:
            raise ValueError(
                f"ids must be (M,) and labels (h, w), got {tuple(self.ids.shape)} and "
                f"{tuple(self.labels.shape)}"
            )
        if not all(0 < a <= b for a, b in zip(self.image_size, self.padded_size, strict=True)):
            raise ValueError(
                f"the padded size {self.padded_size} must hold the image size {self.image_size}"
            )
        check_choice("resize", self.resize, RESIZES)

    def bitmasks(self, height: int, width: int) -> Tensor:
        masks = fill_runs(*self._find_runs(height, width), height, width)
        return masks if self._is_unique else masks[self._rows]

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        codes = encode_runs(*self._find_runs(height, width), height, width)
        return codes if self._is_unique else [dict(codes[row]) for row in self._rows.tolist()]

    @cached_property
    def _unique(self) -> tuple[Tensor, Tensor]:
        unique, rows = self.ids.unique(return_inverse=True)
        return unique, rows

    @property
    def _rows(self) -> Tensor:
        """(M,) row of each mask among those that are computed: a mask may be there twice."""
        return self._unique[1]

    @property
    def _is_unique(self) -> bool:
        return len(self._unique[0]) == len(self.ids)

    def _find_runs(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Positions (E,) and lengths of the runs, see `layers/runs.py`."""
        ids = self.ids if self._is_unique else self._unique[0]
        # 0: no mask, 1 to M the masks; a label that the map lacks has a number, too.
        size = int(torch.cat([self.labels.flatten(), self.ids]).amax().clamp(min=0)) + 1
        numbers = ids.new_zeros(size, dtype=torch.int32)
        numbers[ids] = torch.arange(1, len(ids) + 1, dtype=torch.int32, device=ids.device)
        cells = numbers[self.labels.clamp(min=0)]  # (h, w)
        image_height, image_width = self.image_size
        rows = _take_nearest(len(cells), self.padded_size[0], image_height, ids.device)
        columns = _take_nearest(cells.shape[1], self.padded_size[1], image_width, ids.device)
        if self.resize == "nearest" or (height, width) == self.image_size:
            rows = rows[_take_nearest(image_height, height, height, ids.device)]
            columns = columns[_take_nearest(image_width, width, width, ids.device)]
            return _trace_runs(cells[rows][:, columns], len(ids))
        image = cells[rows][:, columns]
        owners, pixels = _resize_labels(image, height, width)
        positions, lengths = _trace_runs(owners, len(ids))
        inside = torch.ones(len(pixels), dtype=torch.bool, device=ids.device)
        return set_pixels(positions, lengths, pixels, inside, height, width)


def _take_nearest(before: int, after: int, count: int, device: torch.device) -> Tensor:
    """Nearest sample of `before` for the first `count` positions of `after`: (count,) long."""
    return torch.arange(count, device=device) * before // after


def _trace_runs(owners: Tensor, num_masks: int) -> tuple[Tensor, Tensor]:
    """Runs of all masks in one map (H, W) of their numbers, 1 to M; 0 is none."""
    by_column = owners.T.flatten()  # column-major, as COCO counts
    num_pixels = len(by_column)
    starts = torch.ones_like(by_column, dtype=torch.bool)
    starts[1:] = by_column[1:] != by_column[:-1]
    begins = starts.nonzero().squeeze(1)
    stops = torch.cat([begins[1:], begins.new_full((1,), num_pixels)])
    masks = by_column[begins] - 1
    is_mask = masks >= 0
    masks, begins, stops = masks[is_mask], begins[is_mask], stops[is_mask]
    order = masks.argsort(stable=True)
    positions = torch.stack([begins, stops], dim=1)[order].flatten()
    return positions, 2 * masks.bincount(minlength=num_masks)


def _resize_labels(image: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Resize the 0/1 map of every mask bilinearly, and take what is 0.5 or more.

    Args:
        image: (h, w) int32, numbers of the masks from 1 on; 0 is none.
        height, width: H, W.

    Returns:
        (H, W) int32, the number of the mask of each pixel; (U, 3) long, mask from 0 on, row and
        column of pixels that have exactly half of a second mask.
    """
    rows, columns = weigh_axes((image.shape[0], image.shape[1]), height, width, image.device)
    top, left = rows.cells, columns.cells
    bottom = (top + 1).clamp(max=image.shape[0] - 1)  # beyond the map the weight is 0
    right = (left + 1).clamp(max=image.shape[1] - 1)
    corners = [image[y][:, x] for y in (top, bottom) for x in (left, right)]  # (H, W) each
    owners = corners[0]
    mixed = (corners[1] != owners) | (corners[2] != owners) | (corners[3] != owners)
    y, x = mixed.nonzero(as_tuple=True)
    labels = torch.stack([corner[y, x] for corner in corners])  # (4, U)
    by_row, by_column = rows.weights[y], columns.weights[x]  # (U, 2)
    same = (labels[:, None] == labels).to(by_row.dtype)  # (4 masks, 4 corners, U)
    # Torch interpolates along rows first, then between them.
    upper = same[:, 0] * by_column[:, 0] + same[:, 1] * by_column[:, 1]
    lower = same[:, 2] * by_column[:, 0] + same[:, 3] * by_column[:, 1]
    values = upper * by_row[:, 0] + lower * by_row[:, 1]  # (4, U)
    inside = values >= 0.5
    is_rounded = ~(_is_exact(by_row) & _is_exact(by_column))
    unsure = ((values - 0.5).abs() <= ROUNDING) & is_rounded & (labels > 0)
    corner, place = unsure.nonzero(as_tuple=True)
    if len(corner):
        numbers = labels[corner, place].long()
        points = torch.stack([numbers, y[place], x[place]], dim=1)
        inside[corner, place] = _resize_by_torch(image, height, width, points) >= 0.5
    owner = (labels * inside).amax(dim=0)  # (U,), 0 where no mask has half of the pixel
    owners = owners.index_put((y, x), owner)
    second = torch.where(inside & (labels != owner), labels, 0).amax(dim=0)
    halves = second.nonzero().squeeze(1)
    pixels = torch.stack([second[halves].long() - 1, y[halves], x[halves]], dim=1)
    return owners, pixels


def _is_exact(weights: Tensor) -> Tensor:
    """(U, 2) weights of an axis -> (U,) bool, where sums of their products are not rounded."""
    steps = weights / _EXACT_STEP
    return (steps == steps.round()).all(dim=1)


def _resize_by_torch(image: Tensor, height: int, width: int, points: Tensor) -> Tensor:
    """Single pixels (U, 3), number of the mask, row and column, by torch's own resize: (U,)."""
    numbers, owner = points[:, 0].unique(return_inverse=True)
    values = torch.zeros(len(points), device=image.device)
    size = max(1, DEFAULT_BUDGET // (4 * image.numel()))
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        mine = ((owner >= start) & (owner < start + len(some))).nonzero().squeeze(1)
        maps = (image == some[:, None, None]).float()  # (masks of the chunk, h, w)
        local = torch.cat([owner[mine, None] - start, points[mine, 1:]], dim=1)
        values[mine] = resize_at_points(maps, [Resize(height, width)], local)
    return values
