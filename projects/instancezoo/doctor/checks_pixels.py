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
    low, high = min(m.low for m in measured), max(m.high for m in measured)
    share = max(m.seen_high for m in measured) - min(m.seen_low for m in measured)
    share /= MAX_8_BIT
    richest = max(measured, key=lambda m: m.num_levels)
    num_seen = max(m.num_seen_levels for m in measured)
    dtypes = ", ".join(sorted({m.dtype for m in measured}))
    message = (
        f"{name}: {len(measured)} images of {dtypes}, values {low:g} to {high:g}, use "
        f"{100 * share:.0f} % of the range with up to {num_seen} levels"
    )
    loses_levels = num_seen < min(MIN_LEVELS, richest.num_levels)
    if not loses_levels and (share >= MIN_RANGE_SHARE or low == high):
        return ok(message)
    if loses_levels:
        message += f" of the {richest.num_levels} in a file"
    return warning(
        f"{message}: the network sees little contrast under INPUT.PIXEL_RANGE {pixel_range}",
        f'set INPUT.PIXEL_RANGE "{suggest_range(low, high)}", or minmax to stretch each image',
    )


def suggest_range(low: float, high: float) -> str:
    """A pair for INPUT.PIXEL_RANGE that holds values from `low` to `high`.

    Whole numbers from 0 on get the range of the smallest number of bits, as cameras have it, and
    shares get (0, 1).
    """
    if low >= 0 and MIN_SHARE_IN_USE <= high <= 1:
        return "(0, 1)"
    if low >= 0 and low == int(low) and high == int(high) and high >= 1:
        return f"(0, {2 ** int(high).bit_length() - 1})"
    return f"({low:g}, {high:g})"


def _sample(paths: list[Path]) -> list[Path]:
    if len(paths) <= NUM_IMAGES:
        return paths
    chosen = np.random.default_rng(0).choice(len(paths), NUM_IMAGES, replace=False)
    return [paths[i] for i in sorted(chosen)]
