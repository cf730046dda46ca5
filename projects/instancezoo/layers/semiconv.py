"""Semi-convolutional embeddings: operator, colouring loss, kernels, masks refined by a seed.

Novotny et al., "Semi-convolutional Operators for Instance Segmentation", arXiv 1807.10712.

Legend: N images, D embedding size, H W map size, M instances, P pixels, R regions, S region side.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Any

import torch
from torch import Tensor

from instancezoo.layers.embeddings import measure_norms
from instancezoo.layers.owners import average_by_owner

COORD_MODES = ("image", "index", "none")
KERNELS = ("laplacian", "gaussian")
SEEDS = ("soft", "hard")
REDUCTIONS = ("mean", "sum")
# Least -log K: log(1 - K) is finite.
_LEAST_EXPONENT = 1e-6


def add_coordinates(
    features: Tensor, *, stride: float = 1, unit: float = 64.0, mode: str = "image"
) -> Tensor:
    """The semi-convolutional operator: add each cell's position (section 3.1).

    Args:
        features: (N, D, H, W), convolutional response Phi; any float. D is 2 or more.
        stride: of the map in pixels of the network input.
        unit: pixels that count as 1.
        mode: "image": centres of the cells in the image, (column + 0.5) * stride / unit, the same
            on maps of all strides; "index": column and row; "none": nothing is added, an ordinary
            convolution.

    Returns:
        (N, D, H, W), Psi: channel 0 plus x, channel 1 plus y. fp32, as half precision cannot tell
        pixels of a large image apart; fp64 for fp64.
    """
    phi = _to_full_precision(features)
    if mode == "none":
        return phi
    y, x = (torch.arange(side, device=phi.device, dtype=phi.dtype) for side in features.shape[2:])
    if mode == "image":
        y, x = ((position + 0.5) * stride / unit for position in (y, x))
    position = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))])  # (2, H, W)
    return torch.cat([phi[:, :2] + position, phi[:, 2:]], dim=1)


def colouring_loss(
    embeddings: Tensor, owners: Tensor, num_instances: int, *, reduction: str = "mean"
) -> Tensor:
    """Mean distance of an instance's pixels to their mean (equation 5); not squared.

    Args:
        embeddings: (P, D), Psi of all pixels of all instances.
        owners: (P,) long, their instances.
        num_instances: M.
        reduction: "sum" over instances, as printed, or "mean" over those with pixels.

    Returns:
        ()
    """
    vectors = _to_full_precision(embeddings)
    means = average_by_owner(vectors, owners, num_instances)
    distances = measure_norms(vectors - means[owners], 1)  # (P,)
    spreads = average_by_owner(distances, owners, num_instances)  # (M,)
    if reduction == "sum":
        return spreads.sum()
    return spreads.sum() / (owners.bincount(minlength=num_instances) > 0).sum().clamp(min=1)


def measure_exponents(differences: Tensor, log_sigma: Tensor, *, dim: int, kernel: str) -> Tensor:
    """-log K of pairs of embeddings (section 3.3).

    Args:
        differences: Psi_u - Psi_v, with the embedding along `dim`.
        log_sigma: (), logarithm of the bandwidth.
        dim: axis of the embedding.
        kernel: "laplacian", exp(-d / sigma), or "gaussian", exp(-d^2 / (2 sigma^2)).

    Returns:
        Without `dim`, 0 or more.
    """
    vectors = _to_full_precision(differences)
    sigma = _to_full_precision(log_sigma).exp()
    if kernel == "gaussian":
        return vectors.square().sum(dim) / (2 * sigma.square())
    return measure_norms(vectors, dim) / sigma


def find_radius(sigma: float, similarity: float, kernel: str) -> float:
    """Distance at which a kernel has a value in (0, 1]."""
    exponent = -log(similarity)
    return sigma * (sqrt(2 * exponent) if kernel == "gaussian" else exponent)


def kernel_loss(exponents: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy between K and a mask, per pixel.

    Args:
        exponents: -log K, 0 or more.
        targets: of the same shape, bool or 0/1.

    Returns:
        Of the same shape.
    """
    exponents = exponents.clamp(min=_LEAST_EXPONENT)
    return torch.where(targets.bool(), exponents, -torch.log(-torch.expm1(-exponents)))


def refine_mask_logits(
    mask_logits: Tensor, embeddings: Tensor, log_sigma: Tensor, *, seed: str, kernel: str
) -> tuple[Tensor, Tensor]:
    """Lower the mask's logits where the embedding is not the seed's (section 3.4).

    Args:
        mask_logits: (R, S, S), s.
        embeddings: (R, D, S, S), Psi.
        log_sigma: ().
        seed: "soft": Psi expected under the softmax of s over the cells; "hard": Psi of the cell
            with the largest s.
        kernel: one of `KERNELS`.

    Returns:
        s + log K and -log K, (R, S, S) each.
    """
    logits = _to_full_precision(mask_logits)
    seeds = find_seeds(logits, embeddings, seed=seed)
    differences = _to_full_precision(embeddings) - seeds[:, :, None, None]
    exponents = measure_exponents(differences, log_sigma, dim=1, kernel=kernel)
    return logits - exponents, exponents


def find_seeds(mask_logits: Tensor, embeddings: Tensor, *, seed: str) -> Tensor:
    """Embedding of each region's seed, (R, D); arguments as in `refine_mask_logits`."""
    by_cell = _to_full_precision(embeddings).flatten(2)  # (R, D, S*S)
    logits = _to_full_precision(mask_logits).flatten(1)  # (R, S*S)
    if seed == "hard":
        cells = logits.argmax(dim=1)
        return by_cell[torch.arange(len(cells), device=cells.device), :, cells]
    return (by_cell * logits.softmax(dim=1)[:, None]).sum(dim=2)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values; the gradient that comes back through them is multiplied by `factor`."""
    scaled: Tensor = _ScaleGradient.apply(values, factor)
    return scaled


def _to_full_precision(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
