"""The cut against the published order of steps, one object after the other."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from instancezoo.layers.components import label_components
from instancezoo.watershed import cut
from instancezoo.watershed.cut import CutSettings, cut_levels

SETTINGS = CutSettings(
    levels=(1, 2, 1), min_sizes=(6, 9, 6), paint_order=(2, 0, 1), hole_area=5, extra_growth=0
)


def keep_large(mask: Tensor, size: int) -> Tensor:
    labels = label_components(mask, connectivity=4)
    kept = [label for label in labels.unique().tolist() if (labels == label).sum() >= size]
    return mask & torch.isin(labels, torch.tensor(kept))


def cut_slowly(levels: Tensor, classes: Tensor, settings: CutSettings) -> Tensor:
    painted, number = torch.zeros_like(levels), 0
    for label in settings.paint_order:
        mask = (levels > settings.levels[label]) & (classes == label)
        mask = keep_large(mask, settings.min_sizes[label])
        if mask.any():
            mask = ~keep_large(~mask, settings.hole_area)
        parts = label_components(mask, connectivity=8)
        growth = max(0, settings.levels[label] + settings.extra_growth)
        for part in range(1, int(parts.max()) + 1):
            number += 1
            for y, x in (parts == part).nonzero().tolist():
                rows = slice(max(0, y - growth), y + growth + 1)
                painted[rows, max(0, x - growth) : x + growth + 1] = number
    return painted


@pytest.mark.parametrize("budget", [1, 2**30])
@pytest.mark.parametrize("extra", [-5, -1, 0, 1])
def test_cut_equals_the_slow_reference(extra: int, budget: int, monkeypatch) -> None:
    monkeypatch.setattr(cut, "DEFAULT_BUDGET", budget)
    for seed, size in enumerate([(1, 1), (1, 30), (40, 50), (50, 40)]):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(1, 1, *size, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)[0, 0]
        levels = (smooth * 6).long()
        blocks = torch.randint(0, 4, (size[0] // 9 + 1, size[1] // 9 + 1), generator=generator)
        classes = blocks.repeat_interleave(9, 0).repeat_interleave(9, 1)[: size[0], : size[1]]
        settings = replace(SETTINGS, extra_growth=extra)
        painted, owners = cut_levels(levels, classes, settings)
        assert torch.equal(painted, cut_slowly(levels, classes, settings))
        assert not len(owners) or owners.max() < 3
        assert painted.max() <= len(owners)


def _cut(levels: Tensor, classes: Tensor, **changes: object) -> tuple[Tensor, Tensor]:
    return cut_levels(levels, classes, replace(SETTINGS, **changes))


def test_nothing_is_found_in_the_background() -> None:
    painted, owners = _cut(torch.full((9, 9), 5), torch.full((9, 9), 3))
    assert not painted.any() and owners.shape == (0,)


def test_a_small_map_with_nothing_above_the_level_is_no_hole() -> None:
    painted, owners = _cut(torch.zeros(2, 2).long(), torch.zeros(2, 2).long())
    assert not painted.any() and owners.shape == (0,)


def test_objects_joined_by_a_neck_are_told_apart() -> None:
    levels = torch.zeros(20, 40, dtype=torch.long)
    levels[4:16, 4:16] = levels[4:16, 20:32] = 3
    levels[8:12, 16:20] = 1  # the neck lies near the boundary
    painted, owners = _cut(levels, torch.zeros_like(levels))
    assert owners.tolist() == [0, 0] and painted[10, 10] == 1 and painted[10, 26] == 2
    assert (painted == 1).sum() == 14 * 14


def test_holes_are_filled_whatever_is_in_them() -> None:
    levels = torch.full((20, 20), 3)
    levels[:3] = levels[-3:] = levels[:, :3] = levels[:, -3:] = 0
    classes = torch.zeros_like(levels)
    classes[9:11, 9:11] = 3
    painted, _ = _cut(levels, classes)
    assert painted[9, 9] == 1
    painted, _ = _cut(levels, classes, hole_area=4)
    assert painted[9, 9] == 1  # the square of the growth covers it
    painted, _ = _cut(levels, classes, hole_area=4, extra_growth=-1)
    assert painted[9, 9] == 0


def test_later_classes_are_painted_over_earlier_ones() -> None:
    levels = torch.full((12, 24), 3)
    classes = torch.zeros_like(levels)
    classes[:, 12:] = 2
    first, _ = _cut(levels, classes, paint_order=(0, 1, 2))
    second, _ = _cut(levels, classes, paint_order=(2, 1, 0))
    assert first[0].unique_consecutive(return_counts=True)[1].tolist() == [11, 13]
    assert second[0].unique_consecutive(return_counts=True)[1].tolist() == [13, 11]
