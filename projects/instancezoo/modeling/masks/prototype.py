"""Masks that are sums of prototypes, weighted for each mask and cropped to its box (YOLACT).

Legend: M masks, D prototypes, h w size of the prototypes, H W image size, S cells of all windows,
E ends of runs, U unsure pixels.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.resize_chain import Resize, resize_at_points
from instancezoo.layers.runs import encode_runs, expand_counts, fill_runs, set_pixels, split_counts
from instancezoo.layers.score_windows import (
    find_score_runs,
    find_windows,
    locate_cells,
    multiply_in_windows,
    weigh_axes,
)

from .form import MaskForm

# Cells by which YOLACT enlarges a box at each side before it crops.
CROP_PAD = 1.0
# Bytes per cell of a chunk: its score, and in the plain version places and corners.
_BYTES_PER_CELL = 256


@dataclass(frozen=True, eq=False, repr=False)
class PrototypeMasks(MaskForm):
    """Sums of prototypes that all masks share, cropped to a box each (YOLACT, section 3).

    The scores of a mask are sigmoid(prototypes . coefficients). Cells outside the box, which is
    first enlarged by `pad`, are 0. Bilinear interpolation (`align_corners=False`) goes straight to
    the image's size, and a pixel belongs to the mask if its score is above the threshold. Cells
    outside the boxes and pixels that they do not reach cost nothing.

    Masks equal those of torch's own resize of the cropped scores; the pixels that its rounding
    could decide are computed by it. (Torch resizes to less than about 64 x 64 pixels by other
    instructions: a score that meets the threshold to the last bit may differ there.)

    CPU tensors take the compiled operators, if they are built; tensors on other devices take the
    plain version.

    Args:
        coefficients: (M, D), after their activation.
        boxes: (M, 4) XYXY in cells of the prototypes, of any order and not clipped. A box with a
            coordinate that is not finite holds no mask.
        prototypes: (D, h, w), after their activation; rows of the masks share them.
        threshold: of the scores, in [0, 1).
        pad: cells by which a box is enlarged at each side.
        budget: bytes of working memory, beside what is returned.

    Raises:
        ValueError: other shapes, or a threshold or pad outside its range.
    """

    SHARED = "prototypes"

    coefficients: Tensor
    boxes: Tensor
    prototypes: Tensor
    threshold: float = 0.5
    _: KW_ONLY
    pad: float = CROP_PAD
    budget: int = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        count, size = len(self.coefficients), self.prototypes.shape
        if (
            len(size) != 3
            or self.coefficients.shape != (count, size[0])
            or self.boxes.shape != (count, 4)
        ):
            raise ValueError(
                f"coefficients must be (M, D), boxes (M, 4) and prototypes (D, h, w), got "
                f"{tuple(self.coefficients.shape)}, {tuple(self.boxes.shape)} and {tuple(size)}"
            )
        if not 0 <= self.threshold < 1 or not (isfinite(self.pad) and self.pad >= 0):
            raise ValueError(
                f"threshold must be in [0, 1) and pad at least 0, got {self.threshold} and "
                f"{self.pad}"
            )

    def bitmasks(self, height: int, width: int) -> Tensor:
        if is_tracing():  # parts and unsure pixels would stay those of the traced masks
            scores = F.interpolate(self.cropped_scores(), (height, width), mode="bilinear")
            return scores[:, 0] > self.threshold
        return fill_runs(*self._find_runs(height, width), height, width)

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        return encode_runs(*self._find_runs(height, width), height, width)

    def cropped_scores(self) -> Tensor:
        """Scores of the whole grid, 0 outside the boxes, without a gradient: (M, 1, h, w) fp32."""
        windows = self._find_windows()
        return self._spread(self._score(self.coefficients, windows), windows)[:, None]

    def _find_windows(self) -> Tensor:
        grid = self.prototypes.shape[1], self.prototypes.shape[2]
        return find_windows(self.boxes, grid, self.pad)

    def _score(self, coefficients: Tensor, windows: Tensor) -> Tensor:
        """Scores of the cells of all windows: (S,) fp32."""
        prototypes = self.prototypes.detach().float()
        products = multiply_in_windows(prototypes, coefficients.detach().float(), windows)
        return products.sigmoid_()

    def _spread(self, scores: Tensor, windows: Tensor) -> Tensor:
        """(S,) scores of windows to dense maps (M, h, w)."""
        maps = scores.new_zeros((windows.shape[0], *self.prototypes.shape[1:]))
        maps[locate_cells(windows)] = scores
        return maps

    def _find_runs(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Positions (E,) and lengths (M,) of the masks' runs, see `layers/runs.py`."""
        if min(height, width) < 1:
            raise ValueError(f"masks need an image with pixels, not {height} x {width}")
        grid = self.prototypes.shape[1], self.prototypes.shape[2]
        rows, columns = weigh_axes(grid, height, width, self.boxes.device)
        windows = self._find_windows()
        areas = (windows[:, 2:] - windows[:, :2] + 2).prod(dim=1)  # with a border of one cell
        sizes = split_counts(areas, self.budget // _BYTES_PER_CELL) if len(self) else [0]
        runs = []
        for factors, places in zip(
            self.coefficients.split(sizes), windows.split(sizes), strict=True
        ):
            scores = self._score(factors, places)
            positions, lengths, unsure = find_score_runs(
                scores, places, rows, columns, self.threshold
            )
            if len(unsure):
                values = self._resize_at(scores, places, unsure, height, width)
                is_inside = values > self.threshold
                positions, lengths = set_pixels(
                    positions, lengths, unsure, is_inside, height, width
                )
            runs.append((positions, lengths))
        positions, lengths = (torch.cat(parts) for parts in zip(*runs, strict=True))
        return positions, lengths

    def _resize_at(
        self, scores: Tensor, windows: Tensor, pixels: Tensor, height: int, width: int
    ) -> Tensor:
        """Single pixels (U, 3) by torch's own resize: (U,). Only their masks become whole maps."""
        masks, owner = pixels[:, 0].unique(return_inverse=True)
        areas = (windows[:, 2:] - windows[:, :2]).prod(dim=1)
        some, within = expand_counts(areas[masks])
        starts = (areas.cumsum(0) - areas)[masks]
        maps = self._spread(scores[starts[some] + within], windows[masks])
        points = torch.cat([owner[:, None], pixels[:, 1:]], dim=1)
        return resize_at_points(maps, [Resize(height, width)], points)
