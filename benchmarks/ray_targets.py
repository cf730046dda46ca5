"""PolarMask's training targets of one image: borders, centres, assignment and ray distances.

    python benchmarks/ray_targets.py [--instances 40] [--rounds 7] [--threads 1] [--skip-loop]

Compared in one process: the package's compiled operators, their plain versions, and the published
rule point by point, as a Python loop over the rays of a point. All three must give the same
values. `--skip-loop` leaves out the loop, which takes seconds.

Legend: H W image size, M instances, P points, V rays.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import cv2
import numpy as np
import torch
from torch import Tensor

from instancezoo.layers import extension, polar
from instancezoo.layers.borders import find_borders
from instancezoo.modeling.levels import locate_points
from instancezoo.modeling.objects import Objects
from instancezoo.modeling.point_assignment import PointSpec, assign_points

HEIGHT, WIDTH = 768, 1280
RADII = (12, 260)  # of the shapes in pixels, sampled log-uniformly
STRIDES = (8, 16, 32, 64, 128)
SPEC = PointSpec(STRIDES, (64, 128, 256, 512), radius=1.5)
NUM_RAYS = 36
# The published loader on 40 such shapes, as measured on a 2-core machine with one thread (PyTorch
# 2.14, OpenCV 5.0; 373 points, 25,800 border points). Not measured by this script.
PUBLISHED_SECONDS = 1.65


def draw_masks(num_instances: int) -> Tensor:
    """(M, H, W) bool: wobbly discs that may reach beyond the image."""
    rng = np.random.default_rng(0)
    masks = np.zeros((num_instances, HEIGHT, WIDTH), dtype=np.uint8)
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    for mask in masks:
        radius = np.exp(rng.uniform(*np.log(RADII)))
        waves = rng.normal(0, 0.12, (4, 1)) * np.sin(
            np.arange(2, 6)[:, None] * angles + rng.uniform(0, 2 * np.pi, (4, 1))
        )
        lengths = radius * (1 + waves.sum(axis=0)).clip(0.2)
        center = rng.uniform(0.1, 0.9, 2) * [WIDTH, HEIGHT]
        outline = center + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [outline.round().astype(np.int32)], 1)
    return torch.from_numpy(masks).bool()


def measure_boxes(masks: Tensor) -> Tensor:
    """(M, 4) XYXY of the first and last pixels."""
    corners = []
    for mask in masks.numpy():
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        corners.append([x, y, x + width - 1, y + height - 1])
    return torch.tensor(corners).float()


def map_sizes() -> list[tuple[int, int]]:
    return [(HEIGHT // stride, WIDTH // stride) for stride in STRIDES]


def make_targets(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The package's targets: winners (P,) and rays (positives, V)."""
    borders = find_borders(masks)
    image = torch.zeros(len(boxes), dtype=torch.long)
    objects = Objects(boxes, torch.arange(len(boxes)), image, [], num_images=1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    found = assign_points(
        objects, borders.centers, areas, SPEC, map_sizes=map_sizes(), num_classes=-1
    )
    points, owners = found.coordinates.long(), found.instance
    rays = polar.cast_ray_targets(points, owners, borders, num_rays=NUM_RAYS)
    return found.classes[0], rays


def make_targets_plain(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The same without compiled operators."""
    with mock.patch.object(extension, "IS_BUILT", False):
        return make_targets(masks, boxes)


def make_targets_by_rule(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The published rule written literally: dense assignment, loops over rays."""
    contours = [find_contour(mask) for mask in masks.numpy().astype(np.uint8)]
    centers = torch.tensor([find_centroid(contour) for contour in contours])
    points = locate_points(map_sizes(), STRIDES)
    winners = assign_densely(points, centers, boxes)
    rays = [
        cast_one_by_one(point, torch.from_numpy(contours[winner]))
        for point, winner in zip(points, winners.tolist(), strict=True)
        if winner >= 0
    ]
    return winners, torch.tensor(rays)


def find_contour(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return max(contours, key=cv2.contourArea)[:, 0].astype(np.float64)


def find_centroid(contour: np.ndarray) -> tuple[float, float]:
    """Polygon centroid, corner by corner, truncated."""
    area = x_sum = y_sum = 0.0
    for (x, y), (x_before, y_before) in zip(contour, np.roll(contour, 1, axis=0), strict=True):
        cross = (x * y_before - y * x_before) / 2
        area += cross
        x_sum += cross * (x + x_before) / 3
        y_sum += cross * (y + y_before) / 3
    if area == 0:
        return tuple(contour.mean(axis=0).astype(int).astype(float))
    # Rounding may give slightly less than a whole number; the package uses integers.
    return float(int(x_sum / area + 1e-9)), float(int(y_sum / area + 1e-9))


def assign_densely(points: Tensor, centers: Tensor, boxes: Tensor) -> Tensor:
    """All points against all instances: (P,) winner or -1."""
    counts = [height * width for height, width in map_sizes()]
    reach = SPEC.radius * torch.cat(
        [torch.full((count,), float(stride)) for count, stride in zip(counts, STRIDES, strict=True)]
    )
    ranges = torch.cat(
        [
            torch.tensor(limits).float().expand(count, 2)
            for count, limits in zip(counts, SPEC.size_ranges, strict=True)
        ]
    )
    low = torch.maximum(centers - reach[:, None, None], boxes[:, :2])  # (P, M, 2)
    high = torch.minimum(centers + reach[:, None, None], boxes[:, 2:])
    inside = ((low < points[:, None]) & (points[:, None] < high)).all(dim=2)
    sides = torch.cat([points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]], dim=2)
    farthest = sides.amax(dim=2)
    fits = (ranges[:, :1] <= farthest) & (farthest <= ranges[:, 1:])
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    areas = torch.where(inside & fits, areas, torch.inf)
    smallest, winners = areas.min(dim=1)
    return torch.where(smallest.isinf(), -1, winners)


def cast_one_by_one(point: Tensor, contour: Tensor) -> list[float]:
    vectors = contour - point
    degrees = torch.atan2(vectors[:, 0], vectors[:, 1]).rad2deg() % 360
    degrees = degrees.floor()
    lengths = vectors.norm(dim=1)
    found = []
    for ray in range(0, 360, 360 // NUM_RAYS):
        distance = polar.MISSED
        for shift in (0, 1, -1, 2, -2, 3, -3):
            seen = degrees == ray + shift
            if seen.any():
                distance = lengths[seen].max().item()
                break
        found.append(distance)
    return found


def measure(
    make: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    masks: Tensor,
    boxes: Tensor,
    rounds: int,
) -> tuple[float, tuple[Tensor, Tensor]]:
    """Median seconds, and the targets."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        made = make(masks, boxes)
        times.append(time.perf_counter() - start)
    return statistics.median(times), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-loop", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    masks = draw_masks(args.instances)
    boxes = measure_boxes(masks)
    borders = find_borders(masks)
    plain_s, (winners, rays) = measure(make_targets_plain, masks, boxes, args.rounds)
    print(
        f"{args.instances} instances on {HEIGHT}x{WIDTH}: {len(rays)} points, "
        f"{len(borders.points)} border points, {args.threads} thread(s)"
    )
    results = {"plain": plain_s}
    if extension.IS_BUILT:
        results["compiled"], made = measure(make_targets, masks, boxes, args.rounds)
        assert torch.equal(made[0], winners) and torch.equal(made[1], rays)
    loop_s = None
    if not args.skip_loop:
        loop_s, made = measure(make_targets_by_rule, masks, boxes, 1)
        assert torch.equal(made[0], winners)
        torch.testing.assert_close(made[1], rays)
        print(f"the rule as a loop: {loop_s:.2f} s")
    for name, seconds in results.items():
        ratio = f", {loop_s / seconds:.0f} times faster than the loop" if loop_s else ""
        print(f"{name}: {seconds * 1e3:.1f} ms{ratio}")
        if args.instances == 40:
            print(
                f"  {PUBLISHED_SECONDS / seconds:.0f} times faster than the published loader as "
                f"measured on a 2-core machine ({PUBLISHED_SECONDS} s)"
            )


if __name__ == "__main__":
    main()
