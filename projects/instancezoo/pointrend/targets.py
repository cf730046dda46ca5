"""Ground truth at points, and the loss there (PointRend, section 3.1).

Legend: N images, R regions of all images, P points, M instances, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.points import sample_masks

_NOT_LABELLED = -1.0


def sample_labels(masks: Sequence[Tensor], instance: Tensor, points: Tensor) -> Tensor:
    """Soft labels at points of some objects.

    Args:
        masks: of N images, (M, H, W) bool each.
        instance: (R,) long, the object of each row, counted over all images.
        points: (R, P, 2), in pixels.

    Returns:
        (R, P) fp32 in [0, 1].
    """
    labels = points.new_zeros(points.shape[:2])
    start = 0
    for own in masks:
        rows = ((instance >= start) & (instance < start + len(own))).nonzero().squeeze(1)
        labels[rows] = sample_masks(own, instance[rows] - start, points[rows])
        start += len(own)
    return labels


def compute_point_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy at points.

    Args:
        logits: (R, P).
        labels: (R, P) in [0, 1]; -1 leaves a point out, but it still counts in the mean.
    """
    # parity: leaving such points out of the mean as well would be right.
    weights = (labels != _NOT_LABELLED).to(labels.dtype)
    return F.binary_cross_entropy_with_logits(logits.float(), labels, weight=weights)
