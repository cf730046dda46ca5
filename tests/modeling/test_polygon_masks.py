"""The polygon form: like the other forms in use, pixel for pixel OpenCV's filling."""

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from instancezoo.layers.polar import polygon_from_rays
from instancezoo.modeling.masks import VertexMasks, masks_for_output

pytestmark = pytest.mark.usefixtures("op_version")


def _make_masks(count=6, height=50, width=70):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    rays = 3 + 20 * torch.rand(count, 36, generator=generator)
    vertices = polygon_from_rays(points, rays).clamp(min=0)
    return VertexMasks(torch.minimum(vertices, torch.tensor([width - 1.0, height - 1.0])))


def test_both_outputs_are_opencvs_filling():
    masks = _make_masks()
    found = masks_for_output(masks, 50, 70, "bitmask")
    for mask, vertices in zip(found, masks.vertices, strict=True):
        expected = np.zeros((50, 70), dtype=np.uint8)
        cv2.fillPoly(expected, [vertices.numpy().astype(np.int32)], 1)
        assert np.array_equal(mask.numpy(), expected)
    codes = masks_for_output(masks, 50, 70, "rle")
    decoded = coco_mask.decode(codes).transpose(2, 0, 1)
    assert np.array_equal(decoded, found.numpy())


def test_index_cat_and_none():
    masks = _make_masks()
    full = masks.bitmasks(50, 70)
    assert torch.equal(masks[torch.tensor([4, 1])].bitmasks(50, 70), full[[4, 1]])
    assert torch.equal(masks[full.flatten(1).any(1)].bitmasks(50, 70), full)
    assert torch.equal(masks[-1].bitmasks(50, 70), full[-1:])
    assert torch.equal(VertexMasks.cat([masks[:2], masks[2:]]).bitmasks(50, 70), full)
    assert torch.equal(masks.to(torch.float64).bitmasks(50, 70), full)
    assert len(list(masks)) == 6  # a loop ends
    none = masks[:0]
    assert none.bitmasks(50, 70).shape == (0, 50, 70)
    assert none.rle(50, 70) == [] and none.polygons(50, 70) == []


def test_polygons_stay_within_the_image_and_cover_the_mask():
    masks = _make_masks()
    wide = VertexMasks(masks.vertices * 1.5 - 10)
    for outlines, vertices in zip(wide.polygons(50, 70), wide.vertices, strict=True):
        (outline,) = outlines
        corners = np.array(outline).reshape(-1, 2)
        expected = vertices.numpy().clip(0, [70, 50])
        np.testing.assert_allclose(corners, expected, atol=0.0051)
    big = VertexMasks(masks.vertices * 10)
    codes = [
        coco_mask.merge(coco_mask.frPyObjects(outlines, 500, 700))
        for outlines in big.polygons(500, 700)
    ]
    overlaps = coco_mask.iou(big.rle(500, 700), codes, [0] * len(codes)).diagonal()
    assert (overlaps > 0.95).all()


def test_vertices_have_one_shape_only():
    with pytest.raises(ValueError, match=r"\(M, V, 2\).*\(2, 36\)"):
        VertexMasks(torch.zeros(2, 36))
