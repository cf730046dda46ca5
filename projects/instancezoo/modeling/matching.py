"""Matching of boxes with objects, beyond what Detectron2's matcher does.

Legend: M instances of an image, R boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor


class FloorMatcher(Matcher):
    """Gives every object the boxes that overlap it most, if they overlap it enough.

    Args:
        thresholds, labels: as in Detectron2's `Matcher`.
        floor: smallest IoU of an object's best boxes.
        rematch: if True, these boxes belong to the object even if another one overlaps them more;
            if several objects claim a box, the last one has it.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], *, floor: float, rematch: bool
    ) -> None:
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.floor = floor
        self.rematch = rematch

    def __call__(self, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Match boxes.

        Args:
            iou: (M, R), in [0, 1].

        Returns:
            (R,) long, object of each box, and (R,) int8, its label.
        """
        matches, labels = super().__call__(iou)
        if iou.numel():
            best = iou.amax(dim=1, keepdim=True)  # (M, 1)
            # parity: Detectron2 has no floor: an object may get boxes that hardly touch it.
            objects, boxes = torch.nonzero((iou == best) & (best >= self.floor), as_tuple=True)
            labels[boxes] = 1
            # parity: Detectron2 keeps the object that such a box overlaps most.
            if self.rematch:
                matches.scatter_reduce_(0, boxes, objects, "amax", include_self=False)
        return matches, labels


def build_roi_matcher(threshold: float, low_quality: bool) -> Matcher:
    """Make a matcher without a band of ignored boxes.

    Args:
        threshold: boxes with at least this IoU are positive.
        low_quality: MODEL.ROI_HEADS.LOW_QUALITY_MATCHES; the floor is the threshold.
    """
    if not low_quality:
        return Matcher([threshold], [0, 1], allow_low_quality_matches=False)
    return FloorMatcher([threshold], [0, 1], floor=threshold, rematch=True)
