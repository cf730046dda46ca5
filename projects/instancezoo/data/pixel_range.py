"""How the values of image files map to [0, 255], the range of the network: INPUT.PIXEL_RANGE.

C channels, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instancezoo.errors import ConfigError, ZooError

TYPE, MINMAX, PERCENTILES = "type", "minmax", "percentiles"
DEFAULT_PERCENTILES = (0.5, 99.5)
MAX_8_BIT, MAX_16_BIT = 255, 65535
_ROUNDING = 1 / MAX_8_BIT  # by which resampled floats may leave [0, 1]
# Fractions that stay below it would be nearly black if taken as 8-bit values.
_MIN_PEAK_OF_8_BIT_FLOATS = 16


class ImageError(ZooError):
    """An image that cannot be used; one line that names the file."""


@dataclass(frozen=True)
class PixelRange:
    """One way to map values to [0, 255].

    Args:
        kind: "type" (by the type of the values), "minmax", "percentiles" or "numbers".
        low, high: two percentiles, or the two values that become 0 and 255; unused otherwise.
    """

    kind: str = TYPE
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def parse(cls, value: Any) -> PixelRange:
        """Read the value of INPUT.PIXEL_RANGE.

        Args:
            value: "type", "minmax", "percentiles", "percentiles LOW HIGH", "LOW HIGH", or a pair
                of numbers.

        Raises:
            ConfigError: it is none of these.
        """
        if isinstance(value, str):
            words: list[Any] = value.strip("()[] ").replace(",", " ").split()
        else:
            words = list(value) if isinstance(value, Iterable) else [value]
        kind, numbers = "numbers", words
        if words and words[0] in (TYPE, MINMAX, PERCENTILES):
            kind, numbers = words[0], words[1:]
        if kind == PERCENTILES and not numbers:
            numbers = list(DEFAULT_PERCENTILES)
        try:
            pair = [float(number) for number in numbers]
        except (TypeError, ValueError):
            pair = []
        if kind in (TYPE, MINMAX) and not numbers:
            return cls(kind)
        is_pair = len(pair) == 2 and np.isfinite(pair).all() and pair[0] < pair[1]
        in_percent = kind != PERCENTILES or (is_pair and pair[0] >= 0 and pair[1] <= 100)
        if kind in (TYPE, MINMAX) or not is_pair or not in_percent:
            raise ConfigError(
                f"INPUT.PIXEL_RANGE is {value!r}; it must be type, minmax, percentiles, "
                'percentiles LOW HIGH (such as "percentiles 1 99"), or the two values that become '
                'black and white, such as "(0, 4095)"'
            )
        return cls(kind, *pair)

    def apply(self, values: NDArray[Any], bits: int) -> NDArray[Any]:
        """Map values to [0, 255].

        Values beyond the range are clipped. Pixels that are NaN or infinite become 0, and do not
        count for "minmax" and "percentiles", which are of all channels together.

        Args:
            values: of any shape: bool, whole numbers or floats.
            bits: number of bits of whole numbers, such as 12 for 12-bit values in a 16-bit type.

        Returns:
            uint8 for "type", else float32 with all levels kept.

        Raises:
            ImageError: no value is finite; or "type" and floats beyond [0, 1] that are no 8-bit
                values either. It does not name the file.
        """
        if self.kind == TYPE:
            return reduce_to_8_bit(values, bits)
        values = values.astype(np.uint8) if values.dtype == bool else values
        low, high = self._find_limits(values)
        exact = values.astype(np.result_type(values.dtype, np.float32))
        exact = np.where(np.isfinite(exact), exact, low)
        scaled = (exact - low) / (high - low) * MAX_8_BIT if high > low else exact - low
        return np.clip(scaled, 0, MAX_8_BIT).astype(np.float32)

    def _find_limits(self, values: NDArray[Any]) -> tuple[float, float]:
        if self.kind == "numbers":
            return self.low, self.high
        finite = find_finite(values)
        if self.kind == MINMAX:
            return float(finite.min()), float(finite.max())
        low, high = np.percentile(finite, [self.low, self.high])
        return float(low), float(high)


BY_TYPE = PixelRange()


def find_finite(values: NDArray[Any]) -> NDArray[Any]:
    """The values that are finite, (K,). Raises `ImageError` if there are none."""
    if values.dtype.kind != "f":
        return values.reshape(-1)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ImageError("no pixel has a finite value")
    return finite


def reduce_to_8_bit(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Map values to uint8 by their type.

    8-bit values stay, 16-bit ones become their high byte, and others of `bits` their highest 8
    bits. Signed and 32-bit whole numbers count as 16-bit if one of them is over 255. Floats in
    [0, 1] become [0, 255]; those up to 255 count as 8-bit values. NaN and infinity become 0.

    Raises:
        ImageError: see `PixelRange.apply`.
    """
    if values.dtype.kind == "f":
        return _reduce_floats(values)
    if values.dtype == bool:
        return values.astype(np.uint8) * MAX_8_BIT
    if values.dtype == np.uint8 and bits >= 8:
        return values
    if values.dtype.kind == "u" and bits < 16:
        return (values >> (bits - 8) if bits >= 8 else values << (8 - bits)).astype(np.uint8)
    # Pillow opens some 16-bit files, and some 8-bit ones, as 32-bit whole numbers.
    if values.dtype == np.uint16 or values.max(initial=0) > MAX_8_BIT:
        values = np.clip(values, 0, MAX_16_BIT) // (MAX_8_BIT + 1)
    return np.clip(values, 0, MAX_8_BIT).astype(np.uint8)


def _reduce_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    finite = find_finite(values)
    low, high = float(finite.min()), float(finite.max())
    cleaned = np.where(np.isfinite(values), values, 0)
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return np.rint(np.clip(cleaned, 0, 1).astype(np.float32) * MAX_8_BIT).astype(np.uint8)
    if low >= 0 and _MIN_PEAK_OF_8_BIT_FLOATS <= high <= MAX_8_BIT:
        return cleaned.astype(np.uint8)
    raise ImageError(
        f"its floats, from {low:.9g} to {high:.9g}, are neither in [0, 1] nor 8-bit values: set "
        f'INPUT.PIXEL_RANGE "({low:.9g}, {high:.9g})" or another range, or minmax'
    )
