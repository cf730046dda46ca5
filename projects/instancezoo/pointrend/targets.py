"""Ground truth at points, and the loss there (PointRend, section 3.1).

Legend: R regions of all images, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.points import sample_masks

_NOT_LABELLED = -1.0


def sample_point_labels(instances: Sequence[Instances], image_points: Tensor) -> Tensor:
    """Soft labels: how much of the object's mask lies around each point.

    Args:
        instances: N Instances, R in all; those with any objects have `gt_masks` (BitMasks), one
            for each.
        image_points: (R, P, 2), in pixels of the image that the region belongs to.

    Returns:
        (R, P) fp32 in [0, 1].
    """
    labels = []
    per_image = image_points.split([len(regions) for regions in instances])
    for regions, points in zip(instances, per_image, strict=True):
        if len(regions):  # an image without objects has no field of that name
            owners = torch.arange(len(regions), device=points.device)
            labels.append(sample_masks(regions.gt_masks.tensor, owners, points))
    return torch.cat(labels) if labels else image_points.new_zeros(image_points.shape[:2])


def compute_point_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy at points.

    Args:
        logits: (R, P).
        labels: (R, P) in [0, 1]; -1 leaves a point out, but it still counts in the mean.
    """
    # parity: leaving such points out of the mean, too, would be right.
    weights = (labels != _NOT_LABELLED).to(labels.dtype)
    return F.binary_cross_entropy_with_logits(logits.float(), labels, weight=weights)
