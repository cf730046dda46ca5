"""Ray distances against the published rule, point by point, and against geometry."""

import math

import numpy as np
import pytest
import torch

from instancezoo.layers.borders import Borders, find_borders
from instancezoo.layers.polar import (
    MISSED,
    cast_ray_targets,
    fill_missed_rays,
    intersect_rays,
    polygon_from_rays,
)

pytestmark = pytest.mark.usefixtures("op_version")


def _make_borders(*point_lists):
    lengths = [len(points) for points in point_lists]
    points = [point for points in point_lists for point in points]
    return Borders(
        torch.tensor(points, dtype=torch.int32).view(-1, 2),
        torch.tensor([0, *np.cumsum(lengths)]),
        torch.zeros(len(point_lists), 2),
    )


def _owned(borders, instance):
    return borders.points[borders.offsets[instance] : borders.offsets[instance + 1]].tolist()


def _whole_degree(dx, dy):
    on_axis = {(0, 0): 0, (0, 1): 0, (1, 0): 90, (0, -1): 180, (-1, 0): 270}
    signs = (int(np.sign(dx)), int(np.sign(dy)))
    if abs(dx) == abs(dy) and dx:
        return {(1, 1): 45, (1, -1): 135, (-1, -1): 225, (-1, 1): 315}[signs]
    return on_axis.get(signs, math.floor(math.degrees(math.atan2(dx, dy)) % 360))


def _cast_by_rule(point, border, num_rays, wrap):
    table = {}
    for x, y in border:
        dx, dy = x - point[0], y - point[1]
        degree = _whole_degree(dx, dy)
        table[degree] = max(table.get(degree, 0.0), math.hypot(dx, dy))
    rays = []
    for ray in range(num_rays):
        theta = ray * 360 // num_rays
        degrees = [theta + shift for shift in (0, 1, -1, 2, -2, 3, -3)]
        if theta == 0 and not wrap:
            degrees = [degree for degree in degrees if degree >= 0]
        rays.append(next((table[d % 360] for d in degrees if d % 360 in table), 1e-6))
    return rays


def _random_case(seed, num_instances=4, num_points=30):
    """Borders of some hundred pixels or of a few, with none at the end; points near and far."""
    rng = np.random.default_rng(seed)
    size = rng.integers(10, 60)
    lists = [rng.integers(0, size, (rng.integers(1, 150), 2)) for _ in range(num_instances - 1)]
    borders = _make_borders(*(points.tolist() for points in lists), [])
    points = torch.from_numpy(rng.integers(-5, size + 5, (num_points, 2)))
    return points, torch.from_numpy(rng.integers(0, num_instances, num_points)), borders


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("num_rays", [36, 18, 72, 360, 1])
def test_ray_targets_follow_the_published_rule(num_rays, wrap):
    for seed in range(6):
        points, owners, borders = _random_case(seed)
        found = cast_ray_targets(points, owners, borders, num_rays=num_rays, wrap=wrap)
        expected = [
            _cast_by_rule(point, _owned(borders, owner), num_rays, wrap)
            for point, owner in zip(points.tolist(), owners.tolist(), strict=True)
        ]
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.tensor(expected))  # doubles, rounded once


def test_every_direction_of_a_pixel_falls_into_its_degree():
    """Also those next to an edge between degrees: 1577/3542 is 5e-8 degrees from 24."""
    reach = torch.arange(-40, 41)
    pixels = torch.cartesian_prod(reach, reach).tolist() + [[1577, 3542], [-1577, 3542]]
    borders = _make_borders(*([pixel] for pixel in pixels))
    points, index = torch.zeros((len(pixels), 2), dtype=torch.long), torch.arange(len(pixels))
    found = cast_ray_targets(points, index, borders, num_rays=360, wrap=True)
    degree = torch.tensor([_whole_degree(*pixel) for pixel in pixels])
    length = torch.tensor([math.hypot(*pixel) for pixel in pixels])
    expected = torch.full((len(pixels), 360), MISSED)
    for shift in range(-3, 4):
        expected[index, (degree + shift) % 360] = length
    assert torch.equal(found, expected)


def test_first_ray_looks_back_only_if_told():
    borders = _make_borders([[-1, 30]])  # at 358 degrees
    points, owners = torch.tensor([[0, 0]]), torch.tensor([0])
    assert cast_ray_targets(points, owners, borders)[0, 0] == torch.tensor(MISSED)
    assert cast_ray_targets(points, owners, borders, wrap=True)[0, 0] == torch.tensor(901).sqrt()


