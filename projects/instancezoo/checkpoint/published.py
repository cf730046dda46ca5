"""The `published://PATH` prefix: a published checkpoint as a file that stock Detectron2 reads.

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

from .convert import convert_state_dict, list_layouts
from .reader import AUTHOR, CheckpointError, is_ours, read_checkpoint


def convert_to_cache(source: str | Path) -> Path:
    """Convert a published checkpoint into the cache, once for each content.

    Args:
        source: a local file.

    Returns:
        A `.pth` file with our names.

    Raises:
        CheckpointError: the file cannot be read or is not recognised.
    """
    source = Path(source)
    target = get_cache_folder() / "published" / f"{source.stem}-{_fingerprint(source)}.pth"
    if target.is_file():
        return target
    checkpoint = read_checkpoint(source)
    state, author = checkpoint["model"], AUTHOR
    if not is_ours(checkpoint):
        try:
            converted = convert_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        state, author = converted.state, f"{AUTHOR}, from {converted.layout.name}"
    with open_atomically(target) as file:
        torch.save({"model": state, "__author__": author}, file)
    return target


def _fingerprint(source: Path) -> str:
    """Hash a file's content together with the rules that convert it."""
    if not source.is_file():
        raise CheckpointError(f"{source} is not a file. Check the path after published://")
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    rules = [
        (
            layout.name,
            layout.unused,
            [(row[:2], getattr(row[-1], "__qualname__", "")) for row in layout.rows],
        )
        for layout in sorted(list_layouts(), key=lambda layout: layout.name)
    ]
    digest.update(repr((__version__, source.suffix, rules)).encode())
    return digest.hexdigest()[:16]


class PublishedHandler(PathHandler):
    """Resolves `published://PATH`."""

    PREFIX = "published:"

    def _get_supported_prefixes(self) -> list[str]:
        # one slash too: Detectron2's urlparse makes `published:/abs` of `published:///abs`
        return [f"{self.PREFIX}/"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        source = path.removeprefix(self.PREFIX)
        source = source.removeprefix("//") if source.startswith("//") else source
        return str(convert_to_cache(PathManager.get_local_path(source)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode, buffering=buffering)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        source = path.removeprefix(self.PREFIX).removeprefix("//")
        return bool(PathManager.isfile(source))

    _exists = _isfile


PathManager.register_handler(PublishedHandler())
