"""Clustering of pixels against the definitions, one pixel at a time."""

import pytest
import torch

from instancezoo.layers.clustering import (
    assign_nearest,
    cluster_k_means,
    cluster_mean_shift,
    cluster_votes,
    drop_small,
    group_greedily,
)

SETTINGS = {
    "radius": 0.8,
    "seed_thresh": 0.6,
    "num_shifts": 3,
    "min_size": 3,
    "max_clusters": 100,
    "max_misses": 10**6,
}


def _make_points(seed, count=150, size=3, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(size, count, generator=generator, dtype=torch.float64) * spread
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    scores[::7] = scores[0]  # equal scores
    return points, scores


def _group_by_definition(points, scores, radius, seed_thresh, num_shifts, min_size, **limits):
    free, labels, centres, seeds = set(range(len(scores))), [0] * len(scores), [], []
    misses = 0
    while misses < limits["max_misses"] and len(centres) < limits["max_clusters"]:
        candidates = [p for p in sorted(free) if scores[p] >= seed_thresh]
        if not candidates:
            break
        seed = max(candidates, key=lambda p: scores[p])  # the first of equal ones
        centre = points[:, seed]
        for _ in range(num_shifts):
            around = [p for p in sorted(free) if (points[:, p] - centre).norm() <= radius]
            if not around:
                break
            centre = points[:, around].mean(dim=1)
        members = {p for p in free if (points[:, p] - centre).norm() <= radius} | {seed}
        free -= members
        if len(members) >= min_size:
            centres.append(centre)
            seeds.append(seed)
            for p in members:
                labels[p] = len(centres)
        else:
            misses += 1
    return labels, centres, seeds


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_shifts": 0},
        {"num_shifts": 8, "radius": 1.5},
        {"min_size": 1},
        {"seed_thresh": 2.0},
        {"max_clusters": 2},
        {"max_misses": 2},
        {"radius": 100.0},
        {"radius": 0.0, "min_size": 1},
    ],
)
def test_greedy_equals_its_definition(seed, changes):
    settings, (points, scores) = SETTINGS | changes, _make_points(seed)
    labels, centres, seeds = _group_by_definition(points, scores.tolist(), **settings)
    found = group_greedily(points, scores, **settings)
    assert found.labels.tolist() == labels
    assert found.seeds.tolist() == seeds
    assert found.centres.shape == (len(centres), 3)
    if centres:
        torch.testing.assert_close(found.centres, torch.stack(centres))


def test_more_than_a_hundred_clusters_are_found():
    centres = torch.cartesian_prod(torch.arange(20.0), torch.arange(15.0)).T * 5  # (2, 300)
    points = centres.repeat(1, 10) + 0.1 * torch.rand(2, 3000)
    found = group_greedily(points, torch.ones(3000), **SETTINGS | {"max_clusters": 1000})
    assert len(found.centres) == 300
    assert (found.labels.bincount()[1:] == 10).all()


@pytest.mark.parametrize("seed", range(3))
def test_k_means_equals_its_definition(seed):
    points, _ = _make_points(seed)
    centres = torch.cat([points[:, :4].T, torch.full((1, 3), 99.0, dtype=torch.float64)])
    expected = centres.clone()
    for _ in range(100):
        distances = (points.T[:, None] - expected).square().sum(dim=2)
        nearest = distances.argmin(dim=1)
        moved = expected.clone()
        for k in range(5):
            if (nearest == k).any():
                moved[k] = points[:, nearest == k].mean(dim=1)
        if torch.allclose(moved, expected, rtol=0, atol=1e-13):
            break
        expected = moved
    found = cluster_k_means(points, centres)
    assert torch.equal(found.labels - 1, nearest)
    torch.testing.assert_close(found.centres, expected)
    assert found.centres[4].tolist() == [99, 99, 99]  # nobody is near: it stays


def test_the_first_of_equally_near_centres():
    points = torch.tensor([[0.0, 5.0, 10.0]])
    assert assign_nearest(points, torch.tensor([[10.0], [0.0], [10.0]])).tolist() == [1, 0, 0]