def test_point_on_the_border_is_seen_at_no_distance_by_the_first_ray():
    rays = cast_ray_targets(torch.tensor([[4, 5]]), torch.tensor([0]), _make_borders([[4, 5]]))
    assert rays[0, 0] == 0 and (rays[0, 1:] == MISSED).all()


@pytest.mark.parametrize("cast", [cast_ray_targets, intersect_rays])
def test_nothing_to_cast(cast):
    points, owners, borders = _random_case(0)
    assert cast(points[:0], owners[:0], borders).shape == (0, 36)
    nothing = find_borders(torch.zeros(2, 5, 5, dtype=torch.bool))
    rays = cast(points[:3], torch.tensor([0, 1, 1]), nothing)
    assert rays.shape == (3, 36) and (rays == MISSED).all()


@pytest.mark.parametrize("cast", [cast_ray_targets, intersect_rays])
def test_memory_layout_and_integer_type_do_not_matter(cast):
    points, owners, borders = _random_case(1)
    expected = cast(points, owners, borders)
    columns = points.int().T.contiguous().T
    strided = owners.repeat_interleave(2)[::2]
    turned = Borders(borders.points.T.contiguous().T, borders.offsets, borders.centers)
    assert torch.equal(cast(columns, strided, turned), expected)


@pytest.mark.parametrize("cast", [cast_ray_targets, intersect_rays])
@pytest.mark.parametrize("num_rays", [0, 7, 720])
def test_rays_must_part_the_circle_evenly(cast, num_rays):
    with pytest.raises(ValueError, match=f"{num_rays} rays"):
        cast(*_random_case(0), num_rays=num_rays)


def test_many_pairs_are_cast_in_portions(monkeypatch):
    points, owners, borders = _random_case(2)
    expected = [cast(points, owners, borders) for cast in (cast_ray_targets, intersect_rays)]
    monkeypatch.setattr("instancezoo.layers.polar._MAX_PAIRS", 1)
    assert torch.equal(cast_ray_targets(points, owners, borders), expected[0])
    assert torch.equal(intersect_rays(points, owners, borders), expected[1])


def _direction(degree):
    """Exact where pixels can lie on a ray."""
    return round(math.sin(math.radians(degree)), 15), round(math.cos(math.radians(degree)), 15)


def _hit_farthest(point, pixels, degree):
    """The ray against each pair of border pixels that touch."""
    sine, cosine = _direction(degree)
    local = [(x - point[0], y - point[1]) for x, y in pixels]
    best = 1e-6
    for i, (ax, ay) in enumerate(local):
        for bx, by in local[i:]:
            if max(abs(ax - bx), abs(ay - by)) > 1:
                continue
            ex, ey = bx - ax, by - ay
            turn = sine * ey - cosine * ex
            if abs(turn) < 1e-9:
                if abs(ax * cosine - ay * sine) < 1e-9:
                    best = max(best, ax * sine + ay * cosine, bx * sine + by * cosine)
                continue
            length = (ax * ey - ay * ex) / turn
            share = (ax * cosine - ay * sine) / turn
            if -1e-9 <= share <= 1 + 1e-9:
                best = max(best, length)
    return best


