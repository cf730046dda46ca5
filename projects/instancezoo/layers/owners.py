"""Sums over rows that belong to owners, such as pixels to instances.

Legend: P rows, M owners.
"""

from __future__ import annotations

from torch import Tensor


def average_by_owner(values: Tensor, owners: Tensor, num_owners: int) -> Tensor:
    """Means of the rows of each owner, zeros for one without rows.

    Args:
        values: (P, ...), fp32 or fp64.
        owners: (P,) long, in [0, num_owners).
        num_owners: M.

    Returns:
        (M, ...)
    """
    # A sum of many pixels rounds each of them by the same amount. What is left over the first mean
    # is small: its mean corrects the first one. Its gradient is that of the whole.
    first = _divide_sums(values.detach(), owners, num_owners)
    return first + _divide_sums(values - first[owners], owners, num_owners)


def _divide_sums(values: Tensor, owners: Tensor, num_owners: int) -> Tensor:
    counts = owners.bincount(minlength=num_owners).clamp(min=1)
    sums = values.new_zeros(num_owners, *values.shape[1:]).index_add(0, owners, values)
    return sums / counts.view(-1, *[1] * (values.ndim - 1))
