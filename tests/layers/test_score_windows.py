"""Windows of scores, enlarged: both versions against each other and against torch's own resize.

`tests/modeling/test_prototype_masks.py` compares whole masks with the published order of steps.
"""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from instancezoo.layers import extension
from instancezoo.layers.score_windows import (
    find_score_runs,
    locate_cells,
    multiply_in_windows,
    weigh_axes,
)

GRID = (21, 26)
CPU = torch.device("cpu")


def _make_windows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([*GRID])
    corners = (torch.rand(2, count, 2, generator=generator) * (limit + 1)).long()
    windows = torch.cat([corners.amin(dim=0), corners.amax(dim=0)], dim=1)
    windows[:: max(2, count // 4)] = 0
    return windows


@pytest.mark.parametrize("size", [(50, 60), (9, 11), (1, 200), (40, 3), (21, 26), (300, 410)])
def test_weights_are_those_of_torch(size):
    rows, columns = weigh_axes(GRID, *size, CPU)
    maps = torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lines = F.pad(maps[0, 0], (0, 1, 0, 1))
    lines = (lines[:, columns.cells], lines[:, columns.cells + 1])
    lines = sum(a * b for a, b in zip(lines, columns.weights.double().T, strict=True))
    pair = (lines[rows.cells], lines[rows.cells + 1])
    found = sum(a * b[:, None] for a, b in zip(pair, rows.weights.double().T, strict=True))
    expected = F.interpolate(maps, size, mode="bilinear")[0, 0]
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)
    assert (rows.cells.diff() >= 0).all() and (columns.cells.diff() >= 0).all()


@pytest.mark.parametrize("count,depth", [(0, 3), (1, 1), (30, 32), (30, 0)])
def test_products_are_those_of_whole_maps(op_version, count, depth):
    generator = torch.Generator().manual_seed(count)
    prototypes = torch.randn(depth, *GRID, generator=generator)
    coefficients = torch.randn(count, depth, generator=generator)
    windows = _make_windows(count)
    maps = torch.einsum("dhw,md->mhw", prototypes.double(), coefficients.double())
    expected = maps[locate_cells(windows)].float()
    found = multiply_in_windows(prototypes, coefficients, windows)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_cells_are_listed_row_by_row():
    windows = torch.tensor([[2, 3, 4, 6], [0, 0, 0, 0], [1, 1, 2, 2]])
    found = torch.stack(locate_cells(windows), dim=1).tolist()
    expected = [[0, y, x] for y in (2, 3) for x in (3, 4, 5)] + [[2, 1, 1]]
    assert found == expected


@pytest.mark.skipif(not extension.IS_BUILT, reason="instancezoo._C was not built")
@pytest.mark.parametrize("size", [(50, 60), (9, 11), (1, 1), (1, 200), (21, 26), (300, 410)])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("kind", ["noise", "steps", "close"])
def test_both_versions_find_the_same_runs(size, threshold, kind):
    windows = _make_windows(60, seed=sum(size))
    scores = torch.rand(len(locate_cells(windows)[0]), generator=torch.Generator().manual_seed(1))
    if kind == "steps":  # many cells on the threshold
        scores = (scores * 10).floor() / 10
    elif kind == "close":
        scores = threshold + (scores - 0.5) * 4e-6
        scores[::17] = torch.nan
    axes = weigh_axes(GRID, *size, CPU)
    compiled = find_score_runs(scores, windows, *axes, threshold)
    with mock.patch.object(extension, "IS_BUILT", False):
        plain = find_score_runs(scores, windows, *axes, threshold)
    assert torch.equal(compiled[0], plain[0]) and torch.equal(compiled[1], plain[1])
    # The versions leave out pixels that are clear by different means, but only at the margin.
    pairs = [{tuple(pixel) for pixel in unsure.tolist()} for unsure in (compiled[2], plain[2])]
    assert len(pairs[0] ^ pairs[1]) <= 0.01 * len(pairs[0] | pairs[1])


@pytest.mark.skipif(not extension.IS_BUILT, reason="instancezoo._C was not built")
def test_operators_are_well_registered():
    multiply, find = (
        extension.find_compiled(name, CPU) for name in ("multiply_in_windows", "find_score_runs")
    )
    prototypes, coefficients, windows = torch.rand(3, *GRID), torch.rand(5, 3), _make_windows(5)
    torch.library.opcheck(multiply.default, (prototypes, coefficients, windows))
    scores = multiply(prototypes, coefficients, windows) / 3
    axes = [part for axis in weigh_axes(GRID, 40, 50, CPU) for part in (axis.cells, axis.weights)]
    torch.library.opcheck(find.default, (scores, windows, *axes, 0.5, 1e-6))
    with pytest.raises(RuntimeError, match="within the grid"):
        multiply(prototypes, coefficients, windows + 40)
    with pytest.raises(RuntimeError, match="one for each cell"):
        find(scores[1:], windows, *axes, 0.5, 1e-6)
    with pytest.raises(RuntimeError, match="ascend"):
        find(scores, windows, axes[0].flip(0), *axes[1:], 0.5, 1e-6)
    with pytest.raises(RuntimeError, match=r"\(M, D\) float"):
        multiply(prototypes.double(), coefficients, windows)
