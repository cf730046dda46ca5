"""Masks whose scores lie on a grid over the whole padded input.

Legend: N masks, h w grid size, H W image size, T tiles of pixels, B tile side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instancezoo.layers.contour_tiles import TileAxis, compute_tiles, find_sides, split_axis
from instancezoo.layers.resize_chain import Crop, Resize, Step, resize_at_points, weigh_samples
from instancezoo.layers.rle import encode_ends

from .box import DEFAULT_BUDGET
from .indexing import keep_dimension

# Of one chunk of tiles: pixels in fp64 and what is found out about them.
_BYTES_PER_PIXEL = 16
# Pixels computed at once; more leave a processor's cache.
_PIXELS_PER_CHUNK = 2**18
# How many rounding errors of fp32 a pixel may gather in each step: five in torch's resize, four in
# the weights of ours, and some to spare.
_ERRORS_PER_STEP = 12


def remove_padding(padded_size: tuple[int, int], image_size: tuple[int, int]) -> list[Step]:
    """Steps of codes that enlarge scores to the padded input and cut the padding off.

    Args:
        padded_size: height and width of the padded network input in pixels.
        image_size: height and width without padding.
    """
    return [Resize(*padded_size), Crop(*image_size)]


class ImageMasks:
    """Mask scores on a grid over the network input (SOLO and its kin, YOLACT, CondInst).

    A mask is what the official code makes of it: scores go through the steps, then to the original
    size, and the threshold comes last. Only pixels near contours are computed; pixels that rounding
    could put on the other side are computed by the official steps themselves. (Where a score meets
    the threshold to the last bit, torch's own result depends on its threads and on how many masks
    it resizes together; here it is that of one mask alone.)

    Args:
        scores: (N, h, w), whatever the official code resizes: probabilities, or logits.
        steps: resizes and crops between the grid and the resize to the original size, which is
            always the last step.
        threshold: of the scores.
        inclusive: whether a score that equals the threshold belongs to the mask.
        budget: bytes of working memory, beside what is returned.
    """

    def __init__(
        self,
        scores: Tensor,
        steps: Sequence[Step] = (),
        threshold: float = 0.5,
        *,
        inclusive: bool = False,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        if scores.ndim != 3:
            raise ValueError(f"scores must be (N, h, w), got {tuple(scores.shape)}")
        self.scores = scores
        self.steps = tuple(steps)
        self.threshold = threshold
        self.inclusive = inclusive
        self.budget = budget

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, item: int | slice | Tensor) -> ImageMasks:
        return self._with(self.scores[keep_dimension(item, len(self))])

    def to(self, *args: Any, **kwargs: Any) -> ImageMasks:
        """Move or cast the scores, as `Tensor.to`."""
        return self._with(self.scores.to(*args, **kwargs))

    @staticmethod
    def cat(parts: Sequence[ImageMasks]) -> ImageMasks:
        """Join masks of one image."""
        return parts[0]._with(torch.cat([part.scores for part in parts]))

    def bitmasks(self, height: int, width: int) -> Tensor:
        """Full-size masks.

        Args:
            height, width: size of the original image in pixels.

        Returns:
            (N, H, W) bool.
        """
        masks = self.scores.new_zeros((len(self), height, width), dtype=torch.bool)
        if len(self) == 0:
            return masks
        tiling = self._tile(height, width)
        size = max(1, self.budget // (height * width))
        for start in range(0, len(self), size):
            self._fill(masks[start : start + size], tiling, start)
        return masks

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        """COCO RLE of the same masks; full-size masks are never built.

        Args:
            height, width: size of the original image in pixels.

        Returns:
            N dicts `{"size": [H, W], "counts": str}`.
        """
        if len(self) == 0:
            return []
        tiling = self._tile(height, width)
        parts = [_find_known_edges(tiling, height, width)]
        for tiles, inside in self._compute_unknown(tiling, 0, len(self)):
            # A tile has the row before its own first one, so that no boundary is missed.
            tile, y, x = (inside[:, 1:] != inside[:, :-1]).nonzero(as_tuple=True)
            owner, down, across = tiles[tile].unbind(1)
            position = (across * tiling.columns.size + x) * height + down * tiling.rows.size + y
            parts.append(owner * (height * width + 1) + position)
        return encode_ends(torch.cat(parts).sort().values, len(self), height, width)

    def _with(self, scores: Tensor) -> ImageMasks:
        return ImageMasks(
            scores, self.steps, self.threshold, inclusive=self.inclusive, budget=self.budget
        )

    def _tile(self, height: int, width: int) -> _Tiling:
        """Cut the image into tiles and find those that need no computing."""
        scores = self.scores.detach().float()
        steps = (*self.steps, Resize(height, width))
        grid = scores.shape[1], scores.shape[2]
        by_rows, by_columns = weigh_samples(grid, steps, scores.device)
        rows, columns = split_axis(by_rows, lead=1), split_axis(by_columns)
        unit = torch.finfo(torch.float32).eps / 2
        margin = _ERRORS_PER_STEP * (len(steps) + 1) * unit * scores.abs().amax(dim=(1, 2))
        sides = find_sides(scores, rows, columns, self.threshold, margin)
        return _Tiling(scores, steps, rows, columns, margin, sides)

    def _compute_unknown(
        self, tiling: _Tiling, start: int, stop: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute the tiles of some masks that lie on neither side.

        Yields:
            (T, 3) long, mask, tile row and column; (T, B + 1, B) bool, the first row is the one
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
        """Write some masks, of which `start` is the first, into (n, H, W) bool."""
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
        scores: (N, h, w) fp32.
        steps: all of them.
        rows, columns: tiles along both axes.
        margin: (N,) how far rounding may move a pixel.
        sides: (N, tiles down, tiles across) int8, see `find_sides`.
    """

    scores: Tensor
    steps: tuple[Step, ...]
    rows: TileAxis
    columns: TileAxis
    margin: Tensor
    sides: Tensor


def _find_known_edges(tiling: _Tiling, height: int, width: int) -> Tensor:
    """Run ends at the image's upper and lower edge in tiles that were not computed."""
    ends = []
    x = torch.arange(width, device=tiling.sides.device)
    for row, y in ((0, 0), (-1, height)):
        is_filled = (tiling.sides[:, row] > 0)[:, x // tiling.columns.size]  # (N, W)
        owner, column = is_filled.nonzero(as_tuple=True)
        ends.append(owner * (height * width + 1) + column * height + y)
    return torch.cat(ends)
