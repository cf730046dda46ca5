"""Box deltas that are limited on both sides.

Legend: R boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


class SymmetricBox2BoxTransform(Box2BoxTransform):
    """Detectron2's transform, for which a box cannot shrink more than it can grow."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Decode deltas (R, K * 4) for boxes (R, 4) XYXY: (R, K * 4) XYXY."""
        # parity: Detectron2 limits only the growth; a limit of both is MMDetection's.
        _, _, width, height = self.weights
        lowest = [-inf, -inf, -self.scale_clamp * width, -self.scale_clamp * height]
        limits = deltas.new_tensor(lowest, dtype=torch.float32).repeat(deltas.shape[1] // 4)
        return super().apply_deltas(torch.maximum(deltas.float(), limits), boxes)


def build_box_transform(weights: Sequence[float], symmetric: bool) -> Box2BoxTransform:
    """Make the transform between boxes and deltas that `SYMMETRIC_DELTA_CLAMP` asks for.

    Args:
        weights: factors of dx, dy, dw, dh.
        symmetric: limit deltas of sides on both sides.
    """
    return (SymmetricBox2BoxTransform if symmetric else Box2BoxTransform)(tuple(weights))
