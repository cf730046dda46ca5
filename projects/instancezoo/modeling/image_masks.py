"""Masks whose scores lie on a grid over the whole padded input, and boxes around masks.

Legend: N masks, h w grid size, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.rle import encode_bitmasks
from instancezoo.modeling.masks import DEFAULT_BUDGET, keep_dimension

# Of one chunk: the scores on the padded input and on the image in fp32, and the bool mask.
_BYTES_PER_PIXEL = 5


class ImageMasks:
    """Mask scores on a grid over the padded network input (SOLO and its kin).

    A mask is made as the official code makes it: scores are resized to the padded input, the
    padding is cut off, the rest is resized to the original image, and the threshold comes last.

    Args:
        scores: (N, h, w), values in [0, 1].
        padded_size: height and width of the padded network input in pixels; None leaves out the
            first resize and the crop.
        image_size: height and width of the network input without padding.
        threshold: a pixel belongs to the mask if its score is higher.
        budget: bytes of working memory, beside what is returned.
    """

    def __init__(
        self,
        scores: Tensor,
        padded_size: tuple[int, int] | None,
        image_size: tuple[int, int],
        threshold: float = 0.5,
        *,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        if scores.ndim != 3:
            raise ValueError(f"scores must be (N, h, w), got {tuple(scores.shape)}")
        self.scores = scores
        self.padded_size = padded_size
        self.image_size = image_size
        self.threshold = threshold
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
        start = 0
        for chunk in self._chunks(height, width):
            masks[start : start + len(chunk)] = chunk
            start += len(chunk)
        return masks

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        """COCO RLE of the same masks; only a chunk of them is ever full-size.

        Args:
            height, width: size of the original image in pixels.

        Returns:
            N dicts `{"size": [H, W], "counts": str}`.
        """
        encoded: list[dict[str, Any]] = []
        for chunk in self._chunks(height, width):
            encoded += encode_bitmasks(chunk)
        return encoded

    def _with(self, scores: Tensor) -> ImageMasks:
        return ImageMasks(
            scores, self.padded_size, self.image_size, self.threshold, budget=self.budget
        )

    def _chunks(self, height: int, width: int) -> Iterator[Tensor]:
        """Yield (n, H, W) bool, in order."""
        padded_height, padded_width = self.padded_size or self.scores.shape[1:]
        pixels = max(height * width, 1) + padded_height * padded_width
        size = max(1, self.budget // (_BYTES_PER_PIXEL * pixels))
        for scores in self.scores.split(size):
            if len(scores):
                yield self._resize(scores[None].float(), height, width)[0] > self.threshold

    def _resize(self, scores: Tensor, height: int, width: int) -> Tensor:
        if self.padded_size is not None:
            scores = _resize_bilinear(scores, self.padded_size)
            scores = scores[:, :, : self.image_size[0], : self.image_size[1]]
        return _resize_bilinear(scores, (height, width))


def boxes_from_masks(masks: Tensor | list[dict[str, Any]]) -> Tensor:
    """Tight boxes around masks, in either form of `pred_masks`.

    Args:
        masks: (N, H, W) bool, or N COCO RLE dicts.

    Returns:
        (N, 4) fp32 XYXY in pixels, right and lower edge exclusive; zeros for an empty mask.
    """
    if isinstance(masks, list):
        # Only this branch needs it: training works on tensors alone.
        from pycocotools.mask import toBbox

        boxes = torch.as_tensor(toBbox(masks) if masks else [], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes
    x0, x1 = _find_extent(masks.any(dim=1))
    y0, y1 = _find_extent(masks.any(dim=2))
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _find_extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied position and the one after the last of each row; (N, n) bool."""
    positions = torch.arange(1, occupied.shape[1] + 1, device=occupied.device)
    last = (occupied * positions).amax(dim=1) if occupied.numel() else positions.new_zeros(0)
    first_is_large = positions.flip(0)  # so that the largest value marks the first position
    first = (occupied * first_is_large).amax(dim=1) if occupied.numel() else last
    return torch.where(last > 0, occupied.shape[1] - first, 0), last


def _resize_bilinear(scores: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
