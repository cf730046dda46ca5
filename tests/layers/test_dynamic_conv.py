"""Dynamic convolution against a loop over instances."""

import pytest
import torch
import torch.nn.functional as F

from instancezoo.layers.dynamic_conv import dynamic_conv


@pytest.mark.parametrize("num_kernels", [0, 1, 7])
def test_dynamic_conv_is_a_1x1_convolution_per_instance(num_kernels):
    features, kernels = torch.rand(6, 4, 5), torch.randn(num_kernels, 6)
    found = dynamic_conv(features, kernels)
    assert found.shape == (num_kernels, 4, 5)
    for logits, kernel in zip(found, kernels, strict=True):
        torch.testing.assert_close(
            logits, F.conv2d(features[None], kernel[None, :, None, None])[0, 0]
        )


def test_dynamic_conv_stays_in_fp32_under_autocast():
    features, kernels = torch.rand(256, 4, 5), torch.randn(3, 256)
    expected = dynamic_conv(features, kernels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dynamic_conv(features, kernels)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_dynamic_conv_gradient():
    features = torch.rand(3, 2, 2, requires_grad=True)
    kernels = torch.randn(2, 3, requires_grad=True)
    dynamic_conv(features, kernels).square().sum().backward()
    logits = torch.einsum("me,ehw->mhw", kernels, features).detach()
    torch.testing.assert_close(kernels.grad, 2 * torch.einsum("mhw,ehw->me", logits, features))
    torch.testing.assert_close(features.grad, 2 * torch.einsum("mhw,me->ehw", logits, kernels))
