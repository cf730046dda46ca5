"""Where generated files live, and how files come to be whole or absent whenever a process dies."""

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
    """`$INSTANCEZOO_CACHE`, else `~/.cache/instancezoo`. It need not exist yet."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/instancezoo"
    return Path(folder).expanduser().absolute()


class PartialFile:
    """A hidden path to write to, beside the path whose name the file takes once it is complete.

    Args:
        path: the file's name in the end; its folder is made if need be.
        suffix: of the hidden path, for writers that choose a format by it.
    """

    def __init__(self, path: str | Path, suffix: str = _LEFTOVER) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.hidden = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}{suffix}")

    def close(self, *, keep: bool) -> None:
        """Bring the file to the disk and rename it over `path` if `keep`, else remove it."""
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

    After an error inside the block, or a kill, `path` is as it was.

    Args:
        path: file to write; an existing one is replaced in one step.
        mode: "wb" for bytes, "w" for text in UTF-8.

    Yields:
        A file to write to.
    """
    partial, is_complete = PartialFile(path), False
    try:
        with partial.hidden.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
        is_complete = True
    finally:
        partial.close(keep=is_complete)


def remove_leftovers(folder: str | Path, pattern: str) -> None:
    """Remove what killed writers left behind.

    Args:
        folder: where they wrote.
        pattern: which names they were writing, for example "*.pth"; nobody else writes these now.
    """
    for path in Path(folder).glob(f".{pattern}.*{_LEFTOVER}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename. Some file systems cannot do it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