@pytest.mark.parametrize("num_rays", [36, 24, 72])
def test_intersections_equal_those_with_every_edge(num_rays):
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[:24, :26]
    for _ in range(4):
        cx, cy, rx, ry = rng.uniform([5, 5, 3, 3], [20, 18, 10, 10])
        disc = ((xx - cx) / rx) ** 2 + ((yy - cy) / ry) ** 2 < 1
        bitten = disc & ~(((xx - cx - 3) / rx) ** 2 + ((yy - cy) / ry) ** 2 < 0.5)
        line = np.zeros_like(disc)
        line[5, 2:20] = True
        line[range(6, 12), range(9, 15)] = True
        borders = find_borders(torch.from_numpy(np.stack([disc, bitten, line])))
        points = torch.from_numpy(rng.integers(0, 24, (9, 2)))
        points[:3] = borders.points[borders.offsets[1:4] - 1]  # on a border
        points[3:6] = borders.centers.long()
        owners = torch.arange(9) % 3
        found = intersect_rays(points, owners, borders, num_rays=num_rays)
        expected = [
            [
                _hit_farthest(point, _owned(borders, owner), ray * 360 // num_rays)
                for ray in range(num_rays)
            ]
            for point, owner in zip(points.tolist(), owners.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_intersections_leave_no_ray_out_where_degrees_are_empty():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 3:6, 3:6] = True
    point, owner, borders = torch.tensor([[4, 4]]), torch.tensor([0]), find_borders(mask)
    assert (cast_ray_targets(point, owner, borders) == MISSED).any()
    rays = intersect_rays(point, owner, borders)[0]
    angles = torch.arange(36) * math.pi / 18
    expected = 1 / torch.maximum(angles.sin().abs(), angles.cos().abs())  # a square's outline
    torch.testing.assert_close(rays, expected)


def test_missed_rays_lie_between_their_neighbours_around_the_circle():
    miss = MISSED
    rays = torch.tensor(
        [
            [miss, 4.0, miss, miss, 10.0, miss],
            [miss, miss, 3.0, miss, miss, miss],
            [miss] * 6,
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        ]
    )
    filled = fill_missed_rays(rays)
    expected = torch.tensor([[6.0, 4, 6, 8, 10, 8], [3.0] * 6, [miss] * 6, [1.0, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(filled, expected)
    assert fill_missed_rays(rays[:0]).shape == (0, 6)


def test_polygon_runs_from_down_by_way_of_right():
    vertices = polygon_from_rays(torch.tensor([[10, 20]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    expected = torch.tensor([[[10.0, 21], [12, 20], [10, 17], [6, 20]]])
    torch.testing.assert_close(vertices, expected)
    assert polygon_from_rays(torch.zeros(0, 2), torch.zeros(0, 36)).shape == (0, 36, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rays_on_a_gpu_equal_those_on_the_cpu():
    points, owners, borders = _random_case(5, num_points=300)
    on_gpu = Borders(borders.points.cuda(), borders.offsets.cuda(), borders.centers.cuda())
    for cast in (cast_ray_targets, intersect_rays):
        found = cast(points.cuda(), owners.cuda(), on_gpu)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), cast(points, owners, borders))
        assert cast(points[:0].cuda(), owners[:0].cuda(), on_gpu).shape == (0, 36)


def test_operator_is_well_registered_and_refuses_foreign_owners(op_version):
    if op_version == "plain":
        return
    points, owners, borders = _random_case(4)
    op = torch.ops.instancezoo.cast_ray_targets.default
    torch.library.opcheck(op, (points.int(), owners, borders.points, borders.offsets, 36, False))
    with pytest.raises(IndexError, match="instance 4 of 4"):
        cast_ray_targets(points, torch.full_like(owners, 4), borders)


@pytest.mark.parametrize("owner", [-1, 4, 2**40])
@pytest.mark.parametrize("cast", [cast_ray_targets, intersect_rays])
def test_foreign_owners_are_refused(cast, owner, op_version):
    points, owners, borders = _random_case(4)
    owners[2] = owner
    with pytest.raises(IndexError, match=f"instance {owner} of 4"):
        cast(points, owners, borders)


@pytest.mark.parametrize(
    "offsets", [[0, 1, 2, 3, 10**6], [-5, 0, 1, 2, 3], [0, 5, 2, 6, 7], [0, 2**40, 1, 1, 1]]
)
@pytest.mark.parametrize("cast", [cast_ray_targets, intersect_rays])
def test_offsets_beyond_the_border_points_are_refused(cast, offsets, op_version):
    points, owners, borders = _random_case(4)
    bad = Borders(borders.points, torch.tensor(offsets), borders.centers)
    with pytest.raises(IndexError, match=f"ascend from 0 to at most {len(borders.points)}"):
        cast(points, owners, bad)


@pytest.mark.parametrize("cast", [cast_ray_targets, intersect_rays])
def test_tensors_of_other_shapes_are_refused(cast, op_version):
    points, owners, borders = _random_case(4)
    no_offsets = Borders(borders.points, borders.offsets[:0], borders.centers)
    flat = Borders(borders.points.flatten(), borders.offsets, borders.centers)
    for arguments in (
        (points[:, :1], owners, borders),
        (points, owners[:-1], borders),
        (points, owners, no_offsets),
        (points, owners, flat),
    ):
        with pytest.raises(ValueError, match="must be"):
            cast(*arguments)


def test_direct_calls_of_the_operator_are_checked(op_version):
    if op_version == "plain":
        return
    points, owners, borders = _random_case(4)
    given = [points.int(), owners, borders.points, borders.offsets]
    op = torch.ops.instancezoo.cast_ray_targets
    assert op(*given, 36, False).shape == (len(points), 36)
    far = points.int()
    far[0, 0] = -(2**31)
    for place, wrong, words in (
        (0, points, "int32"),
        (0, far, "span"),
        (1, owners.int(), "int64"),
        (2, borders.points.long(), "int32"),
        (3, borders.offsets * 3, "ascend"),
        (3, borders.offsets[:0], "offsets"),
        (3, borders.offsets.float(), "int64"),
    ):
        changed = [*given[:place], wrong, *given[place + 1 :]]
        with pytest.raises((RuntimeError, IndexError), match=words):
            op(*changed, 36, False)
