"""What each point has to predict (FCOS, sections 3.1 and 3.2, with centre sampling).

Legend: N images, L levels, M instances of an image, H W image size, K classes, R positive points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.mass_centers import find_mass_centers
from instancezoo.modeling.objects import join_objects
from instancezoo.modeling.point_assignment import PointSpec, PointTargets, assign_points


@dataclass(frozen=True)
class FCOSTargets(PointTargets):
    """Classes of all points, and what the positive ones have to predict.

    Attributes:
        centerness: (R,), in (0, 1].
    """

    centerness: Tensor


def assign_targets(
    ground_truth: Sequence[Instances],
    map_sizes: Sequence[tuple[int, int]],
    spec: PointSpec,
    num_classes: int,
) -> FCOSTargets:
    """Find the targets of a batch.

    Args:
        ground_truth: N Instances with `gt_boxes`, `gt_classes` and, optionally,
            `gt_bitmasks_full`, see `find_centers`.
        map_sizes: L pairs, height and width of each level's map.
        spec: which points are positive for which objects.
        num_classes: K.
    """
    objects = join_objects(ground_truth)
    boxes = objects.boxes
    centers = torch.cat([find_centers(instances) for instances in ground_truth])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    found = assign_points(
        objects, centers, areas, spec, map_sizes=map_sizes, num_classes=num_classes
    )
    return FCOSTargets(**vars(found), centerness=compute_centerness(found.distances))


def find_centers(instances: Instances) -> Tensor:
    """Centres for centre sampling: of the boxes, or the mean pixel index of the masks.

    Args:
        instances: with `gt_boxes`. If they have `gt_bitmasks_full`, (M, H, W) of zeros and ones at
            the resolution of the network input, the centres are those of the masks (CondInst).

    Returns:
        (M, 2) x and y in pixels; (0, 0) for an empty mask.
    """
    if instances.has("gt_bitmasks_full"):
        return find_mass_centers(instances.gt_bitmasks_full.bool())[0]
    return instances.gt_boxes.get_centers()


def compute_centerness(distances: Tensor) -> Tensor:
    """How near a point is to the middle of its box (equation 3): (R, 4) -> (R,), 1 in the middle.

    Args:
        distances: to the four sides, positive, in any unit.
    """
    x, y = distances[:, 0::2], distances[:, 1::2]
    return ((x.amin(1) / x.amax(1)) * (y.amin(1) / y.amax(1))).sqrt()
