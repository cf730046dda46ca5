"""The cache folder, and atomic writing: a killed process leaves a file complete or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

CACHE_VARIABLE = "INSTANCEZOO_CACHE"
_LEFTOVER = ".tmp"


def get_cache_folder() -> Path:
    """Return `$INSTANCEZOO_CACHE`, else `~/.cache/instancezoo`, which may not exist yet."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/instancezoo"
    return Path(folder).expanduser().absolute()


class PartialFile:
    """A hidden path to write to; `close` renames the complete file to its final path.

    Args:
        path: final path; its folder is created if missing.
        suffix: suffix of the hidden path, for writers that choose a format by it.
    """

    def __init__(self, path: str | Path, suffix: str = _LEFTOVER) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.hidden = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}{suffix}")

    def close(self, *, keep: bool) -> None:
        """Flush the file to disk and rename it to `path` if `keep`, else remove it."""
        try:
            if keep:
                with self.hidden.open("r+b") as file:
                    os.fsync(file.fileno())
                os.replace(self.hidden, self.path)
                _sync_folder(self.path.parent)
        finally:
            self.hidden.unlink(missing_ok=True)


@contextmanager
def open_atomically(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when it is complete.

    After an error inside the block, or a kill, `path` is unchanged.

    Args:
        path: file to write; an existing one is replaced in one step.
        mode: "wb" for bytes, "w" for text in UTF-8.
    """
    partial, is_complete = PartialFile(path), False
    try:
        with partial.hidden.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
        is_complete = True
    finally:
        partial.close(keep=is_complete)


def remove_leftovers(folder: str | Path, pattern: str) -> None:
    """Remove the hidden files that killed writers left.

    Args:
        folder: folder of the files.
        pattern: final names, for example "*.pth"; no other process may be writing such files now.
    """
    for path in Path(folder).glob(f".{pattern}.*{_LEFTOVER}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Without this a power failure may undo the rename. Some file systems do not support it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
