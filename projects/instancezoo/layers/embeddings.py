"""Embeddings of pixels: norms whose gradient is finite, and a loss that keeps means apart.

Legend: D embedding size, M instances.
"""

from __future__ import annotations

from torch import Tensor


def measure_norms(vectors: Tensor, dim: int) -> Tensor:
    """Euclidean norms along an axis, whose gradient at 0 is 0."""
    squares = vectors.square().sum(dim)
    is_zero = squares == 0
    return squares.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0)


def repulsion_loss(means: Tensor, images: Tensor, *, margin: float) -> Tensor:
    """Push mean embeddings apart: the second term of De Brabandere et al., arXiv 1708.02551.

    Args:
        means: (M, D).
        images: (M,) long; instances of different images do not meet.
        margin: delta_d; means that are twice as far apart do not count.

    Returns:
        (), the mean over ordered pairs of each image, summed over images.
    """
    same = images[:, None] == images  # (M, M)
    first, second = same.fill_diagonal_(False).nonzero(as_tuple=True)
    num_others = same.sum(dim=1)[first]
    hinges = (2 * margin - measure_norms(means[first] - means[second], 1)).clamp(min=0)
    return (hinges.square() / (num_others * (num_others + 1))).sum()
