"""Checks of the pixels of a few images: can they be read, and how much of the range they use.

C channels, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instancezoo.data.images import ImageError, ImageReader
from instancezoo.data.pixel_range import MAX_8_BIT, find_finite
from instancezoo.errors import ZooError, first_line

from .context import Context, DatasetFacts
from .findings import Finding, error, ok, register_check, warning

NUM_IMAGES = 16
MIN_RANGE_SHARE = 0.05
MIN_LEVELS = 64
MAX_SHARE_OF_FEW_LEVELS = 0.5  # of the range: images of few levels that use more are drawings
MAX_VALUES = 2**20  # of an image, whose levels are counted
MIN_SHARE_IN_USE = 0.1  # largest value below which (0, 1) would be too wide
_MAX_FAILURES_SHOWN = 3


@dataclass(frozen=True)
class PixelFacts:
    """What an image holds, and what the network sees of it.

    Args:
        dtype: type of the file's values.
        low, high: smallest and largest finite value in the file.
        num_levels: number of different values in the file.
        seen_low, seen_high, num_seen_levels: the same after the reader, in [0, 255].
    """

    dtype: str
    low: float
    high: float
    num_levels: int
    seen_low: float
    seen_high: float
    num_seen_levels: int


@register_check("pixels")
def check_pixels(context: Context) -> Iterator[Finding]:
    """Depth, range and channels of a sample of images."""
    try:
        reader = ImageReader.from_config(context.cfg)
    except ZooError as problem:
        yield error(first_line(problem), "correct the key")
        return
    for facts in context.datasets:
        yield from _check_dataset(facts, reader, str(context.cfg.INPUT.PIXEL_RANGE))


def measure_pixels(path: Path, reader: ImageReader) -> PixelFacts:
    """Measure an image before and after a reader. Raises `ImageError`."""
    seen = reader(path).reshape(-1)
    values = find_finite(reader.read_values(path))
    return PixelFacts(
        values.dtype.name,
        float(values.min()),
        float(values.max()),
        _count_levels(values),
        float(seen.min()),
        float(seen.max()),
        _count_levels(seen),
    )


def _count_levels(values: np.ndarray) -> int:
    step = -(-len(values) // MAX_VALUES)
    return len(np.unique(values[::step]))


def _check_dataset(facts: DatasetFacts, reader: ImageReader, pixel_range: str) -> Iterator[Finding]:
    paths = _sample(facts.image_paths)
    measured, failures = [], []
    for path in paths:
        try:
            measured.append(measure_pixels(path, reader))
        except ImageError as problem:
            failures.append(first_line(problem))
    if failures:
        shown = "\n  ".join(failures[:_MAX_FAILURES_SHOWN])
        message = f"{facts.name}: {len(failures)} of {len(paths)} images cannot be used:\n  {shown}"
        judge = warning if measured else error
        yield judge(message, "save them as the messages say, or set the keys that they name")
    if measured:
        yield _judge_range(facts.name, measured, pixel_range)


def _judge_range(name: str, measured: list[PixelFacts], pixel_range: str) -> Finding:
    dtypes = ", ".join(sorted({m.dtype for m in measured}))
    low, high = min(m.low for m in measured), max(m.high for m in measured)
    message = f"{name}: {len(measured)} images of {dtypes}, values {low:g} to {high:g}"
    poor = [m for m in measured if _has_little_contrast(m)]
    if not poor:
        return ok(f"{message}, up to {max(m.num_seen_levels for m in measured)} levels")
    low, high = min(m.low for m in poor), max(m.high for m in poor)
    share = (max(m.seen_high for m in poor) - min(m.seen_low for m in poor)) / MAX_8_BIT
    return warning(
        f"{message}. The network sees little contrast in {len(poor)} of them under "
        f"INPUT.PIXEL_RANGE {pixel_range}: values {low:g} to {high:g} use {100 * share:.0f} % of "
        f"the range with up to {max(m.num_seen_levels for m in poor)} levels of the "
        f"{max(m.num_levels for m in poor)} in a file",
        f'set INPUT.PIXEL_RANGE "{suggest_range(low, high)}", or minmax to stretch each image',
    )


def _has_little_contrast(facts: PixelFacts) -> bool:
    """True if another range would show more; a drawing of few colours over all of it is fine."""
    share = (facts.seen_high - facts.seen_low) / MAX_8_BIT
    is_narrow = facts.low < facts.high and share < MIN_RANGE_SHARE
    has_more = facts.num_levels > facts.num_seen_levels or share < MAX_SHARE_OF_FEW_LEVELS
    return is_narrow or (facts.num_levels > 1 and facts.num_seen_levels < MIN_LEVELS and has_more)


def suggest_range(low: float, high: float) -> str:
    """A pair for INPUT.PIXEL_RANGE that holds values from `low` to `high`.

    Whole numbers from 0 on get the range of the smallest number of bits, as cameras have it, and
    shares get (0, 1).
    """
    if low >= 0 and MIN_SHARE_IN_USE <= high <= 1:
        return "(0, 1)"
    if low >= 0 and low == int(low) and high == int(high) and high >= 1:
        largest = 2 ** int(high).bit_length() - 1
        if high - low > 2 * MIN_RANGE_SHARE * largest:
            return f"(0, {largest})"
    return f"({low:.9g}, {high:.9g})"


def _sample(paths: list[Path]) -> list[Path]:
    if len(paths) <= NUM_IMAGES:
        return paths
    chosen = np.random.default_rng(0).choice(len(paths), NUM_IMAGES, replace=False)
    return [paths[i] for i in sorted(chosen)]
