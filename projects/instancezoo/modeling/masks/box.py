"""Masks whose scores lie on a grid over each box (Mask R-CNN and the methods built on it).

Legend: N masks, h w grid size, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.rle import encode_windows

from .indexing import keep_dimension

# Bytes that one chunk may take: grid (2 floats), score (1 float) and mask of each pixel.
DEFAULT_BUDGET = 64 * 2**20
_BYTES_PER_PIXEL = 16
# A chunk pads its windows to one size; more waste than this and it is cut.
_MAX_PADDING = 2.0


class BoxMasks:
    """Mask scores on a grid over each box (Mask R-CNN and its kin).

    A pixel belongs to the mask if the score, interpolated bilinearly at its centre, reaches the
    threshold; outside the grid scores are 0 (Mask R-CNN, section 3, as Detectron2 pastes masks).

    Args:
        scores: (N, h, w), values in [0, 1].
        boxes: (N, 4), XYXY in pixels of the image whose size is given later.
        threshold: in [0, 1].
        budget: bytes of working memory, beside what is returned.
    """

    def __init__(
        self,
        scores: Tensor,
        boxes: Tensor,
        threshold: float = 0.5,
        *,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        if scores.ndim != 3 or boxes.shape != (len(scores), 4):
            raise ValueError(
                f"scores must be (N, h, w) and boxes (N, 4), "
                f"got {tuple(scores.shape)} and {tuple(boxes.shape)}"
            )
        self.scores = scores
        self.boxes = boxes
        self.threshold = threshold
        self.budget = budget

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, item: int | slice | Tensor) -> BoxMasks:
        item = keep_dimension(item, len(self))
        return self._with(self.scores[item], self.boxes[item])

    def to(self, *args: Any, **kwargs: Any) -> BoxMasks:
        """Move or cast both tensors, as `Tensor.to`."""
        return self._with(self.scores.to(*args, **kwargs), self.boxes.to(*args, **kwargs))

    @staticmethod
    def cat(parts: Sequence[BoxMasks]) -> BoxMasks:
        """Join forms with the same grid size and threshold."""
        scores = torch.cat([part.scores for part in parts])
        return parts[0]._with(scores, torch.cat([part.boxes for part in parts]))

    def bitmasks(self, height: int, width: int) -> Tensor:
        """Full-size masks.

        Args:
            height, width: size of the image that the boxes refer to, in pixels.

        Returns:
            (N, H, W) bool, equal to Detectron2's `paste_masks_in_image`.
        """
        masks = torch.zeros((len(self), height, width), dtype=torch.bool, device=self.scores.device)
        for chosen, windows, corners in self._windows(height, width):
            n, y, x = windows.nonzero(as_tuple=True)
            masks[chosen[n], corners[n, 0] + y, corners[n, 1] + x] = True
        return masks

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        """COCO RLE of the masks; only the pixels around each box are ever computed.

        Args:
            height, width: size of the image that the boxes refer to, in pixels.

        Returns:
            N dicts, equal to `pycocotools.mask.encode` of `bitmasks`.
        """
        encoded: list[dict[str, Any]] = [{}] * len(self)
        for chosen, windows, corners in self._windows(height, width):
            for index, code in zip(
                chosen.tolist(), encode_windows(windows, corners, height, width), strict=True
            ):
                encoded[index] = code
        return encoded

    def _with(self, scores: Tensor, boxes: Tensor) -> BoxMasks:
        return BoxMasks(scores, boxes, self.threshold, budget=self.budget)

    def _windows(self, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (indices (n,), windows (n, h, w) bool, corners (n, 2) row and column)."""
        if len(self) == 0:
            return
        boxes = self.boxes.float()
        limit = boxes.new_tensor([width, height])
        # Detectron2's window. Half a cell beyond the box the score falls under 0.5 at once.
        first = (boxes[:, :2].floor() - 1).clamp(min=0)
        last = torch.minimum(boxes[:, 2:].ceil() + 1, limit)
        sizes = (last - first).clamp(min=0).long()  # (N, 2) width, height
        corners = first.long().flip(1)  # (N, 2) row, column
        for chunk in _plan_chunks(sizes.cpu(), self.budget // _BYTES_PER_PIXEL):
            chosen = chunk.to(boxes.device)
            windows = self._sample(chosen, first[chosen], sizes[chosen])
            yield chosen, windows, corners[chosen]

    def _sample(self, chosen: Tensor, first: Tensor, sizes: Tensor) -> Tensor:
        """Masks of some boxes on the pixels of their windows, padded to one size: (n, h, w)."""
        x0, y0, x1, y1 = self.boxes[chosen].float().split(1, dim=1)  # (n, 1) each
        window_width, window_height = sizes.amax(dim=0).tolist()
        steps_x = torch.arange(window_width, device=first.device, dtype=first.dtype)
        steps_y = torch.arange(window_height, device=first.device, dtype=first.dtype)
        x = (first[:, :1] + steps_x + 0.5 - x0) / (x1 - x0) * 2 - 1  # (n, w) in [-1, 1]
        y = (first[:, 1:] + steps_y + 0.5 - y0) / (y1 - y0) * 2 - 1  # (n, h)
        grid = torch.stack(
            [
                x[:, None, :].expand(-1, len(steps_y), -1),
                y[:, :, None].expand(-1, -1, len(steps_x)),
            ],
            dim=3,
        )
        scores = self.scores[chosen, None].float()
        sampled = F.grid_sample(scores, grid, align_corners=False)[:, 0]  # (n, h, w)
        inside = (steps_x < sizes[:, :1])[:, None, :] & (steps_y < sizes[:, 1:])[:, :, None]
        return (sampled >= self.threshold) & inside


def _plan_chunks(sizes: Tensor, max_pixels: int) -> Iterator[Tensor]:
    """Group windows of like size so that a padded group stays small.

    Args:
        sizes: (N, 2) long, on the CPU.
        max_pixels: pixels of one padded group; a single larger window is a group of its own.

    Yields:
        (n,) long, indices of a group.
    """
    areas = sizes.prod(dim=1)
    order = areas.argsort()
    rows = sizes[order].tolist()
    start, own, width, height = 0, 0, 0, 0
    for stop, (w, h) in enumerate(rows):
        padded = (stop - start + 1) * max(width, w) * max(height, h)
        if stop > start and (padded > max_pixels or padded > _MAX_PADDING * (own + w * h)):
            yield order[start:stop]
            start, own, width, height = stop, 0, 0, 0
        own, width, height = own + w * h, max(width, w), max(height, h)
    yield order[start:]
