"""layers/points.py against `grid_sample` and slow loops, and on hand-made cases."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from instancezoo.layers.points import (
    PointSampler,
    choose_points,
    make_grid_points,
    measure_uncertainty,
    place_points,
    plan_subdivision,
    sample_masks,
    select_uncertain_cells,
    subdivide,
)


def _sample_one_by_one(maps, owners, points, stride):
    """`grid_sample`, region by region; (R, P, C)."""
    height, width = maps.shape[2:]
    size = maps.new_tensor([width, height]) * stride
    rows = [
        F.grid_sample(maps[owner][None], (at / size * 2 - 1)[None, None], align_corners=False)
        for owner, at in zip(owners.tolist(), points, strict=True)
    ]
    return torch.stack([row[0, :, 0].T for row in rows])


def _draw_case(seed, num_images=3, channels=5, size=(7, 11), regions=6, points=40, stride=4):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(num_images, channels, *size, generator=generator)
    owners = torch.randint(num_images, (regions,), generator=generator)
    extent = torch.tensor([size[1], size[0]]) * stride
    # a third of the points lies outside the map, some of them far
    at = (torch.rand(regions, points, 2, generator=generator) * 1.5 - 0.25) * extent
    return maps, owners, at


@pytest.mark.parametrize("size", [(7, 11), (1, 1), (1, 9), (16, 3)])
@pytest.mark.parametrize("stride", [1, 4, 1 / 7])
def test_sampler_equals_grid_sample(size, stride):
    maps, owners, points = _draw_case(0, size=size, stride=stride)
    found = PointSampler([maps], [stride])(owners, points)
    expected = _sample_one_by_one(maps, owners, points, stride)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sampler_joins_levels_of_any_memory_layout():
    maps, owners, points = _draw_case(1)
    smaller = torch.randn(3, 2, 4, 12)[..., ::2]  # not contiguous
    channels_last = maps.to(memory_format=torch.channels_last)
    found = PointSampler([channels_last, smaller], [4, 8])(owners, points)
    expected = [_sample_one_by_one(maps, owners, points, 4)]
    expected += [_sample_one_by_one(smaller, owners, points, 8)]
    torch.testing.assert_close(found, torch.cat(expected, 2), rtol=1e-4, atol=1e-5)


def test_sampler_by_hand():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    points = torch.tensor([[[0.5, 0.5], [1.5, 0.5], [1.0, 1.0], [0.0, 0.5], [2.0, 2.0], [9, -9]]])
    found = PointSampler([maps], [1])(torch.tensor([0]), points)
    assert found[0, :, 0].tolist() == [1.0, 2.0, 2.5, 0.5, 1.0, 0.0]


def test_sampler_without_regions_or_points():
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    sampler = PointSampler([maps], [4])
    none = sampler(torch.zeros(0, dtype=torch.long), torch.zeros(0, 9, 2))
    assert none.shape == (0, 9, 3)
    assert sampler(torch.tensor([1]), torch.zeros(1, 0, 2)).shape == (1, 0, 3)
    none.sum().backward()
    assert not maps.grad.any()


def test_sampler_takes_half_precision_maps_in_fp32():
    maps, owners, points = _draw_case(2)
    found = PointSampler([maps.bfloat16()], [4])(owners, points)
    assert found.dtype == torch.float32
    expected = PointSampler([maps.bfloat16().float()], [4])(owners, points)
    assert torch.equal(found, expected)


def test_sampler_gradient():
    maps, owners, points = _draw_case(3, num_images=2, channels=2, size=(3, 4), points=5)
    maps = maps.double().requires_grad_()

    def sample(maps):
        return PointSampler([maps], [4])(owners, points.double())

    assert gradcheck(sample, (maps,))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_are_sampled_as_grid_sample_does(dtype):
    masks, owners, points = _draw_case(4, num_images=4, channels=1, size=(9, 13), stride=1)
    masks = (masks > 0).to(dtype)
    found = sample_masks(masks[:, 0], owners, points)
    expected = _sample_one_by_one(masks.float(), owners, points, 1)[:, :, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert ((found > 0) & (found < 1)).any()  # soft, not thresholded


def test_grid_and_placing_by_hand():
    assert make_grid_points(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    boxes = torch.tensor([[10.0, 20.0, 30.0, 24.0], [5.0, 5.0, 5.0, 9.0]])  # 2nd: no width
    points = torch.tensor([[[0.0, 0.0], [0.5, 0.25]]] * 2)
    placed = place_points(points, boxes)
    assert placed.tolist() == [[[10, 20], [20, 21]], [[5, 5], [5, 6]]]


def test_training_points_are_the_most_uncertain_in_order_then_the_fresh_ones():
    logits = torch.tensor([[3.0, -0.5, 1.0, -2.0], [0.0, 4.0, -4.5, 0.1]])
    candidates = torch.arange(8.0).view(2, 4, 1).expand(-1, -1, 2)
    fresh = torch.full((2, 1, 2), 99.0)
    points = choose_points(candidates, measure_uncertainty(logits), fresh, 2)
    assert points[..., 0].tolist() == [[1, 2, 99], [4, 7, 99]]


def test_uncertain_cells_by_hand():
    logits = torch.tensor([[[5.0, -0.1, 3.0], [0.2, -7.0, 1.0]]])
    cells, points = select_uncertain_cells(logits, 2)
    assert cells.tolist() == [[1, 3]]
    assert torch.allclose(points, torch.tensor([[[0.5, 0.25], [1 / 6, 0.75]]]))
    cells, _ = select_uncertain_cells(logits, 100)
    assert sorted(cells[0].tolist()) == list(range(6))


@pytest.mark.parametrize(
    "side,steps,points,expected",
    [
        (7, 5, 784, (28, 3)),  # the published setting
        (7, 5, 783, (14, 4)),
        (7, 5, 196, (14, 4)),
        (7, 5, 195, (7, 5)),
        (7, 1, 784, (28, 0)),  # nothing is left to refine
        (14, 2, 10**4, (56, 0)),
        (28, 0, 100, (28, 0)),
    ],
)
def test_plan_skips_the_steps_that_would_evaluate_everything(side, steps, points, expected):
    assert plan_subdivision(side, steps, points) == expected


def _render_all_classes(logits, classes, steps, count, evaluate):
    """Section 3.2 as published: all classes are enlarged and written, one region at a time."""
    results = []
    for row, label in enumerate(classes.tolist()):
        maps = logits[row]  # (K, H, W)
        for _ in range(steps):
            maps = F.interpolate(maps[None], scale_factor=2, mode="bilinear")[0]
            height, width = maps.shape[1:]
            own = maps[label].flatten().abs().tolist()
            for cell in sorted(range(len(own)), key=own.__getitem__)[:count]:
                x, y = (cell % width + 0.5) / width, (cell // width + 0.5) / height
                maps[:, cell // width, cell % width] = evaluate(row, x, y)
        results.append(maps[label])
    return torch.stack(results)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_one_class_is_refined_as_if_all_were(size):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 4, *size, generator=generator)
    classes = torch.tensor([2, 0, 3])
    frequency = torch.rand(3, 4, 2, generator=generator) * 20

    def evaluate_all(row, x, y):
        return (frequency[row] @ torch.tensor([x, y])).sin()

    def evaluate(points):
        own = frequency[torch.arange(3), classes]  # (R, 2)
        return (points @ own[:, :, None])[..., 0].sin()

    expected = _render_all_classes(logits, classes, 2, 9, evaluate_all)
    found = subdivide(logits[torch.arange(3), classes], 2, 9, evaluate)
    assert found.shape == (3, 4 * size[0], 4 * size[1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_the_selected_points_are_ever_evaluated():
    asked = []

    def evaluate(points):
        asked.append(points)
        return torch.full(points.shape[:2], 50.0)

    start = torch.linspace(-3, 3, 2 * 8 * 8).view(2, 8, 8)
    result = subdivide(start, 3, 20, evaluate)
    assert [points.shape for points in asked] == [(2, 20, 2)] * 3
    assert result.shape == (2, 64, 64)
    # Of the last step no more cells can have the value that was written.
    assert ((result == 50.0).sum(dim=(1, 2)) >= 20).all()


def test_no_step_and_no_region():
    start = torch.randn(2, 3, 3)
    assert torch.equal(subdivide(start, 0, 5, lambda points: points[..., 0]), start)
    assert subdivide(start[:0], 2, 5, lambda points: points[..., 0]).shape == (0, 12, 12)
