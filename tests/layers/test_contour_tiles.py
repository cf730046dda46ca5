"""Tiles of enlarged maps: sides that are known are right, and computed pixels are the pixels."""

import pytest
import torch

from instancezoo.layers.contour_tiles import compute_tiles, find_sides, split_axis
from instancezoo.layers.resize_chain import Crop, Resize, resize_maps, weigh_samples

CASES = {
    "enlarged": ((12, 20), [Resize(48, 80), Crop(45, 71), Resize(130, 211)]),
    "reduced": ((40, 30), [Resize(17, 9)]),
    "one pixel": ((9, 9), [Resize(1, 1)]),
    "uneven": ((30, 8), [Resize(7, 200)]),
}

every_case = pytest.mark.parametrize("size,steps", CASES.values(), ids=CASES)


def _make_case(size, steps, num_maps=6):
    coarse = torch.rand(num_maps, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    scores = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[:, 0]
    by_rows, by_columns = weigh_samples(size, steps)
    return scores, split_axis(by_rows, lead=1), split_axis(by_columns)


@every_case
def test_tiles_cover_every_pixel_once(size, steps):
    _, rows, columns = _make_case(size, steps)
    assert int(rows.is_inside[:, 1:].sum()) == steps[-1].height
    assert int(columns.is_inside.sum()) == steps[-1].width
    # The row behind the last one belongs to a tile, too: a run may end there.
    assert len(rows.samples) * rows.size > steps[-1].height


@every_case
def test_computed_pixels(size, steps):
    scores, rows, columns = _make_case(size, steps)
    expected = resize_maps(scores, steps)
    tiles = torch.ones(len(scores), len(rows.samples), len(columns.samples)).nonzero()
    found = compute_tiles(scores, rows, columns, tiles)
    for tile, (owner, down, across) in zip(found, tiles.tolist(), strict=True):
        y, x = down * rows.size, across * columns.size
        first = max(y - 1, 0)
        part = expected[owner, first : y + rows.size, x : x + columns.size]
        inside = tile[first - y + 1 :][: part.shape[0], : part.shape[1]]
        torch.testing.assert_close(inside.float(), part)


@every_case
@pytest.mark.parametrize("margin", [1e-6, 0.1])
def test_known_sides(size, steps, margin):
    scores, rows, columns = _make_case(size, steps)
    scores[0], scores[1] = 1.0, 0.0
    sides = find_sides(scores, rows, columns, 0.5, torch.full((len(scores),), margin))
    assert (sides[0] == 1).all() and (sides[1] == -1).all()
    tiles = (sides != 0).nonzero()
    pixels = compute_tiles(scores, rows, columns, tiles)
    is_above = sides[tuple(tiles.T)] > 0
    exists = rows.is_inside[tiles[:, 1]][:, :, None] & columns.is_inside[tiles[:, 2]][:, None]
    distance = torch.where(is_above[:, None, None], pixels - 0.5, 0.5 - pixels)
    assert (distance[exists] > 0.9 * margin).all()


def test_numbers_that_are_none_are_on_no_side():
    scores, rows, columns = _make_case(*CASES["enlarged"])
    scores[2] = torch.nan
    margin = torch.full((len(scores),), 1e-6)
    margin[2] = torch.nan
    assert (find_sides(scores, rows, columns, 0.5, margin)[2] == 0).all()
