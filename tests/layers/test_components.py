import numpy as np
import pytest
import torch
from torch import Tensor

from instancezoo.errors import ConfigError
from instancezoo.layers.components import (
    _label_by_merging,
    drop_small_components,
    label_components,
)

STEPS = {
    4: [(0, 1), (1, 0), (0, -1), (-1, 0)],
    8: [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)],
}


def label_slowly(mask: Tensor, connectivity: int) -> Tensor:
    height, width = mask.shape
    labels, count = torch.zeros(height, width, dtype=torch.long), 0
    for start in mask.nonzero().tolist():
        if labels[tuple(start)]:
            continue
        count += 1
        labels[tuple(start)] = count
        stack = [start]
        while stack:
            y, x = stack.pop()
            for dy, dx in STEPS[connectivity]:
                v, u = y + dy, x + dx
                inside = 0 <= v < height and 0 <= u < width
                if inside and mask[v, u] and labels[v, u] == 0:
                    labels[v, u] = count
                    stack.append([v, u])
    return labels


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 8), (31, 29)])
def test_both_ways_equal_flood_filling(size, density, connectivity):
    generator = torch.Generator().manual_seed(int(100 * density) + connectivity + size[0])
    masks = torch.rand(3, *size, generator=generator) < density
    wanted = torch.stack([label_slowly(mask, connectivity) for mask in masks])
    assert torch.equal(label_components(masks, connectivity=connectivity), wanted)
    assert torch.equal(_label_by_merging(masks, connectivity), wanted)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_large_maps_are_numbered_by_first_pixels(connectivity):
    """OpenCV labels large maps in several threads."""
    generator = torch.Generator().manual_seed(connectivity)
    mask = torch.rand(700, 900, generator=generator) < 0.55
    labels = label_components(mask, connectivity=connectivity)
    _, first = np.unique(labels.numpy(), return_index=True)
    assert (np.diff(first[1:]) > 0).all()
    assert torch.equal(labels, _label_by_merging(mask[None], connectivity)[0])


def test_a_spiral_is_one_component():
    mask = torch.zeros(41, 41, dtype=torch.bool)
    y, x, dy, dx = 0, 0, 0, 1
    for length in range(40, 1, -2):
        for _ in range(2):
            for _ in range(length):
                mask[y, x] = True
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
    assert int(label_components(mask, connectivity=4).max()) == 1
    assert int(_label_by_merging(mask[None], 4).max()) == 1


def test_shapes_without_pixels():
    for shape in [(0, 4, 5), (2, 0, 5), (0, 5)]:
        masks = torch.zeros(shape, dtype=torch.bool)
        assert label_components(masks).shape == shape
        assert drop_small_components(masks, 3).shape == shape


def test_non_contiguous_maps():
    mask = (torch.arange(60) % 7 < 4).view(10, 6)
    assert torch.equal(label_components(mask.T), label_components(mask.T.contiguous()))


def test_small_components_are_dropped():
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1]]).bool()
    kept = drop_small_components(torch.stack([mask, ~mask]), 2, connectivity=4)
    assert kept[0].int().tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert kept[1].equal(drop_small_components(~mask, 2, connectivity=4))
    assert drop_small_components(mask, 2)[2:, :2].int().tolist() == [[1, 0], [0, 1]]
    assert drop_small_components(mask, 0).equal(mask)


def test_connectivity_is_checked():
    with pytest.raises(ConfigError, match="4, 8"):
        label_components(torch.ones(2, 2, dtype=torch.bool), connectivity=6)
