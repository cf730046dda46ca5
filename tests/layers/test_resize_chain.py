"""Resizes in steps: whole maps, single pixels and matrices agree with torch's own resize."""

import pytest
import torch
import torch.nn.functional as F

from instancezoo.layers.resize_chain import (
    Crop,
    Resize,
    resize_at_points,
    resize_maps,
    weigh_samples,
)

CHAINS = {
    "one": [Resize(150, 210)],
    "padded": [Resize(160, 224), Crop(150, 201), Resize(311, 333)],
    "smaller": [Resize(160, 224), Crop(150, 201), Resize(70, 90)],
    "same": [Resize(40, 56), Crop(40, 50), Resize(40, 50)],
    "mixed": [Crop(39, 33), Resize(170, 20), Resize(200, 180), Crop(100, 170), Resize(131, 135)],
}

every_chain = pytest.mark.parametrize("steps", CHAINS.values(), ids=CHAINS)


def _make_maps(seed=0):
    return torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(seed))


def _resize_one_by_one(maps, steps):
    results = []
    for one in maps[:, None, None]:
        for step in steps:
            if isinstance(step, Crop):
                one = one[:, :, : step.height, : step.width]
            else:
                one = F.interpolate(one, size=(step.height, step.width), mode="bilinear")
        results.append(one[0, 0])
    return torch.stack(results)


@every_chain
def test_whole_maps(steps):
    maps = _make_maps()
    torch.testing.assert_close(resize_maps(maps, steps), _resize_one_by_one(maps, steps))


@every_chain
@pytest.mark.parametrize("num_points", [0, 1, 40, 5000])
def test_points_are_those_of_the_whole_map_to_the_last_bit(steps, num_points):
    maps = _make_maps()
    expected = _resize_one_by_one(maps, steps)
    generator = torch.Generator().manual_seed(1)
    points = torch.stack(
        [torch.randint(0, n, (num_points,), generator=generator) for n in expected.shape], dim=1
    )
    corners = torch.cartesian_prod(*(torch.tensor([0, n - 1]) for n in expected.shape))
    points = torch.cat([points, corners])
    assert torch.equal(resize_at_points(maps, steps, points), expected[tuple(points.T)])


@every_chain
def test_matrices(steps):
    maps = _make_maps()
    rows, columns = weigh_samples((40, 56), steps)
    torch.testing.assert_close(rows @ maps @ columns.T, _resize_one_by_one(maps, steps))
    for weights in (rows, columns):
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))
        assert (weights >= 0).all()
