"""Ground truth to training targets: which points are positive, with which rays (section 3.2).

Legend: N images, M instances of all images, L levels, P points of all levels, Q positive points,
K classes, R rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.borders import Borders, find_borders
from instancezoo.layers.polar import (
    MISSED,
    cast_ray_targets,
    fill_missed_rays,
    intersect_rays,
)
from instancezoo.modeling.levels import locate_points
from instancezoo.modeling.objects import Objects, join_objects
from instancezoo.modeling.point_assignment import PointSpec, assign_points


@dataclass(frozen=True)
class TargetRules:
    """How targets are made.

    Attributes:
        points: which points are positive for which objects.
        center: "mass" or "box".
        num_rays: R.
        ray_targets: "nearest_bin" or "intersection".
        ray_wrap: see `cast_ray_targets`.
        fill_missed_rays: see `fill_missed_rays`.
        plus_one: boxes are inclusive pixel corners.
    """

    points: PointSpec
    center: str = "mass"
    num_rays: int = 36
    ray_targets: str = "nearest_bin"
    ray_wrap: bool = False
    fill_missed_rays: bool = False
    plus_one: bool = True


@dataclass(frozen=True)
class PolarObjects(Objects):
    """Ground truth of a batch, without masks; instances without a pixel are left out.

    Attributes:
        borders: of M instances.
    """

    borders: Borders


@dataclass(frozen=True)
class PolarTargets:
    """Classes of all points, and what the positive ones have to predict.

    Attributes:
        classes: (N, P) long; K where there is no object.
        positions: (Q,) long, positive points, counted over all images.
        boxes: (Q, 4) distances to left, top, right, bottom in pixels.
        rays: (Q, R) distances in pixels.
        centerness: (Q,) in [0, 1].
    """

    classes: Tensor
    positions: Tensor
    boxes: Tensor
    rays: Tensor
    centerness: Tensor


def gather_objects(ground_truth: Sequence[Instances], plus_one: bool) -> PolarObjects:
    """Join the objects of a batch.

    Args:
        ground_truth: N Instances with `gt_boxes` (Detectron2's frame), `gt_classes` and `gt_masks`
            (BitMasks), or `gt_borders` that a mapper has found in the masks.
        plus_one: boxes become first and last pixel, within the image.
    """
    objects = join_objects(ground_truth)
    boxes = objects.boxes.float()
    if plus_one:
        sizes = boxes.new_tensor([x.image_size for x in ground_truth])  # (N, 2) height, width
        last = (sizes.flip(1) - 1)[objects.image].repeat(1, 2)
        boxes = torch.minimum((boxes - boxes.new_tensor([0, 0, 1, 1])).clamp(min=0), last)
    parts = [
        x.gt_borders if x.has("gt_borders") else find_borders(x.gt_masks.tensor)
        for x in ground_truth
    ]
    lengths = torch.cat([part.offsets.diff() for part in parts]).to(boxes.device)  # (M,)
    # An instance may have vanished when its mask was scaled down.
    kept = (lengths > 0).nonzero().squeeze(1)
    return PolarObjects(
        boxes=boxes[kept],
        classes=objects.classes[kept],
        image=objects.image[kept],
        masks=[],
        num_images=objects.num_images,
        borders=Borders(
            torch.cat([part.points for part in parts]).to(boxes.device),
            F.pad(lengths[kept].cumsum(0), (1, 0)),
            torch.cat([part.centers for part in parts]).to(boxes.device)[kept],
        ),
    )


def make_targets(
    objects: PolarObjects,
    map_sizes: Sequence[tuple[int, int]],
    rules: TargetRules,
    *,
    num_classes: int,
) -> PolarTargets:
    """Targets of a batch.

    Args:
        objects: ground truth.
        map_sizes: L pairs, height and width of each level's maps.
        rules: see `TargetRules`.
        num_classes: K.
    """
    boxes, borders = objects.boxes, objects.borders
    centers = borders.centers if rules.center == "mass" else (boxes[:, :2] + boxes[:, 2:]) / 2
    owners = assign_points(
        centers,
        boxes,
        _measure_areas(boxes, rules.plus_one),
        objects.image,
        rules.points,
        num_images=objects.num_images,
        map_sizes=map_sizes,
    ).flatten()  # (N * P,)
    all_points = locate_points(map_sizes, rules.points.strides, boxes.device)  # (P, 2)
    positions = (owners >= 0).nonzero().squeeze(1)
    owner = owners[positions]
    points = all_points[positions % len(all_points)]  # (Q, 2)
    rays = _make_rays(points.long(), owner, borders, rules)
    classes = torch.full_like(owners, num_classes)
    classes[positions] = objects.classes[owner]
    return PolarTargets(
        classes=classes.view(objects.num_images, -1),
        positions=positions,
        boxes=torch.cat([points - boxes[owner, :2], boxes[owner, 2:] - points], dim=1),
        rays=rays,
        centerness=polar_centerness(rays),
    )


def polar_centerness(rays: Tensor) -> Tensor:
    """How evenly the contour lies around a point: sqrt(min / max) of its rays (section 3.2).

    Args:
        rays: (Q, R) pixels.

    Returns:
        (Q,) in [0, 1].
    """
    shortest, longest = rays.aminmax(dim=1)
    # A contour of one pixel at the point itself has no length at all.
    return (shortest / longest.clamp(min=MISSED)).sqrt()


def _make_rays(points: Tensor, owner: Tensor, borders: Borders, rules: TargetRules) -> Tensor:
    if rules.ray_targets == "intersection":
        rays = intersect_rays(points, owner, borders, num_rays=rules.num_rays)
    else:
        rays = cast_ray_targets(
            points, owner, borders, num_rays=rules.num_rays, wrap=rules.ray_wrap
        )
    return fill_missed_rays(rays) if rules.fill_missed_rays else rays


def _measure_areas(boxes: Tensor, plus_one: bool) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2] + int(plus_one)).prod(dim=1)
