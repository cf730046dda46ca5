"""The cache folder, locks, atomic writing: a killed process leaves a file complete or absent."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from instancezoo.errors import ZooError

logger = logging.getLogger(__name__)
CACHE_VARIABLE = "INSTANCEZOO_CACHE"
_LEFTOVER = ".tmp"
_HEX = "[0-9a-f]" * 32
_LOCK_NAME = ".lock"
_locks: dict[str, IO[str]] = {}  # folder -> its lock, held open until the process ends
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def get_cache_folder() -> Path:
    """Return `$INSTANCEZOO_CACHE`, else `~/.cache/instancezoo`, which may not exist yet."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/instancezoo"
    return Path(folder).expanduser().absolute()


class PartialFile:
    """A hidden path to write to; `close` renames the complete file to its final path.

    Its owner holds a lock on it, so that `remove_leftovers` knows it from a dead writer's file.

    Args:
        path: final path; its folder is created if missing.
        suffix: suffix of the hidden path, for writers that choose a format by it.
    """

    def __init__(self, path: str | Path, suffix: str = _LEFTOVER) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.hidden = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}{suffix}")
        self._guard = self.hidden.open("xb")
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)

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
            self._guard.close()


@contextmanager
def open_atomically(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when it is complete.

    After an error inside the block, or a kill, `path` is unchanged.

    Args:
        path: file to write; an existing one is replaced in one step.
        mode: "wb" for bytes, "w" for text in UTF-8.

    Raises:
        OSError: the file cannot be written, for example on a full disk; names `path`.
    """
    with name_in_errors(path):
        partial, is_complete = PartialFile(path), False
        try:
            with partial.hidden.open(mode, encoding="utf-8" if mode == "w" else None) as file:
                yield file
            is_complete = True
        finally:
            partial.close(keep=is_complete)


@contextmanager
def name_in_errors(path: str | Path) -> Iterator[None]:
    """Name `path` in an error of the disk inside the block that names no file, as a full one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _DISK_ERRORS:
            error.filename = os.fspath(path)
        raise


def describe_os_error(error: OSError) -> str:
    """Describe an error of the system in one line: path, cause, and a remedy for the cache."""
    if error.filename is None or not error.strerror:
        return " ".join(str(error).split())
    remedy = ""
    if get_cache_folder() in Path(str(error.filename)).parents:
        remedy = f". Set ${CACHE_VARIABLE} to a folder with space that can be written"
    return f"{error.filename}: {error.strerror}{remedy}"


def lock_folder(folder: str | Path) -> None:
    """Create a folder, and keep other processes from locking it until this one ends.

    Where the file system has no locks, a warning says so.

    Raises:
        ZooError: another process holds the lock, or the folder cannot be created or written.
    """
    key = os.path.realpath(folder)
    if key in _locks:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Not "w": the file names the process that holds the lock.
        file = (Path(folder) / _LOCK_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise ZooError(
            f"OUTPUT_DIR {folder} cannot be written: {describe_os_error(error)}. Set another "
            "OUTPUT_DIR, or make room for it"
        ) from error
    try:
        # lockf, not flock: loaders, which outlive a killed parent for seconds, do not inherit it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s: no locks (%s): start no second run in it", folder, error.strerror)
            return
        file.seek(0)
        raise ZooError(
            f"OUTPUT_DIR {folder} is in use by another run ({file.read() or 'unknown process'}). "
            "Wait for its end, end it, or set another OUTPUT_DIR"
        ) from error
    with name_in_errors(folder):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    _locks[key] = file


def remove_leftovers(folder: str | Path, pattern: str = "*") -> None:
    """Remove the hidden files that killed writers left; those of living writers stay.

    Args:
        folder: folder of the files.
        pattern: final names, for example "*.pth".
    """
    for path in Path(folder).glob(f".{pattern}.{_HEX}.*"):
        with suppress(OSError), path.open("r+b") as file:  # removed meanwhile, or in use
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _sync_folder(folder: Path) -> None:
    # Without this a power failure may undo the rename. Some file systems do not support it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
