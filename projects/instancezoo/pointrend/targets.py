"""Ground truth at points, and the loss there (PointRend, section 3.1).

Legend: N images, R regions of all images, P points, M instances, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances, PolygonMasks
from torch import Tensor

from instancezoo.errors import ConfigError
from instancezoo.layers.points import sample_masks

_NOT_LABELLED = -1.0


def sample_point_labels(instances: Sequence[Instances], image_points: Tensor) -> Tensor:
    """Soft labels: how much of the region's own object lies around each point.

    Args:
        instances: N Instances, R in all; those with any have `gt_masks` (BitMasks), one for each.
        image_points: (R, P, 2), in pixels of the image that the region belongs to.

    Returns:
        (R, P) fp32 in [0, 1].

    Raises:
        ConfigError: the masks are polygons.
    """
    masks = [regions.gt_masks for regions in instances if len(regions)]
    if any(isinstance(form, PolygonMasks) for form in masks):
        raise ConfigError(
            "PointRend samples the ground truth at points, but its masks are polygons: set "
            "INPUT.MASK_FORMAT to 'bitmask'"
        )
    rows = torch.arange(len(image_points), device=image_points.device)
    return sample_labels([form.tensor for form in masks], rows, image_points)


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
