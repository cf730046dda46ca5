"""Deformable convolution: what its channels mean, and what a new one does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from instancezoo.layers.deform_conv import DeformConv


@pytest.mark.parametrize("groups,stride", [(1, 1), (2, 2)])
def test_new_version_1_is_a_plain_convolution(groups, stride):
    conv = DeformConv(4, 6, groups=groups, stride=stride)
    features = torch.rand(2, 4, 7, 9)
    expected = F.conv2d(features, conv.weight, stride=stride, padding=1, groups=groups)
    torch.testing.assert_close(conv(features), expected)


def test_new_version_2_has_half_the_strength():
    conv = DeformConv(4, 6, modulated=True, bias=True)
    features = torch.rand(2, 4, 7, 9)
    assert conv.offset.weight.shape[0] == 27
    expected = 0.5 * F.conv2d(features, conv.weight, padding=1) + conv.bias[:, None, None]
    torch.testing.assert_close(conv(features), expected)


def test_offsets_move_taps_by_rows_then_columns():
    conv = DeformConv(1, 1, kernel_size=1, padding=0, modulated=True)
    nn.init.ones_(conv.weight)
    with torch.no_grad():
        conv.offset.bias.copy_(torch.tensor([1.0, 0.0, 100.0]))  # down by one row, full weight
    features = torch.rand(1, 1, 4, 5)
    expected = torch.cat([features[:, :, 1:], torch.zeros(1, 1, 1, 5)], dim=2)
    torch.testing.assert_close(conv(features), expected)


def test_norm_and_activation_come_last():
    conv = DeformConv(2, 4, norm=nn.GroupNorm(2, 4), activation=F.relu)
    found = conv(torch.rand(1, 2, 5, 5))
    assert (found >= 0).all() and (found == 0).any()
    found.sum().backward()
    assert conv.offset.weight.grad is not None


def test_bfloat16_keeps_fractions_of_a_pixel_in_wide_maps():
    conv = DeformConv(1, 1, kernel_size=1, padding=0, modulated=True)
    nn.init.ones_(conv.weight)
    with torch.no_grad():
        conv.offset.bias.copy_(torch.tensor([0.0, 0.5, 100.0]))  # right by half a pixel
    features = torch.arange(300.0).remainder(8).expand(1, 1, 3, 300).contiguous()
    expected = (features[..., :-1] + features[..., 1:]) / 2
    found = conv.bfloat16()(features.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[..., :-1].float(), expected)


def test_bfloat16_trains_under_autocast_as_in_fp32():
    torch.manual_seed(0)
    conv = DeformConv(4, 6, modulated=True, bias=True)
    nn.init.normal_(conv.offset.weight, std=0.1)
    features = torch.rand(2, 4, 7, 9)
    gradients = []
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = conv(features)
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        output.float().square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in conv.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradients[1][name].dtype == torch.float32 and gradient.abs().max() > 0
        error = (gradients[1][name] - gradient).norm() / gradient.norm()
        assert error < 0.05, name


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_offsets_that_are_not_finite_damage_their_own_place(modulated, value):
    """torchvision's operator reads anywhere in memory for an offset of NaN."""
    conv = DeformConv(3, 4, modulated=modulated)
    features = torch.rand(1, 3, 6, 7)
    before = conv(features)
    conv.offset.register_forward_hook(lambda module, inputs, output: _damage(output, value))
    found = conv(features)
    assert found[0, :, 2, 3].isnan().all()
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[2, 3] = True
    assert torch.equal(found[0].isnan().any(dim=0), expected)
    torch.testing.assert_close(found[:, :, ~expected], before[:, :, ~expected])


def _damage(offsets, value):
    offsets = offsets.clone()
    offsets[0, 5, 2, 3] = value
    return offsets
