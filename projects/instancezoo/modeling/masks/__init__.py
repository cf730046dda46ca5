"""Compact mask forms: from a network's low-resolution output to full masks or straight to RLE.

Legend: M masks, H W image size, R rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from pycocotools.mask import toBbox
from torch import Tensor, nn

from instancezoo.errors import check_choice
from instancezoo.layers.mass_centers import count_pixels
from instancezoo.modeling.attributes import attribute_set

from .box import BoxMasks
from .form import MaskForm
from .image import ImageMasks, remove_padding
from .label import LabelMasks
from .polygon import VertexMasks
from .prototype import CROP_PAD, PrototypeMasks

__all__ = [
    "CROP_PAD",
    "MASK_OUTPUTS",
    "BoxMasks",
    "ImageMasks",
    "LabelMasks",
    "MaskForm",
    "PrototypeMasks",
    "VertexMasks",
    "boxes_from_masks",
    "mask_output_set",
    "masks_for_output",
    "remove_padding",
    "select_rows",
]

MASK_OUTPUTS = ("bitmask", "rle")
Rows = TypeVar("Rows")


def masks_for_output(
    masks: MaskForm, height: int, width: int, mask_output: str
) -> Tensor | list[dict[str, Any]]:
    """The form of `pred_masks` that `MODEL.MASK_OUTPUT` asks for ("bitmask" or "rle")."""
    check_choice("MODEL.MASK_OUTPUT", mask_output, MASK_OUTPUTS)
    return masks.rle(height, width) if mask_output == "rle" else masks.bitmasks(height, width)


def mask_output_set(model: nn.Module, mask_output: str) -> AbstractContextManager[None]:
    """Within the block, a built model gives `pred_masks` in this form; wrappers are no matter."""
    parts = [part for part in model.modules() if hasattr(part, "mask_output")]
    return attribute_set(parts, "mask_output", mask_output)


def select_rows(values: Rows, rows: Tensor) -> Rows:
    """Some rows of a field of `Instances`, which may be a list, as `pred_masks` of RLE is.

    Args:
        values: a list, or what a tensor of indices selects rows of: a tensor, boxes, masks.
        rows: (R,) long, indices.
    """
    field: Any = values
    chosen: Any = [field[i] for i in rows.tolist()] if isinstance(field, list) else field[rows]
    return chosen


def boxes_from_masks(masks: Tensor | list[dict[str, Any]]) -> Tensor:
    """Tight boxes around masks, in either form of `pred_masks`.

    Args:
        masks: (M, H, W) bool, or M COCO RLE dicts.

    Returns:
        (M, 4) fp32 XYXY in pixels, right and lower edge exclusive; zeros for an empty mask.
    """
    if isinstance(masks, list):
        boxes = torch.as_tensor(toBbox(masks) if masks else [], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes
    columns, rows = count_pixels(masks)
    (x0, x1), (y0, y1) = _find_extent(columns > 0), _find_extent(rows > 0)
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _find_extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied position and the one after the last of each row of (M, H) or (M, W) bool."""
    padded = F.pad(occupied, (1, 1))  # a first and a last position even in an image without pixels
    positions = torch.arange(padded.shape[1], device=occupied.device)
    stop, from_end = ((padded * p).amax(dim=1) for p in (positions, positions.flip(0)))
    return torch.where(stop > 0, occupied.shape[1] - from_end, 0), stop
