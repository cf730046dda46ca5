"""Distances to the two nearest objects against distances to each object alone."""

import numpy as np
import pytest
import torch

from instancezoo.layers.nearest_two import measure_nearest_two


def _compare_all(labels, reach):
    """Slow reference: all pairs of pixels."""
    height, width = labels.shape
    y, x = np.mgrid[:height, :width]
    found = []
    for label in np.unique(labels[labels > 0]):
        ys, xs = np.nonzero(labels == label)
        dy, dx = y[..., None] - ys, x[..., None] - xs
        squares = (dy**2 + dx**2).astype(float)
        squares[(abs(dy) > reach) | (abs(dx) > reach)] = np.inf
        found.append(np.sqrt(squares.min(axis=-1)))
    found = np.sort(np.stack([*found, *np.full((2, height, width), np.inf)]), axis=0)
    return found[0], found[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (17, 1), (24, 31)])
@pytest.mark.parametrize("reach", [3, 40])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_equals_distances_to_all_pixels(size, reach, share):
    rng = np.random.default_rng(size[0] + reach)
    labels = np.where(rng.random((2, *size)) < share, rng.integers(1, 6, (2, *size)), 0)
    first, second = measure_nearest_two(torch.from_numpy(labels), reach, torch.double)
    for index in range(2):
        expected = _compare_all(labels[index], reach)
        np.testing.assert_allclose(first[index], expected[0])
        np.testing.assert_allclose(second[index], expected[1])


def test_no_image_and_no_object():
    first, second = measure_nearest_two(torch.zeros(0, 4, 5, dtype=torch.long), 9)
    assert first.shape == second.shape == (0, 4, 5) and first.dtype == torch.float32