def test_votes():
    # cells (x, y): ten votes at (2, 1), six around (7, 5), a stray one
    places = [(2.0, 1.0)] * 10 + [(7.2, 5.1)] * 4 + [(6.0, 5.0)] * 2 + [(12.0, 9.0)]
    points = torch.tensor(places).T
    found = cluster_votes(points, (8, 10), window=3, min_votes=3, max_clusters=10)
    assert found.centres.tolist() == [[2, 1], [7, 5]]
    assert found.labels.tolist() == [1] * 10 + [2] * 7  # the stray one goes to the nearest
    one = cluster_votes(points, (8, 10), window=3, min_votes=3, max_clusters=1)
    assert one.labels.unique().tolist() == [1]
    none = cluster_votes(points, (8, 10), window=3, min_votes=99, max_clusters=10)
    assert len(none.centres) == 0 and not none.labels.any()


def test_equal_neighbours_are_one_maximum():
    points = torch.tensor([[1.0, 2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]])
    found = cluster_votes(points, (5, 5), window=3, min_votes=1, max_clusters=10)
    assert found.centres.tolist() == [[1, 3]]


def test_small_clusters_are_dropped():
    clusters = cluster_k_means(
        torch.tensor([[0.0, 1, 9, 20, 21, 22]]), torch.tensor([[0.0], [9], [20]])
    )
    kept = drop_small(clusters, 2)
    assert kept.labels.tolist() == [1, 1, 0, 2, 2, 2]
    assert kept.centres.flatten().tolist() == [0.5, 21]


def test_no_pixels():
    empty = torch.zeros(3, 0)
    assert len(group_greedily(empty, torch.zeros(0), **SETTINGS).centres) == 0
    assert cluster_k_means(empty, torch.zeros(2, 3)).labels.shape == (0,)
    found = cluster_votes(empty[:2], (4, 4), window=3, min_votes=1, max_clusters=9)
    assert found.labels.shape == (0,) and found.centres.shape == (0, 2)


def _shift_by_definition(points, bandwidth, min_size):
    count = points.shape[1]
    free, labels, centres, seeds = set(range(count)), [0] * count, [], []
    for start in range(count):
        if start not in free:
            continue
        centre = points[:, start]
        for _ in range(50):
            around = [p for p in range(count) if (points[:, p] - centre).norm() < bandwidth]
            before, centre = centre, points[:, around].mean(dim=1)
            if (centre - before).norm() < 1e-9:
                break
        members = {p for p in free if (points[:, p] - centre).norm() < bandwidth} | {start}
        free -= members
        if len(members) >= min_size:
            centres.append(centre)
            seeds.append(start)
            for p in members:
                labels[p] = len(centres)
    return labels, centres, seeds


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bandwidth,min_size", [(0.4, 1), (0.9, 3), (20.0, 1)])
def test_mean_shift_equals_a_loop(seed, bandwidth, min_size):
    points, _ = _make_points(seed, count=90)
    found = cluster_mean_shift(
        points.T.contiguous().T,
        bandwidth=bandwidth,
        min_size=min_size,
        max_clusters=1000,
        max_misses=1000,
    )
    labels, centres, seeds = _shift_by_definition(points, bandwidth, min_size)
    assert found.labels.tolist() == labels and found.seeds.tolist() == seeds
    torch.testing.assert_close(found.centres, torch.stack(centres))


def test_mean_shift_stops_at_its_limits():
    points = torch.arange(0, 40, 2).float()[None]
    limits = {"bandwidth": 1.0, "max_clusters": 1000, "max_misses": 1000, "min_size": 1}
    assert len(cluster_mean_shift(points, **limits).centres) == 20
    assert len(cluster_mean_shift(points, **{**limits, "max_clusters": 7}).centres) == 7
    few = cluster_mean_shift(points.repeat(2, 1), **{**limits, "min_size": 2, "max_misses": 3})
    assert len(few.centres) == 0 and not few.labels.any()


@pytest.mark.parametrize("count", [0, 1])
def test_mean_shift_of_hardly_any_points(count):
    found = cluster_mean_shift(
        torch.ones(3, count), bandwidth=0.5, min_size=1, max_clusters=9, max_misses=9
    )
    assert found.labels.tolist() == [1] * count
    assert found.centres.shape == (count, 3) and found.seeds.tolist() == [0] * count
