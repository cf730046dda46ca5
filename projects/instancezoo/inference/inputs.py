"""From the words of a command line to a list of images and videos."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instancezoo.errors import ZooError

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".npy"]
    + [".avif", ".jp2", ".jfif", ".jpe"]
)
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"]
)


@dataclass(frozen=True)
class Input:
    """One file to predict on.

    Args:
        path: as typed or found.
        is_video: True for a video suffix; every other file is tried as an image.
    """

    path: Path
    is_video: bool


def gather_inputs(words: Iterable[str]) -> list[Input]:
    """List the files that file names, folders and patterns refer to.

    Folders are searched with their sub-folders for known image and video suffixes. A file named by
    itself is accepted with any suffix, even if it is missing: the run reports it.

    Args:
        words: paths, or patterns with `*`, `?`, `[...]` and `**`.

    Returns:
        Each file once, in the order of the words, sorted within a folder or pattern.

    Raises:
        ZooError: no file found.
    """
    words = list(words)
    found: dict[Path, Input] = {}
    for word in words:
        for path in _expand_word(word):
            is_video = path.suffix.lower() in VIDEO_SUFFIXES
            found.setdefault(Path(os.path.abspath(path)), Input(path, is_video))
    if not found:
        raise ZooError(
            f"no image or video in {', '.join(map(repr, words))}. Give files, folders or quoted "
            f"patterns; known suffixes: {' '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))}"
        )
    return list(found.values())


def name_pictures(inputs: Iterable[Input], folder: Path) -> list[Path]:
    """Choose a different path for each input's picture or video.

    Args:
        inputs: the files, in any folders.
        folder: folder of the pictures.

    Returns:
        One path for each input: `<stem>.jpg` or `.mp4`, with `_2`, `_3` ... where names collide.

    Raises:
        ZooError: a picture would overwrite an input.
    """
    inputs = list(inputs)
    originals = {os.path.abspath(item.path) for item in inputs}
    taken: set[str] = set()
    paths = []
    for item in inputs:
        suffix = ".mp4" if item.is_video else ".jpg"
        name, copy = item.path.stem, 1
        while f"{name}{suffix}".lower() in taken:  # some file systems ignore case
            copy += 1
            name = f"{item.path.stem}_{copy}"
        taken.add(f"{name}{suffix}".lower())
        paths.append(folder / f"{name}{suffix}")
        if os.path.abspath(paths[-1]) in originals:
            raise ZooError(f"{paths[-1]} is an input file: choose another --output folder")
    return paths


def _expand_word(word: str) -> list[Path]:
    path = Path(word).expanduser()
    if path.is_dir():
        return _search_folder(path)
    if not path.exists() and glob.has_magic(word):
        matches = map(Path, glob.glob(str(path), recursive=True))
        return sorted(p for p in matches if p.is_file())
    return [path]


def _search_folder(folder: Path) -> list[Path]:
    """Images and videos in a folder and its sub-folders, links included; others are counted."""
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found, others, visited = [], Counter[str](), set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(parent))
        folders[:] = [f for f in folders if os.path.realpath(Path(parent, f)) not in visited]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in known:
                found.append(path)
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    if others:
        _logger.warning(
            "%s: %d files of other kinds are left out (%s)",
            folder, others.total(), ", ".join(sorted(others)),
        )  # fmt: skip
    return sorted(found)
