"""Coordinate channels."""

import pytest
import torch

from instancezoo.layers.coords import append_coordinates


@pytest.mark.parametrize("axes,channels", [("xy", [0, 1]), ("x", [0]), ("y", [1])])
def test_coordinates_from_minus_one_to_one_come_after_the_features(axes, channels):
    features = torch.rand(2, 4, 3, 5)
    found = append_coordinates(features, axes)
    assert torch.equal(found[:, :4], features)
    x = torch.linspace(-1, 1, 5).expand(3, 5)
    y = torch.linspace(-1, 1, 3)[:, None].expand(3, 5)
    for image in found[:, 4:]:
        assert torch.equal(image, torch.stack([x, y])[channels])


def test_coordinates_follow_the_dtype_of_the_features():
    assert append_coordinates(torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
