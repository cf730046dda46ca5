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


@contextmanager
def open_atomically(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when it is complete.

    The bytes go to a hidden file in the same folder (made if need be), reach the disk, and are then
    renamed over `path`. After an error inside the block, or a kill, `path` is as it was.

    Args:
        path: file to write; an existing one is replaced in one step.
        mode: "wb" for bytes, "w" for text in UTF-8.

    Yields:
        A file to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_LEFTOVER}")
    try:
        with temporary.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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
