"""Centres of mass: exact sums of pixels."""

import pytest
import torch

from instancezoo.layers.mass_centers import count_pixels, find_mass_centers


def test_mass_centers_are_exact_for_large_masks():
    mask = torch.ones(1, 1500, 2001, dtype=torch.bool)  # fp32 sums of indices would round
    centers, pixels = find_mass_centers(mask)
    assert centers.tolist() == [[1000.0, 749.5]] and pixels.tolist() == [1500 * 2001]
    assert find_mass_centers(torch.zeros_like(mask))[0].tolist() == [[0, 0]]


SHAPES = [(0, 4, 8), (0, 4, 7), (2, 1, 1), (3, 300, 21), (2, 5, 2100), (1, 600, 8), (9, 700, 801)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_counted_by_column_and_row(shape):
    masks = torch.rand(shape) > 0.02  # nearly full: sums beyond one byte
    columns, rows = count_pixels(masks)
    assert torch.equal(columns, masks.long().sum(1)) and torch.equal(rows, masks.long().sum(2))


def test_no_masks_of_any_strides():
    masks = torch.zeros(1, 1, 1, dtype=torch.bool).expand(4, 6, 8)[:0]
    columns, rows = count_pixels(masks)
    assert (columns.shape, rows.shape) == ((0, 8), (0, 6))
