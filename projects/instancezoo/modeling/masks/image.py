"""Masks whose scores lie on a grid over the whole padded input.

Legend: M masks, h w grid size, H W image size, T tiles, A pixels of a tile's side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.contour_tiles import TileAxis, compute_tiles, find_sides, split_axis
from instancezoo.layers.double import find_double_device
from instancezoo.layers.resize_chain import Crop, Resize, Step, resize_at_points, weigh_samples
from instancezoo.layers.rle import encode_ends

from .form import MaskForm

# Bytes per pixel of a chunk of tiles: its value in fp64 and the comparisons made with it.
_BYTES_PER_PIXEL = 16
# Pixels computed at once; more leave a processor's cache.
_PIXELS_PER_CHUNK = 2**18
# Rounding errors of fp32 that a pixel may gather in each step: five in torch's resize, four in the
# weights of ours, and a reserve.
_ERRORS_PER_STEP = 12


def remove_padding(padded_size: tuple[int, int], image_size: tuple[int, int]) -> list[Step]:
    """Steps that enlarge scores to the padded input and cut the padding off.

    Args:
        padded_size: height and width of the padded network input in pixels.
        image_size: height and width without padding.
    """
    return [Resize(*padded_size), Crop(*image_size)]


@dataclass(frozen=True, eq=False, repr=False)
class ImageMasks(MaskForm):
    """Mask scores on a grid over the network input (SOLO, YOLACT, CondInst).

    Masks equal those of the official code: scores go through the steps, then to the original size,
    and the threshold comes last. Only pixels near contours are computed; pixels that rounding
    could put on the other side are computed by the official steps themselves. (Where a score meets
    the threshold to the last bit, torch's own result depends on its threads and on how many masks
    it resizes together; here it is that of one mask alone.)

    Args:
        scores: (M, h, w), what the official code resizes: probabilities, or logits.
        steps: resizes and crops between the grid and the resize to the original size, which is
            always the last step.
        threshold: of the scores.
        inclusive: if True, a score that equals the threshold belongs to the mask.
        budget: bytes of working memory, beside what is returned.
    """

    scores: Tensor
    steps: Sequence[Step] = ()
    threshold: float = 0.5
    _: KW_ONLY
    inclusive: bool = False
    budget: int = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        if self.scores.ndim != 3:
            raise ValueError(f"scores must be (M, h, w), got {tuple(self.scores.shape)}")

    def bitmasks(self, height: int, width: int) -> Tensor:
        masks = self.scores.new_zeros((len(self), height, width), dtype=torch.bool)
        if len(self) == 0:
            return masks
        tiling = self._tile(height, width)
        size = max(1, self.budget // (height * width))
        for start in range(0, len(self), size):
            self._fill(masks[start : start + size], tiling, start)
        return masks

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        if len(self) == 0:
            return []
        tiling = self._tile(height, width)
        ends = [_find_known_ends(tiling, height, width)]
        for tiles, inside in self._compute_unknown(tiling, 0, len(self)):
            # A tile has the row before its own first one, so that no end of a run is missed.
            tile, y, x = (inside[:, 1:] != inside[:, :-1]).nonzero(as_tuple=True)
            owner, down, across = tiles[tile].unbind(1)
            position = (across * tiling.columns.size + x) * height + down * tiling.rows.size + y
            ends.append(owner * (height * width + 1) + position)
        return encode_ends(torch.cat(ends).sort().values, len(self), height, width)

    def _tile(self, height: int, width: int) -> _Tiling:
        """Cut the image into tiles and find those whose pixels need not be computed."""
        scores = self.scores.detach().float().to(find_double_device(self.scores.device))
        steps = (*self.steps, Resize(height, width))
        grid = scores.shape[1], scores.shape[2]
        by_rows, by_columns = weigh_samples(grid, steps, scores.device)
        rows, columns = split_axis(by_rows, lead=1), split_axis(by_columns)
        unit = torch.finfo(torch.float32).eps / 2
        # Not by abs(), which would take as much memory as the scores.
        largest = torch.maximum(scores.amax(dim=(1, 2)), -scores.amin(dim=(1, 2)))
        margin = _ERRORS_PER_STEP * (len(steps) + 1) * unit * largest
        sides = find_sides(scores, rows, columns, self.threshold, margin)
        return _Tiling(scores, steps, rows, columns, margin, sides)

    def _compute_unknown(
        self, tiling: _Tiling, start: int, stop: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute the tiles of some masks that lie on neither side.

        Yields:
            (T, 3) long, mask, tile row and column; (T, A + 1, A) bool, the first row is the one
            before the tile.
        """
        rows, columns = tiling.rows, tiling.columns
        unknown = (tiling.sides[start:stop] == 0).nonzero()
        unknown[:, 0] += start
        most = min(_PIXELS_PER_CHUNK, self.budget // _BYTES_PER_PIXEL)
        for tiles in unknown.split(max(1, most // ((rows.size + 1) * columns.size))):
            owner, down, across = tiles.unbind(1)
            exists = rows.is_inside[down][:, :, None] & columns.is_inside[across][:, None, :]
            pixels = compute_tiles(tiling.scores, rows, columns, tiles)
            margin = tiling.margin[owner][:, None, None].double()
            inside = (pixels > self.threshold + margin) & exists
            unsure = ~(inside | (pixels < self.threshold - margin)) & exists
            tile, y, x = unsure.nonzero(as_tuple=True)
            if len(tile):
                place = down[tile] * rows.size + y - 1, across[tile] * columns.size + x
                points = torch.stack([owner[tile], *place], dim=1)
                values = resize_at_points(tiling.scores, tiling.steps, points)
                is_inside = values >= self.threshold if self.inclusive else values > self.threshold
                inside[tile, y, x] = is_inside
            yield tiles, inside

    def _fill(self, masks: Tensor, tiling: _Tiling, start: int) -> None:
        """Write the masks from number `start` on into `masks`, a part of (M, H, W) bool."""
        down, across = tiling.rows.size, tiling.columns.size
        stop = start + len(masks)
        known = tiling.sides[start:stop] > 0
        canvas = known.repeat_interleave(down, 1).repeat_interleave(across, 2)
        by_tile = canvas.unflatten(2, (-1, across)).unflatten(1, (-1, down))
        for tiles, inside in self._compute_unknown(tiling, start, stop):
            by_tile[tiles[:, 0] - start, tiles[:, 1], :, tiles[:, 2]] = inside[:, 1:]
        masks.copy_(canvas[:, : masks.shape[1], : masks.shape[2]])


@dataclass(frozen=True)
class _Tiling:
    """Masks on their way to one size.

    Attributes:
        scores: (M, h, w) fp32.
        steps: all of them.
        rows, columns: tiles along both axes.
        margin: (M,) how far rounding may move a pixel.
        sides: (M, tiles down, tiles across) int8, see `find_sides`.
    """

    scores: Tensor
    steps: tuple[Step, ...]
    rows: TileAxis
    columns: TileAxis
    margin: Tensor
    sides: Tensor


def _find_known_ends(tiling: _Tiling, height: int, width: int) -> Tensor:
    """Ends of runs at the image's upper and lower edge in tiles that were not computed."""
    ends = []
    x = torch.arange(width, device=tiling.sides.device)
    for row, y in ((0, 0), (-1, height)):
        is_filled = (tiling.sides[:, row] > 0)[:, x // tiling.columns.size]  # (M, W)
        owner, column = is_filled.nonzero(as_tuple=True)
        ends.append(owner * (height * width + 1) + column * height + y)
    return torch.cat(ends)
