"""Live progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_PERIOD_S = 10.0


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show the progress, with rate and remaining time.

    Args:
        items: items to yield.
        description: name of the task, in a few words.
        total: number of items, if `items` has no length.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from tqdm(items, desc=description, total=total, leave=False)
    else:
        yield from _track_in_lines(items, description, total)


def _track_in_lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    logger = logging.getLogger("instancezoo")
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_PERIOD_S:
            last = now
            rate = done / (now - start)
            seconds = 0 if total is None else int((total - done) / rate)
            rest = "" if total is None else f", ETA {timedelta(seconds=seconds)}"
            logger.info("%s: %d/%s, %.1f/s%s", description, done, total or "?", rate, rest)
