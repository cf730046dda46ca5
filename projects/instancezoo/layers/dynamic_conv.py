"""Convolution whose kernels are predicted, one per instance.

Legend: M instances, D embedding size, H W map size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dynamic_conv(features: Tensor, kernels: Tensor) -> Tensor:
    """Apply one 1x1 kernel per instance to a shared map (SOLOv2, section 3.2).

    Runs in fp32 also under autocast: the sum over D loses too many digits in half precision.

    Args:
        features: (D, H, W), one image's unified mask features.
        kernels: (M, D), no bias.

    Returns:
        (M, H, W) fp32 logits.
    """
    with torch.autocast(features.device.type, enabled=False):
        logits = kernels.float() @ features.float().flatten(1)  # (M, H*W)
    return logits.unflatten(1, features.shape[1:])
