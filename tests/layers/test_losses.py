"""Losses against their formulas."""

import torch

from instancezoo.layers.losses import dice_loss


def test_dice_loss_equals_its_formula():
    probs, targets = torch.rand(5, 40), torch.rand(5, 40) > 0.6
    found = dice_loss(probs, targets)
    for row in range(5):
        p, t = probs[row].double(), targets[row].double()
        expected = 1 - 2 * (p * t).sum() / ((p * p).sum() + 1e-3 + (t * t).sum() + 1e-3)
        assert abs(found[row].item() - expected.item()) < 1e-6


def test_dice_loss_of_perfect_wrong_and_empty_masks():
    ones, zeros = torch.ones(1, 100), torch.zeros(1, 100)
    assert dice_loss(ones, ones.bool()).item() < 1e-4
    assert dice_loss(ones, zeros.bool()).item() == 1
    assert dice_loss(zeros, zeros.bool()).item() == 1
    assert dice_loss(zeros[:0], zeros[:0].bool()).shape == (0,)


def test_dice_loss_sums_half_precision_in_fp32():
    probs = torch.ones(1, 70_000, dtype=torch.float16)  # more than fp16 can count
    found = dice_loss(probs, torch.ones(1, 70_000, dtype=torch.bool))
    assert found.dtype == torch.float32 and found.item() < 1e-4


def test_dice_loss_gradient():
    probs = torch.rand(3, 7, dtype=torch.float32, requires_grad=True)
    targets = torch.rand(3, 7) > 0.5
    dice_loss(probs, targets).sum().backward()
    step = 1e-3
    for row, pixel in ((0, 0), (1, 3), (2, 6)):
        values = []
        for sign in (1, -1):
            moved = probs.detach().double()
            moved[row, pixel] += sign * step
            t = targets.double()
            size = (moved**2).sum(1) + t.sum(1) + 2e-3
            values.append((1 - 2 * (moved * t).sum(1) / size).sum())
        numeric = (values[0] - values[1]) / (2 * step)
        assert abs(numeric.item() - probs.grad[row, pixel].item()) < 1e-4
