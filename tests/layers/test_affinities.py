"""Affinities between neighbours against loops over all pairs."""

import math

import pytest
import torch

from instancezoo.layers import affinities
from instancezoo.layers.affinities import (
    affinity_loss,
    compare_neighbours,
    diverge_between,
    drop_positives,
    find_pairs,
    weigh_pairs,
)

SIZES = [(6, 9), (1, 1), (1, 7), (5, 2)]


def _make_ids(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, *size, generator=generator) * 3).long()


def _list_offsets(window):
    reach = window // 2
    sides = range(-reach, reach + 1)
    return [(down, right) for down in sides for right in sides]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [3, 5])
def test_neighbours_equal_a_loop(size, window):
    ids = _make_ids(size)
    is_counted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) > 0.2
    is_same, is_pair = compare_neighbours(ids, is_counted, window)
    assert is_same.shape == is_pair.shape == (2, window**2, *size)
    for channel, (down, right) in enumerate(_list_offsets(window)):
        for n, y, x in torch.ones_like(ids).nonzero().tolist():
            y2, x2 = y + down, x + right
            exists = 0 <= y2 < size[0] and 0 <= x2 < size[1]
            exists = exists and bool(is_counted[n, y, x] and is_counted[n, y2, x2])
            assert is_pair[n, channel, y, x] == exists
            assert is_same[n, channel, y, x] == (exists and ids[n, y, x] == ids[n, y2, x2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [3, 5])
def test_pairs_equal_a_loop(size, window):
    nodes = _make_ids(size)[0] * 2 - 1  # -1, 1, 3
    expected = []
    for y, x in torch.ones_like(nodes).nonzero().tolist():
        for channel, (down, right) in enumerate(_list_offsets(window)):
            y2, x2 = y + down, x + right
            if channel <= window**2 // 2 or not (0 <= y2 < size[0] and 0 <= x2 < size[1]):
                continue
            if nodes[y, x] >= 0 and nodes[y2, x2] >= 0 and nodes[y, x] != nodes[y2, x2]:
                expected.append((y * size[1] + x, y2 * size[1] + x2, channel))
    found = find_pairs(nodes, window)
    columns = (found.first, found.second, found.channels)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_equal_the_formula(dtype, monkeypatch):
    monkeypatch.setattr(affinities, "DEFAULT_BUDGET", 1000)  # several chunks
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(25, 6, 9, generator=generator).to(dtype)
    probs = (3 * torch.randn(4, 6, 9, generator=generator)).softmax(dim=0).to(dtype)
    probs[:, 0, 0], probs[:, 0, 1] = torch.eye(4, dtype=dtype)[:2]  # zeros: 0 log 0 is 0
    logits[:, 3, 3], probs[:, 3, 3:5] = 40.0, torch.eye(4, dtype=dtype)[:1].T
    logits[:, 3, 4] = 40.0
    pairs = find_pairs(torch.arange(54).view(6, 9), 5)
    found = weigh_pairs(logits, probs, pairs)
    assert found.dtype == dtype and found.isfinite().all()
    flat, rows = logits.double().flatten(1), probs.double().flatten(1).T.tolist()
    for number, (a, b, channel) in enumerate(
        zip(pairs.first.tolist(), pairs.second.tolist(), pairs.channels.tolist(), strict=True)
    ):
        affinity = float(flat[channel, a].sigmoid() + flat[24 - channel, b].sigmoid()) / 2
        divergence = 0.0
        for p, q in zip(rows[a], rows[b], strict=True):
            middle = (p + q) / 2
            divergence += sum(0.5 * r * math.log(r / middle) for r in (p, q) if r > 0)
        affinity = min(max(affinity * math.exp(-divergence), 1e-5), 1 - 1e-5)
        assert math.isclose(
            found[number], math.log(affinity / (1 - affinity)), rel_tol=1e-3, abs_tol=1e-5
        )
    assert found.max() == pytest.approx(math.log(1e5), rel=1e-2)


def test_divergence_is_between_0_and_log_2():
    probs = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    first, second = torch.tensor([0, 0]), torch.tensor([1, 2])
    torch.testing.assert_close(
        diverge_between(probs, first, second), torch.tensor([math.log(2), 0.0])
    )
    assert diverge_between(probs, first[:0], second[:0]).shape == (0,)


def test_loss_equals_a_loop_and_has_a_gradient():
    ids = _make_ids((4, 5))
    is_counted = torch.ones_like(ids, dtype=torch.bool)
    is_counted[0, :, 3:] = False
    is_same, is_pair = compare_neighbours(ids, is_counted, 3)
    is_dropped = is_same & (torch.rand(is_same.shape) < 0.5)
    logits = torch.randn(2, 9, 4, 5, dtype=torch.float64, requires_grad=True)

    def measure(values):
        return affinity_loss(values, is_same, is_pair, is_dropped, ids > 0, object_weight=3.0)

    expected = 0.0
    for n, channel, y, x in is_pair.nonzero().tolist():
        if not is_dropped[n, channel, y, x]:
            weight = 3.0 if ids[n, y, x] > 0 else 1.0
            error = logits[n, channel, y, x].sigmoid() - is_same[n, channel, y, x].double()
            expected += weight * error.item() ** 2
    torch.testing.assert_close(measure(logits).item(), expected / int(is_pair.sum()))
    assert torch.autograd.gradcheck(measure, (logits,))


def test_loss_without_a_pair_is_zero():
    nothing = torch.zeros(1, 9, 3, 3, dtype=torch.bool)
    logits = torch.randn(1, 9, 3, 3, requires_grad=True)
    loss = affinity_loss(logits, nothing, nothing, nothing, nothing[:, 0], object_weight=3.0)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_only_positives_are_dropped_the_same_ones_for_a_seed():
    is_same = torch.rand(40, 50, 50) < 0.7
    torch.manual_seed(3)
    dropped = drop_positives(is_same, 0.8)
    torch.manual_seed(3)
    assert torch.equal(dropped, drop_positives(is_same, 0.8))
    assert not (dropped & ~is_same).any()
    assert dropped.sum() / is_same.sum() == pytest.approx(0.8, abs=0.01)
    assert torch.equal(drop_positives(is_same, 1.0), is_same)
    assert not drop_positives(is_same, 0.0).any()
