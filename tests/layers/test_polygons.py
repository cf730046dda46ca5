"""Filled polygons against OpenCV's `fillPoly`, and their RLE against pycocotools' encode."""

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from instancezoo.layers import extension
from instancezoo.layers.polygons import encode_polygons, fill_polygons

pytestmark = pytest.mark.usefixtures("op_version")


def _star(height, width, rng):
    """36 rays of like lengths around a point, as the network predicts them."""
    angles = np.arange(36) * np.pi / 18
    lengths = rng.uniform(2, 25) * np.exp(np.cumsum(rng.normal(0, 0.15, 36)))
    center = rng.uniform(0, 1, 2) * [width, height]
    return center + lengths[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _draw(kind, height, width, rng):
    """(V, 2) float vertices."""
    limit = np.array([width - 1, height - 1])
    count = rng.integers(1, 12)
    if kind == "inside":  # most of them cross themselves
        return rng.uniform(0, 1, (count, 2)) * limit
    if kind == "star":
        return _star(height, width, rng)
    if kind == "clamped star":
        return _star(height, width, rng).clip(0, limit)
    if kind == "beyond":
        return rng.uniform(-60, 100, (count, 2))
    if kind == "far beyond":
        return rng.uniform(-3000, 3000, (count, 2))
    if kind == "degenerate":  # points, lines, repeated corners
        corners = rng.integers(-5, 60, (2, 2))
        return corners[rng.integers(0, 2, count)].astype(float)
    raise AssertionError(kind)


def _fill_by_opencv(vertices, height, width):
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(mask, [np.trunc(vertices).astype(np.int32)], 1)
    return mask


def _encode(mask):
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


@pytest.mark.parametrize(
    "kind", ["inside", "star", "clamped star", "beyond", "far beyond", "degenerate"]
)
def test_equal_to_opencv_to_the_pixel(kind):
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        vertices = _draw(kind, height, width, rng)
        expected = _fill_by_opencv(vertices, height, width)
        tensor = torch.from_numpy(vertices)[None]
        assert np.array_equal(fill_polygons(tensor, height, width)[0].numpy(), expected)
        assert encode_polygons(tensor, height, width) == [_encode(expected)]


def test_many_polygons_at_once_keep_their_order():
    rng = np.random.default_rng(1)
    vertices = np.stack([_star(70, 90, rng) for _ in range(20)])
    expected = [_fill_by_opencv(polygon, 70, 90) for polygon in vertices]
    tensor = torch.from_numpy(vertices)
    assert np.array_equal(fill_polygons(tensor, 70, 90).numpy(), np.stack(expected) > 0)
    assert encode_polygons(tensor, 70, 90) == [_encode(mask) for mask in expected]


def test_corners_are_truncated_toward_zero():
    vertices = torch.tensor([[[-0.9, -0.9], [3.99, -0.5], [3.99, 2.99], [-0.1, 2.5]]])
    expected = torch.zeros(1, 6, 6, dtype=torch.bool)
    expected[:, :3, :4] = True
    assert torch.equal(fill_polygons(vertices, 6, 6), expected)


def test_runs_go_on_from_column_to_column():
    whole = torch.tensor([[[0.0, 0], [4, 0], [4, 5], [0, 5]]])
    assert encode_polygons(whole, 6, 5) == [_encode(np.ones((6, 5), dtype=np.uint8))]
    right = torch.tensor([[[2.0, 0], [4, 0], [4, 5], [2, 5]]])
    mask = np.zeros((6, 5), dtype=np.uint8)
    mask[:, 2:] = 1
    assert encode_polygons(right, 6, 5) == [_encode(mask)]


@pytest.mark.parametrize("shape", [(0, 36, 2), (3, 0, 2), (3, 1, 2)])
@pytest.mark.parametrize("size", [(0, 0), (0, 4), (4, 0), (4, 5)])
def test_nothing_to_fill(shape, size):
    vertices = torch.full(shape, 9.0)
    assert torch.equal(fill_polygons(vertices, *size), torch.zeros(shape[0], *size).bool())
    empty = {"size": list(size), "counts": _encode(np.zeros(size, dtype=np.uint8))["counts"]}
    assert encode_polygons(vertices, *size) == [empty] * shape[0]


def test_memory_layout_and_type_do_not_matter():
    rng = np.random.default_rng(2)
    vertices = torch.from_numpy(np.stack([_star(40, 50, rng) for _ in range(5)]))
    expected = fill_polygons(vertices.float(), 40, 50)
    turned = vertices.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(fill_polygons(turned, 40, 50), expected)
    assert torch.equal(fill_polygons(vertices.int(), 40, 50), expected)
    assert encode_polygons(turned, 40, 50) == encode_polygons(vertices, 40, 50)
    assert fill_polygons(vertices.float().requires_grad_(), 40, 50).dtype == torch.bool


def test_corners_without_bounds_fill_no_more_than_the_image():
    vertices = torch.tensor(
        [[[-torch.inf, -1e30], [torch.inf, -1e30], [1e30, 1e30], [-1e30, 1e30]]]
    )
    assert fill_polygons(vertices, 7, 9).all()
    assert encode_polygons(vertices, 7, 9) == [_encode(np.ones((7, 9), dtype=np.uint8))]
    assert fill_polygons(torch.full((1, 3, 2), torch.nan), 7, 9).sum() == 1  # taken for (0, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_polygons_on_a_gpu():
    vertices = torch.from_numpy(_star(40, 50, np.random.default_rng(3)))[None]
    found = fill_polygons(vertices.cuda(), 40, 50)
    assert found.is_cuda and torch.equal(found.cpu(), fill_polygons(vertices, 40, 50))
    assert encode_polygons(vertices.cuda(), 40, 50) == encode_polygons(vertices, 40, 50)


@pytest.mark.parametrize("name", ["fill_polygons", "find_polygon_runs"])
def test_operators_are_well_registered(name, op_version):
    op = extension.find_compiled(name, torch.device("cpu"))
    if op_version == "plain":
        assert op is None
        return
    assert op is not None
    vertices = torch.randint(-5, 30, (3, 5, 2), generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(op.default, (vertices.int(), 20, 24))
    with pytest.raises(RuntimeError, match=r"V, 2\) int32"):
        op(vertices, 20, 24)


@pytest.mark.parametrize("fill", [fill_polygons, encode_polygons])
def test_other_shapes_and_sizes_are_refused(fill, op_version):
    for shape in ((2, 4, 3), (4, 2), (2,)):
        with pytest.raises(ValueError, match=r"\(M, V, 2\)"):
            fill(torch.zeros(shape), 5, 7)
    with pytest.raises(ValueError, match="-1 x 5"):
        fill(torch.zeros(1, 4, 2), -1, 5)
