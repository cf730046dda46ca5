"""What each point has to predict (FCOS, section 3.1 and 3.2, with centre sampling).

Legend: N images, L levels, M instances of all images, P points of all levels, R positive points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.mass_centers import find_mass_centers
from instancezoo.modeling.levels import locate_points
from instancezoo.modeling.objects import join_objects
from instancezoo.modeling.point_assignment import PointSpec, assign_points


@dataclass(frozen=True)
class PointTargets:
    """Classes of all points, and what the positive ones have to predict.

    Attributes:
        classes: (N, P) long, K for background.
        image, point, instance: (R,) long, ordered by image, then point; `instance` counts the
            instances of all images.
        distances: (R, 4) to the left, top, right and bottom side, positive, in strides.
        centerness: (R,), in (0, 1].
    """

    classes: Tensor
    image: Tensor
    point: Tensor
    instance: Tensor
    distances: Tensor
    centerness: Tensor


def assign_targets(
    ground_truth: Sequence[Instances],
    map_sizes: Sequence[tuple[int, int]],
    spec: PointSpec,
    num_classes: int,
) -> PointTargets:
    """Find the targets of a batch.

    Args:
        ground_truth: N Instances with `gt_boxes`, `gt_classes` and maybe `gt_bitmasks_full`, see
            `find_centers`.
        map_sizes: L pairs, height and width of each level's map.
        spec: see `PointSpec`.
        num_classes: K.
    """
    objects = join_objects(ground_truth)
    boxes = objects.boxes
    instance = assign_points(
        torch.cat([find_centers(instances) for instances in ground_truth]),
        boxes,
        (boxes[:, 2:] - boxes[:, :2]).prod(dim=1),
        objects.image,
        spec,
        num_images=objects.num_images,
        map_sizes=map_sizes,
    )  # (N, P)
    image, point = (instance >= 0).nonzero(as_tuple=True)
    chosen = instance[image, point]
    classes = torch.full_like(instance, num_classes)
    classes[image, point] = objects.classes[chosen]
    points, strides = list_points(map_sizes, spec.strides, boxes.device)
    distances = measure_distances(points[point], boxes[chosen]) / strides[point, None]
    centerness = compute_centerness(distances)
    return PointTargets(classes, image, point, chosen, distances, centerness)


def find_centers(instances: Instances) -> Tensor:
    """Centres for centre sampling: of the boxes, or the mean pixel index of the masks.

    Args:
        instances: with `gt_boxes`; masks are taken from `gt_bitmasks_full`, a tensor (M, H, W) of
            zeros and ones at the resolution of the network input, if it is there (CondInst).

    Returns:
        (M, 2) x and y in pixels; (0, 0) for an empty mask.
    """
    if instances.has("gt_bitmasks_full"):
        return find_mass_centers(instances.gt_bitmasks_full.bool())[0]
    boxes = instances.gt_boxes.tensor
    return (boxes[:, :2] + boxes[:, 2:]) * 0.5


def list_points(
    map_sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Points of all levels, (P, 2) x and y in pixels, and the stride of each, (P,)."""
    points = locate_points(map_sizes, strides, device)
    lengths = torch.tensor([height * width for height, width in map_sizes], device=device)
    return points, points.new_tensor(strides).repeat_interleave(lengths)


def measure_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """From points (R, 2) to the left, top, right and bottom side of boxes (R, 4) XYXY: (R, 4)."""
    return torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1)


def compute_centerness(distances: Tensor) -> Tensor:
    """How far a point is from the middle of its box (equation 3): (R, 4) -> (R,), 1 in the middle.

    Args:
        distances: to the four sides, positive, in any unit.
    """
    x, y = distances[:, 0::2], distances[:, 1::2]
    return ((x.amin(1) / x.amax(1)) * (y.amin(1) / y.amax(1))).sqrt()
