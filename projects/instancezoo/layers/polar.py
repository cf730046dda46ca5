"""Distances along rays from points to the borders of instances, and polygons from them.

Legend: P points, V rays, M instances, B border points, E edges between border points, Q pairs of a
point and an edge or border point.

Ray i points i * 360 / V degrees, counted from down (+y) by way of right (+x): along (sin, cos) in x
and y (PolarMask, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from instancezoo.layers.borders import Borders, link_borders
from instancezoo.layers.double import find_double_device
from instancezoo.layers.extension import find_compiled, register_fake

# Distance of a ray that meets no border, in pixels.
MISSED = 1e-6
# Degrees; far above the rounding of an angle, far below the difference of pixels' directions.
_ANGLE_TOLERANCE = 1e-11
# Pairs of a point and a border point that the plain versions process at once.
_MAX_PAIRS = 2**20
# A ray without a border point in its own degree takes that of the first of these that has one.
_SEARCH_ORDER = (0, 1, -1, 2, -2, 3, -3)


def cast_ray_targets(
    points: Tensor, owners: Tensor, borders: Borders, *, num_rays: int = 36, wrap: bool = False
) -> Tensor:
    """Distances to the farthest border point near each ray: the published targets of PolarMask.

    A border point counts for the whole degree in which it is seen; a ray takes its own degree or,
    if that one is empty, the nearest of the three on either side, the larger one first.

    Args:
        points: (P, 2) integer x and y in pixels.
        owners: (P,) long, the instance of each point.
        borders: of M instances.
        num_rays: V, a divisor of 360.
        wrap: if True, ray 0 also takes degrees 359 to 357. parity: the published targets do not.

    Returns:
        (P, V) fp32 distances in pixels; `MISSED` where no degree had a point.

    Raises:
        ValueError: `num_rays` does not divide 360, or a tensor has another shape.
        IndexError: an owner is no instance, or the borders' offsets do not ascend within their
            points. On a GPU the compiled operator checks values by assertions of its kernel.
    """
    _degrees_between_rays(num_rays)
    _check_shapes(points, owners, borders)
    device = find_double_device(points.device)
    cast = find_compiled("cast_ray_targets", device) or _cast_ray_targets
    borders = borders.to(device)
    distances = cast(
        points.to(device, torch.int32),
        owners.to(device),
        borders.points,
        borders.offsets,
        num_rays,
        bool(wrap),
    )
    return distances.to(points.device)


def _cast_ray_targets(
    points: Tensor,
    owners: Tensor,
    border_points: Tensor,
    offsets: Tensor,
    num_rays: int,
    wrap: bool,
) -> Tensor:
    """The plain version of the operator."""
    _check_offsets(owners, border_points, offsets)
    starts = torch.arange(0, 360, 360 // num_rays, device=points.device)
    degrees = starts[:, None] + torch.tensor(_SEARCH_ORDER, device=points.device)  # (V, 7)
    consulted = (degrees >= 0) | (starts[:, None] > 0) | wrap
    table = _farthest_per_degree(points, owners, border_points, offsets)  # (P, 360)
    squares = torch.where(consulted, table[:, degrees % 360], -1)  # (P, V, 7)
    first = (squares >= 0).to(torch.uint8).argmax(dim=2, keepdim=True)  # the first of equal ones
    nearest = squares.gather(2, first).squeeze(2)  # (P, V)
    # In double: an fp32 root of torch may differ in the last digit between machines.
    distances = nearest.clamp(min=0).double().sqrt().float()
    return torch.where(nearest >= 0, distances, MISSED)


@register_fake("cast_ray_targets")
def _shape_ray_targets(
    points: Tensor,
    owners: Tensor,
    border_points: Tensor,
    offsets: Tensor,
    num_rays: int,
    wrap: bool,
) -> Tensor:
    return points.new_empty((len(points), num_rays), dtype=torch.float32)


def intersect_rays(
    points: Tensor, owners: Tensor, borders: Borders, *, num_rays: int = 36
) -> Tensor:
    """Distances to the farthest intersection of each ray with its instance's border.

    The border is the polygon through the centres of the border pixels.

    Args:
        points, owners, borders, num_rays: as in `cast_ray_targets`.

    Returns:
        (P, V) fp32 distances in pixels, at least `MISSED`, which stands for no hit.

    Raises:
        ValueError, IndexError: as in `cast_ray_targets`.
    """
    step = _degrees_between_rays(num_rays)
    _check_shapes(points, owners, borders)
    _check_offsets(owners, borders.points, borders.offsets)
    target, device = points.device, find_double_device(points.device)
    points, owners, borders = points.to(device), owners.to(device), borders.to(device)
    directions = _ray_directions(num_rays, device)  # (V, 2) double
    edges, offsets = link_borders(borders)
    hits = points.new_full((len(points) * num_rays,), MISSED, dtype=torch.float64)
    for point, edge in _pair_up(owners, offsets):
        ends = borders.points[edges[edge]].long() - points[point].long()[:, None]  # (Q, 2, 2)
        first, count = _find_crossing_rays(ends, step)
        pair = torch.repeat_interleave(count)
        rank = torch.arange(len(pair), device=count.device) - (count.cumsum(0) - count)[pair]
        ray = (first[pair] + rank) % num_rays
        distance = _hit_distances(ends[pair].double(), directions[ray])
        hits.scatter_reduce_(0, point[pair] * num_rays + ray, distance, "amax")
    return hits.view(len(points), num_rays).float().to(target)


def fill_missed_rays(distances: Tensor) -> Tensor:
    """Give missed rays a distance interpolated from the nearest rays that hit, around the circle.

    Args:
        distances: (P, V) pixels, `MISSED` or less for a miss.

    Returns:
        (P, V); a point that missed with all its rays keeps `MISSED`.
    """
    num_rays = distances.shape[1]
    hit = distances > MISSED
    # Three turns, so that every ray of the middle one has its neighbours on both sides.
    turns = torch.arange(-num_rays, 2 * num_rays, device=distances.device)  # (3V,)
    middle, hits = slice(num_rays, 2 * num_rays), hit.repeat(1, 3)
    last = torch.where(hits, turns, turns[0]).cummax(dim=1).values
    following = torch.where(hits, turns, turns[-1]).flip(1).cummin(dim=1).values.flip(1)
    before, after = last[:, middle], following[:, middle]  # (P, V)
    share = (turns[middle] - before) / (after - before).clamp(min=1)
    low = distances.gather(1, before % num_rays)
    high = distances.gather(1, after % num_rays)
    filled = torch.where(hit.any(dim=1, keepdim=True), low + (high - low) * share, MISSED)
    return torch.where(hit, distances, filled)


def polygon_from_rays(points: Tensor, distances: Tensor) -> Tensor:
    """The polygon whose corners lie on the rays of each point.

    Args:
        points: (P, 2) x and y in pixels.
        distances: (P, V) pixels.

    Returns:
        (P, V, 2) fp32 x and y in pixels.
    """
    num_rays = distances.shape[1]
    # parity: the published decoder has its angles in fp32.
    degrees = torch.arange(num_rays, device=distances.device) * (360 / num_rays)
    angles = degrees / 180 * math.pi
    directions = torch.stack([angles.sin(), angles.cos()], dim=1)  # (V, 2)
    return points.float()[:, None] + distances.float()[:, :, None] * directions


def _check_shapes(points: Tensor, owners: Tensor, borders: Borders) -> None:
    shapes = [tuple(x.shape) for x in (points, owners, borders.points, borders.offsets)]
    expected = [(len(points), 2), (len(points),), (len(borders.points), 2), shapes[3][:1]]
    if shapes != expected or shapes[3] in ((), (0,)):
        raise ValueError(
            "points must be (P, 2), owners (P,), border points (B, 2) and offsets (M + 1,), got "
            f"{', '.join(map(str, shapes))}"
        )


def _check_offsets(owners: Tensor, border_points: Tensor, offsets: Tensor) -> None:
    num_instances = len(offsets) - 1
    if not ((owners >= 0) & (owners < num_instances)).all():
        wrong = owners[(owners < 0) | (owners >= num_instances)][0]
        raise IndexError(f"a point belongs to instance {int(wrong)} of {num_instances}")
    if offsets[0] < 0 or offsets[-1] > len(border_points) or (offsets.diff() < 0).any():
        raise IndexError(
            f"offsets must ascend from 0 to at most {len(border_points)}, the number of border "
            "points"
        )


def _degrees_between_rays(num_rays: int) -> int:
    if num_rays < 1 or 360 % num_rays:
        raise ValueError(f"{num_rays} rays do not divide 360 degrees evenly; take a divisor of 360")
    return 360 // num_rays


def _pair_up(owners: Tensor, offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair every point with all candidates of its instance, a limited number of pairs at a time.

    Args:
        owners: (P,) long, instance of each point.
        offsets: (M + 1,) long, where the candidates of each instance begin (edges or border
            points).

    Yields:
        Index of the point (Q,) and of the candidate (Q,), both long.
    """
    counts = offsets.diff()[owners]  # (P,)
    if len(counts) == 0:
        return
    rows = max(1, _MAX_PAIRS // max(1, int(counts.max())))
    for chunk in torch.arange(len(owners), device=owners.device).split(rows):
        point = torch.repeat_interleave(chunk, counts[chunk])
        before = counts[chunk].cumsum(0) - counts[chunk]
        shift = offsets[owners[chunk]] - before
        candidate = torch.arange(len(point), device=point.device) + shift[point - chunk[0]]
        yield point, candidate


def _farthest_per_degree(
    points: Tensor, owners: Tensor, border_points: Tensor, offsets: Tensor
) -> Tensor:
    """(P, 360) squared distance of the farthest border point in each degree, -1 for none."""
    table = points.new_full((len(points) * 360,), -1)
    for point, border_point in _pair_up(owners, offsets):
        vectors = border_points[border_point] - points[point]  # (Q, 2)
        x, y = vectors.unbind(1)
        table.scatter_reduce_(0, point * 360 + _whole_degrees(vectors)[0], x * x + y * y, "amax")
    return table.view(len(points), 360)


def _whole_degrees(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of integer vectors, rounded down and up to whole degrees, without error.

    Among vectors shorter than 2**15, only those along axes and diagonals have a direction closer
    than 2e-9 degrees to a whole one.

    Args:
        vectors: (..., 2) integer.

    Returns:
        (...) long each, in [0, 360); 0 for the zero vector.
    """
    x, y = vectors.double().unbind(-1)
    degrees = torch.atan2(x, y).rad2deg_()
    floor = (degrees + _ANGLE_TOLERANCE).floor_().long() % 360
    ceil = (degrees - _ANGLE_TOLERANCE).ceil_().long() % 360
    return floor, ceil


def _ray_directions(num_rays: int, device: torch.device) -> Tensor:
    """(V, 2) double unit vectors, exact on the axes and with equal parts on the diagonals."""
    vectors = []
    for degree in range(0, 360, 360 // num_rays):
        quarter, rest = divmod(degree, 90)
        across, along = math.sin(math.radians(rest)), math.sin(math.radians(90 - rest))
        vectors.append(
            [(across, along), (along, -across), (-across, -along), (-along, across)][quarter]
        )
    return torch.tensor(vectors, dtype=torch.float64, device=device)


def _find_crossing_rays(ends: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Rays from the origin that meet segments between neighbouring pixels.

    Args:
        ends: (Q, 2, 2) long, both ends' x and y relative to the origin.
        step: degrees between rays.

    Returns:
        First ray (Q,) and number of rays (Q,), both long; further rays follow it, modulo V.
    """
    begin, end = ends.unbind(1)  # (Q, 2)
    turn = end[:, 0] * begin[:, 1] - end[:, 1] * begin[:, 0]  # > 0: the angle grows to the end
    farther = end.square().sum(1) > begin.square().sum(1)
    # In line with the origin, both ends have the direction of the farther one.
    lead = torch.where((turn > 0) | ((turn == 0) & ~farther), 0, 1)
    trail = torch.where(turn == 0, lead, 1 - lead)
    floor, ceil = _whole_degrees(ends)  # (Q, 2)
    start = ceil.gather(1, lead[:, None]).squeeze(1)
    stop = floor.gather(1, trail[:, None]).squeeze(1)
    # A segment is seen under less than 180 degrees: 359 means that it ends before it starts.
    span = (stop - start) % 360
    first = (start + step - 1) // step
    count = (start + span) // step - first + 1
    return first, torch.where(span < 180, count, 0)


def _hit_distances(ends: Tensor, directions: Tensor) -> Tensor:
    """Distances (Q,) at which rays along unit vectors (Q, 2) meet segments (Q, 2, 2)."""
    begin, end = ends.unbind(1)
    edge = end - begin
    sine = directions[:, 0] * edge[:, 1] - directions[:, 1] * edge[:, 0]
    across = begin[:, 0] * edge[:, 1] - begin[:, 1] * edge[:, 0]
    # A ray along the segment leaves it at its farther end.
    along = (ends * directions[:, None]).sum(dim=2).amax(dim=1)
    return torch.where(sine == 0, along, across / torch.where(sine == 0, 1.0, sine))
