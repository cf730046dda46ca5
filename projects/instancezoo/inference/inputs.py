"""From the words of a command line to a list of images and videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instancezoo.errors import ZooError

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".npy"]
    + [".avif", ".jp2"]
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
        known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
        return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in known)
    if not path.exists() and glob.has_magic(word):
        matches = map(Path, glob.glob(str(path), recursive=True))
        return sorted(p for p in matches if p.is_file())
    return [path]
