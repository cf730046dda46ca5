"""Masks whose scores lie on a grid over each box (Mask R-CNN and the methods built on it).

Legend: M masks of an image, R masks of a chunk, h w size of a grid or window, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import paste_masks_in_image
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.rle import encode_windows

from .form import MaskForm

# Bytes per pixel of a chunk: its place on the grid (2 floats), score (1 float) and mask.
_BYTES_PER_PIXEL = 16
# A chunk pads its windows to one size, to at most this multiple of their own pixels.
_MAX_PADDING = 2.0


@dataclass(frozen=True, eq=False, repr=False)
class BoxMasks(MaskForm):
    """Mask scores on a grid over each box.

    A pixel belongs to the mask if the score, interpolated bilinearly at its centre, reaches the
    threshold; outside the grid scores are 0 (Mask R-CNN, section 3). Masks equal those of
    Detectron2's `paste_masks_in_image`; only the pixels around each box are computed.

    Args:
        scores: (M, h, w), values in [0, 1].
        boxes: (M, 4), XYXY in pixels of the image whose size is given later.
        threshold: in [0, 1].
        budget: bytes of working memory, beside what is returned.
    """

    scores: Tensor
    boxes: Tensor
    threshold: float = 0.5
    _: KW_ONLY
    budget: int = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        if self.scores.ndim != 3 or self.boxes.shape != (len(self.scores), 4):
            raise ValueError(
                f"scores must be (M, h, w) and boxes (M, 4), "
                f"got {tuple(self.scores.shape)} and {tuple(self.boxes.shape)}"
            )

    def bitmasks(self, height: int, width: int) -> Tensor:
        if is_tracing():  # windows and chunks would stay those of the traced boxes
            scores, boxes = self.scores.float(), self.boxes.float()
            pasted: Tensor = paste_masks_in_image(scores, boxes, (height, width), self.threshold)
            return pasted.bool()
        masks = torch.zeros((len(self), height, width), dtype=torch.bool, device=self.scores.device)
        for chosen, windows, corners in self._windows(height, width):
            row, y, x = windows.nonzero(as_tuple=True)
            masks[chosen[row], corners[row, 0] + y, corners[row, 1] + x] = True
        return masks

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        encoded: list[dict[str, Any]] = [{}] * len(self)
        for chosen, windows, corners in self._windows(height, width):
            codes = encode_windows(windows, corners, height, width)
            for index, code in zip(chosen.tolist(), codes, strict=True):
                encoded[index] = code
        return encoded

    def _windows(self, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield chunks: indices (R,), windows (R, h, w) bool, corners (R, 2) row and column."""
        if len(self) == 0:
            return
        boxes = self.boxes.float()
        limit = boxes.new_tensor([width, height])
        # Detectron2's window: from half a cell beyond the box on, scores are under 0.5.
        first = (boxes[:, :2].floor() - 1).clamp(min=0)
        last = torch.minimum(boxes[:, 2:].ceil() + 1, limit)
        sizes = (last - first).clamp(min=0).long()  # (M, 2) width, height
        corners = first.long().flip(1)  # (M, 2) row, column
        for chunk in _plan_chunks(sizes.cpu(), self.budget // _BYTES_PER_PIXEL):
            chosen = chunk.to(boxes.device)
            windows = self._sample(chosen, first[chosen], sizes[chosen])
            yield chosen, windows, corners[chosen]

    def _sample(self, chosen: Tensor, first: Tensor, sizes: Tensor) -> Tensor:
        """Masks of some boxes on the pixels of their windows, padded to one size: (R, h, w)."""
        x0, y0, x1, y1 = self.boxes[chosen].float().split(1, dim=1)  # (R, 1) each
        columns, rows = (
            torch.arange(side, device=first.device, dtype=first.dtype)
            for side in sizes.amax(dim=0).tolist()
        )
        x = (first[:, :1] + columns + 0.5 - x0) / (x1 - x0) * 2 - 1  # (R, w) in [-1, 1]
        y = (first[:, 1:] + rows + 0.5 - y0) / (y1 - y0) * 2 - 1  # (R, h)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
        scores = self.scores[chosen, None].float()
        sampled = F.grid_sample(scores, grid, align_corners=False)[:, 0]  # (R, h, w)
        inside = (columns < sizes[:, :1])[:, None, :] & (rows < sizes[:, 1:])[:, :, None]
        return (sampled >= self.threshold) & inside


def _plan_chunks(sizes: Tensor, max_pixels: int) -> Iterator[Tensor]:
    """Group windows of similar size so that little is padded.

    Args:
        sizes: (M, 2) long, on the CPU.
        max_pixels: pixels of one padded group; a single larger window is a group of its own.

    Yields:
        (R,) long, indices of a group.
    """
    order = sizes.prod(dim=1).argsort()
    start, own, width, height = 0, 0, 0, 0
    for stop, (w, h) in enumerate(sizes[order].tolist()):
        padded = (stop - start + 1) * max(width, w) * max(height, h)
        if stop > start and (padded > max_pixels or padded > _MAX_PADDING * (own + w * h)):
            yield order[start:stop]
            start, own, width, height = stop, 0, 0, 0
        own, width, height = own + w * h, max(width, w), max(height, h)
    yield order[start:]
