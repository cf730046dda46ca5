"""Borders and mass centres against contours that OpenCV traces with holes, corner by corner."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from instancezoo.layers import extension
from instancezoo.layers.borders import find_borders, link_borders

pytestmark = pytest.mark.usefixtures("op_version")


def _trace(mask):
    """The rule word by word: all borders, largest polygon, centroid, truncated."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    best, best_area = [], -1
    for contour in contours:
        corners = [(int(x), int(y)) for x, y in contour[:, 0]]
        area, _, _ = _polygon_sums(corners)
        if abs(area) > best_area:
            best, best_area = corners, abs(area)
    if not best:
        return set(), (0, 0)
    area, x, y = _polygon_sums(best)
    if area:
        return set(best), (int(x / area), int(y / area))
    sums = np.sum(best, axis=0)
    return set(best), tuple(int(Fraction(int(value), len(best))) for value in sums)


def _polygon_sums(corners):
    area = x_sum = y_sum = Fraction(0)
    for (x, y), (x_before, y_before) in zip(corners, corners[-1:] + corners[:-1], strict=True):
        part = Fraction(x * y_before - y * x_before, 2)
        area += part
        x_sum += part * (x + x_before) / 3
        y_sum += part * (y + y_before) / 3
    return area, x_sum, y_sum


def _draw(kind, height, width, rng):
    mask = np.zeros((height, width), dtype=np.uint8)
    point = lambda: (int(rng.integers(width)), int(rng.integers(height)))  # noqa: E731
    if kind == "noise":
        return rng.random((height, width)) < rng.random()
    if kind == "sparse":
        return rng.random((height, width)) < 0.03
    if kind == "smooth":
        coarse = rng.random((height // 4 + 1, width // 4 + 1)).astype(np.float32)
        return cv2.resize(coarse, (width, height)) > rng.random()
    for _ in range(rng.integers(1, 4)):
        if kind == "ellipses":  # drawn or cut out, so that there are holes and parts in holes
            axes = (int(rng.integers(1, width // 2 + 2)), int(rng.integers(1, height // 2 + 2)))
            cv2.ellipse(mask, point(), axes, 30.0, 0, 360, int(rng.integers(2)), -1)
        elif kind == "rings":
            cv2.circle(mask, point(), int(rng.integers(1, 15)), 1, int(rng.integers(1, 4)))
        else:
            cv2.line(mask, point(), point(), 1)
    return mask > 0


def _check(masks):
    borders = find_borders(torch.from_numpy(masks))
    assert len(borders) == len(masks)
    assert borders.points.dtype == torch.int32 and borders.offsets.dtype == torch.long
    assert borders.centers.dtype == torch.float32
    for index, mask in enumerate(masks):
        expected, center = _trace(mask)
        found = borders.points[borders.offsets[index] : borders.offsets[index + 1]].tolist()
        assert found == sorted(map(list, expected), key=lambda point: point[::-1])
        assert tuple(borders.centers[index].tolist()) == center
    assert borders.offsets[0] == 0 and borders.offsets[-1] == len(borders.points)


@pytest.mark.parametrize("kind", ["noise", "sparse", "smooth", "ellipses", "rings", "lines"])
def test_equal_to_traced_contours(kind):
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = rng.integers(1, 50, 2)
        _check(np.stack([_draw(kind, height, width, rng) for _ in range(3)]))


def test_thin_shapes_have_the_mean_of_a_walk_around_them():
    masks = np.zeros((4, 12, 15), dtype=bool)
    masks[0, 3, 4] = True  # one pixel
    masks[1, 5, 2:13] = True  # a line
    masks[2, range(2, 9), range(3, 10)] = True  # a diagonal
    masks[3, range(2, 9), range(3, 10)] = True  # three arms from a pixel
    masks[3, range(4, 1, -1), range(7, 10)] = True
    _check(masks)
    assert find_borders(torch.from_numpy(masks)).centers[0].tolist() == [4, 3]


def test_holes_are_invisible_and_other_parts_do_not_count():
    disc = np.zeros((40, 60), dtype=np.uint8)
    cv2.circle(disc, (20, 20), 15, 1, -1)
    ring = disc.copy()
    cv2.circle(ring, (22, 19), 9, 0, -1)
    ring[19, 22] = 1  # a part in the hole
    split = ring.copy()
    cv2.circle(split, (50, 20), 8, 1, -1)
    borders = find_borders(torch.from_numpy(np.stack([disc, ring, split])).bool())
    whole, ringed, parted = borders.points.split(borders.offsets.diff().tolist())
    assert torch.equal(whole, ringed) and torch.equal(whole, parted)
    assert borders.centers.tolist() == [[20, 20]] * 3


def test_of_equal_parts_the_one_that_starts_lowest_counts():
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 2:5, 2:5] = mask[0, 12:15, 1:4] = mask[0, 12:15, 8:11] = True
    assert find_borders(torch.from_numpy(mask)).centers.tolist() == [[9, 13]]
    _check(mask)


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0), (3, 5, 7)])
def test_masks_without_a_pixel(shape):
    borders = find_borders(torch.zeros(shape, dtype=torch.bool))
    assert len(borders) == shape[0] and borders.points.shape == (0, 2)
    assert borders.offsets.tolist() == [0] * (shape[0] + 1)
    assert borders.centers.tolist() == [[0, 0]] * shape[0]


def test_memory_layout_does_not_matter():
    masks = torch.rand(4, 30, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    expected = find_borders(masks)
    found = find_borders(masks.transpose(1, 2).contiguous().transpose(1, 2))
    strided = find_borders(masks.repeat_interleave(2, dim=2)[:, :, ::2])
    for borders in (found, strided):
        assert torch.equal(borders.points, expected.points)
        assert torch.equal(borders.centers, expected.centers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_borders_stay_on_the_device_of_the_masks():
    masks = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    found, expected = find_borders(masks.cuda()), find_borders(masks)
    for name in ("points", "offsets", "centers"):
        assert getattr(found, name).is_cuda
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))


def test_operator_is_well_registered(op_version):
    if op_version == "plain":
        assert extension.find_compiled("find_borders", torch.device("cpu")) is None
        return
    masks = torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.library.opcheck(torch.ops.instancezoo.find_borders.default, (masks,))


def test_links_join_touching_pixels_of_one_instance():
    masks = torch.zeros(4, 5, 6, dtype=torch.bool)
    masks[0, 1:3, 4:6] = True  # all six pairs of a square
    masks[1, 1, 0] = True  # a lone pixel, next to it in memory
    masks[3, 0, 1] = masks[3, 1, 0] = masks[3, 1, 2] = True
    borders = find_borders(masks)
    edges, offsets = link_borders(borders)
    assert offsets.tolist() == [0, 6, 7, 7, 9]
    ends = borders.points[edges].tolist()
    assert sorted(ends[:6]) == [
        [[4, 1], [4, 2]],
        [[4, 1], [5, 1]],
        [[4, 1], [5, 2]],
        [[4, 2], [5, 2]],
        [[5, 1], [4, 2]],
        [[5, 1], [5, 2]],
    ]
    assert ends[6] == [[0, 1], [0, 1]]
    assert sorted(ends[7:]) == [[[1, 0], [0, 1]], [[1, 0], [2, 1]]]


@pytest.mark.parametrize("shape", [(5,), (5, 5), (2, 3, 5, 5)])
def test_other_shapes_are_refused(shape, op_version):
    with pytest.raises(ValueError, match=r"\(M, H, W\)"):
        find_borders(torch.ones(shape, dtype=torch.bool))
