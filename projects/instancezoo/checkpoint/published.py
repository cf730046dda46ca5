"""The prefix `published://PATH`: a published checkpoint as a file that stock Detectron2 reads.

`MODEL.WEIGHTS "published://weights/model.pth"` works with Detectron2's own `DefaultPredictor`: the
file is recognised, converted and kept in a cache folder. PATH may also be absolute
(`published:///data/model.pth`) or an address that `PathManager` knows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from instancezoo import __version__
from instancezoo.files import get_cache_folder, open_atomically

from .convert import convert_file, list_layouts
from .reader import FACTS, check_file


def _convert_to_cache(source: Path) -> Path:
    """Convert a local file once for each content. Returns a `.pth` file with our names."""
    target = get_cache_folder() / "published" / f"{source.stem}-{_fingerprint(source)}.pth"
    if not target.is_file():
        checkpoint, _ = convert_file(source)
        with open_atomically(target) as file:
            torch.save(checkpoint, file)
    return target


def _fingerprint(source: Path) -> str:
    """Hash a file's content and the rules that convert it."""
    check_file(source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    rules = sorted(
        (
            x.name,
            x.unused,
            repr(x.trained_on),
            [(row[:2], getattr(row[-1], "__qualname__", "")) for row in x.rows],
        )
        for x in list_layouts()
    )
    digest.update(repr((__version__, FACTS, source.suffix, rules)).encode())
    return digest.hexdigest()[:16]


class PublishedHandler(PathHandler):
    """Resolves `published://PATH`. Raises `CheckpointError` for a file that is not recognised."""

    PREFIX = "published:"

    def _get_supported_prefixes(self) -> list[str]:
        # with one slash, too: Detectron2's urlparse turns `published:///abs` into `published:/abs`
        return [f"{self.PREFIX}/"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        source = PathManager.get_local_path(self._strip_prefix(path))
        return str(_convert_to_cache(Path(source)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode, buffering=buffering)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return bool(PathManager.isfile(self._strip_prefix(path)))

    _exists = _isfile

    def _strip_prefix(self, path: str) -> str:
        return path.removeprefix(self.PREFIX).removeprefix("//")


PathManager.register_handler(PublishedHandler())
