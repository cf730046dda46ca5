"""Ground truth to training targets: which points are positive, with which rays (section 3.2).

Legend: N images, M instances of all images, L levels, P points of all levels, R positive points,
K classes, V rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.borders import Borders, find_borders
from instancezoo.layers.polar import MISSED, cast_ray_targets, fill_missed_rays, intersect_rays
from instancezoo.modeling.objects import Objects, join_objects
from instancezoo.modeling.point_assignment import PointSpec, PointTargets, assign_points


@dataclass(frozen=True)
class TargetRules:
    """How targets are made.

    Attributes:
        points: which points are positive for which objects.
        center: "mass" or "box", the object's centre.
        num_rays: V.
        ray_targets: "nearest_bin" (`cast_ray_targets`) or "intersection" (`intersect_rays`).
        ray_wrap: see `cast_ray_targets`.
        fill_missed_rays: see `fill_missed_rays`.
        plus_one: if True, boxes are first and last pixel.
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
    """Ground truth of a batch, without masks and without instances that have no pixel.

    Attributes:
        borders: of the M instances.
    """

    borders: Borders


@dataclass(frozen=True)
class PolarTargets(PointTargets):
    """Classes of all points, and what the positive ones have to predict.

    Attributes:
        rays: (R, V) distances to the contour in pixels.
        centerness: (R,) in [0, 1].
    """

    rays: Tensor
    centerness: Tensor


def gather_objects(ground_truth: Sequence[Instances], plus_one: bool) -> PolarObjects:
    """Join the objects of a batch.

    Args:
        ground_truth: N Instances with `gt_boxes` (Detectron2's frame), `gt_classes` and `gt_masks`
            (BitMasks) or the `gt_borders` of `PolarMaskMapper`.
        plus_one: if True, boxes become first and last pixel, within the image.
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
    # A mask may lose all its pixels when it is scaled down.
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
    areas = (boxes[:, 2:] - boxes[:, :2] + int(rules.plus_one)).prod(dim=1)
    found = assign_points(
        objects, centers, areas, rules.points, map_sizes=map_sizes, num_classes=num_classes
    )
    rays = _make_rays(found.coordinates.long(), found.instance, borders, rules)
    return PolarTargets(**vars(found), rays=rays, centerness=polar_centerness(rays))


def polar_centerness(rays: Tensor) -> Tensor:
    """How evenly the contour lies around a point: sqrt(min / max) of its rays (section 3.2).

    Args:
        rays: (R, V) pixels.

    Returns:
        (R,) in [0, 1].
    """
    shortest, longest = rays.aminmax(dim=1)
    # A contour of one pixel at the point itself has no length at all.
    return (shortest / longest.clamp(min=MISSED)).sqrt()


def _make_rays(points: Tensor, owner: Tensor, borders: Borders, rules: TargetRules) -> Tensor:
    """Rays (R, V) of points (R, 2) to the borders of their instances (R,)."""
    count = rules.num_rays
    if rules.ray_targets == "intersection":
        rays = intersect_rays(points, owner, borders, num_rays=count)
    else:
        rays = cast_ray_targets(points, owner, borders, num_rays=count, wrap=rules.ray_wrap)
    return fill_missed_rays(rays) if rules.fill_missed_rays else rays
