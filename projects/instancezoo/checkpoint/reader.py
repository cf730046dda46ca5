"""Reading of a checkpoint file into plain tensors and containers; loading never runs code."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from instancezoo.errors import ZooError, first_line
from instancezoo.optional import MissingPackageError

from .arrays import ARRAY_NAMES
from .content import PLAIN_NAMES, Resolver, Unsupported
from .display import show_names, show_text
from .mat_file import read_mat_file
from .safe_pickle import RecordingUnpickler, RefusedContent, RefusedGlobal
from .torch_file import read_torch_file

AUTHOR = "InstanceZoo"  # "__author__" of files written here begins with it
# What our files say about their weights, beside the tensors.
FACTS = ("__author__", "method", "config", "licence", "cfg", "class_names", "category_ids")
# Keys under which training scripts save the weights, best first; averaged weights come last.
WEIGHT_KEYS = (
    "model",
    "state_dict",
    "model_state",
    "model_state_dict",
    "blobs",
    "net",
    "network",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "params_ema",
)
# Prefixes that wrappers of a training script add to every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_SAFE_REMEDY = (
    "Use a .safetensors file, or ask the file's author to save the bare weights: "
    "torch.save(model.state_dict(), path)"
)
_DAMAGED_REMEDY = "Download or save it again"
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}


class CheckpointError(ZooError):
    """A checkpoint cannot be used; the message names the file, the reason and the remedy."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    `.pth`, `.pt` and `.pyth` (torch's formats) and `.pkl` are read by an unpickler that accepts
    only arrays, tensors, containers and numbers, `.safetensors` by its own library, and of `.mat`
    the arrays by scipy. Metadata of foreign classes is dropped; a file that calls anything is
    refused, and one whose content would take many times its size in memory.

    Args:
        path: a local file.

    Returns:
        `{"model": {name: tensor on the CPU}, ...}` with the file's other content, such as
        "optimizer" or "iteration"; for a `.safetensors` file its "metadata".

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or it would run code.
        MissingPackageError: the format needs a package that is not installed.
    """
    path = Path(path)
    load = _pick_loader(path)
    try:
        data = load(path)
    except RefusedGlobal as error:
        reason = show_text(first_line(error), most=300)
        raise CheckpointError(f"{path} is refused: {reason}. {_SAFE_REMEDY}") from None
    except RefusedContent as error:
        where = f"'{show_text(error.name)}': " if error.name else ""
        raise CheckpointError(f"{path} is refused: {where}{error}. {_DAMAGED_REMEDY}") from None
    except MissingPackageError:
        raise
    except Exception as error:  # a torn file can end in any error, MemoryError included
        reason = show_text(first_line(error), most=200)
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or not a checkpoint: {reason}. {_DAMAGED_REMEDY}"
        ) from error
    return _unwrap(data, path)


def _pick_loader(path: Path) -> Callable[[Path], Any]:
    check_file(path)
    with path.open("rb") as file:
        head = file.read(256)
    text = b"" if b"\0" in head else head.lstrip()  # the formats hold zero bytes, texts do not
    if not head.strip():
        raise CheckpointError(f"{path} is empty. {_DAMAGED_REMEDY}")
    if text.startswith(b"<"):
        raise CheckpointError(f"{path} is a web page, not a checkpoint. Download the file itself")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not a checkpoint. Run `git lfs pull`")
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise CheckpointError(
            f"{path} ends in '{path.suffix}', which is not a known checkpoint format "
            f"({', '.join(_LOADERS)}). Rename it if it is one of these"
        )
    return loader


def check_file(path: str | Path) -> None:
    """Raise `CheckpointError` if a path is not one of a file that can be read to its end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = "does not exist"
        if not isinstance(error, FileNotFoundError):
            reason = f"cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise CheckpointError(f"{path} {reason}. Check the path (MODEL.WEIGHTS)") from None
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{path} is a folder, not a checkpoint. Name a file in it")
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise CheckpointError(f"{path} is a pipe or a device. Name a regular file (MODEL.WEIGHTS)")
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"{path} may not be read. Change its permissions (chmod)")


def _load_pickle(path: Path) -> Any:
    def refuse(name: str) -> str:
        return f"it names {name}, but a .pkl may hold only arrays, containers and numbers"

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        size, names = len(content), {**PLAIN_NAMES, **ARRAY_NAMES}
        data = Resolver(size).resolve(RecordingUnpickler(content, size, names, refuse).load())
    if not isinstance(data, dict) or "model" in data:
        return data
    # Caffe2 and Detectron 1: Detectron2's heuristics match their names to ours
    blobs = data.get("blobs", data)
    weights = {
        name: value
        for name, value in (blobs if isinstance(blobs, dict) else {}).items()
        if isinstance(value, np.ndarray) and not str(name).endswith("_momentum")
    }
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _load_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"model": state, "metadata": dict(file.metadata() or {})}


_LOADERS: dict[str, Callable[[Path], Any]] = {
    ".pth": read_torch_file,
    ".pt": read_torch_file,
    ".pyth": read_torch_file,
    ".pkl": _load_pickle,
    ".safetensors": _load_safetensors,
    ".mat": read_mat_file,
}


def _unwrap(data: Any, path: Path) -> dict[str, Any]:
    """Find the weights in a file's content. Returns `{"model": weights, ...rest}`."""
    rest: dict[str, Any] = {}
    weights = data
    known: dict[int, bool] = {}
    while isinstance(weights, Mapping):
        inner = next((key for key in WEIGHT_KEYS if _holds_weights(weights.get(key), known)), None)
        if inner is None:
            break
        rest |= {key: value for key, value in weights.items() if key != inner}
        weights = weights[inner]
    if not _holds_weights(weights, known):
        found = type(weights).__name__
        if isinstance(weights, Mapping):
            found = f"the keys {show_names([str(key) for key in weights])}" if weights else "none"
        raise CheckpointError(
            f"{path} holds no weights: expected a dict of named tensors, possibly under "
            f"{', '.join(WEIGHT_KEYS[:3])}; found {found}. {_SAFE_REMEDY}"
        )
    if path.suffix.lower() == ".pyth":  # pycls
        rest.setdefault("matching_heuristics", True)
    state = {name: _as_tensor(name, value, path) for name, value in weights.items()}
    return {**rest, "model": _strip_wrappers(state)}


def _holds_weights(value: Any, known: dict[int, bool]) -> bool:
    """Return True for named tensors, or a dict that holds them; `known` keeps answers by id."""
    if id(value) not in known:
        known[id(value)] = (
            isinstance(value, Mapping)
            and all(isinstance(key, str) for key in value)
            and (
                any(isinstance(v, Tensor | np.ndarray | Unsupported) for v in value.values())
                or any(_holds_weights(value.get(key), known) for key in WEIGHT_KEYS)
            )
        )
    return known[id(value)]


def _as_tensor(name: str, value: Any, path: Path) -> Tensor:
    """Make a tensor of numbers. Raises `CheckpointError` that names what has another form."""
    form = f"a {type(value).__name__}"
    if isinstance(value, Unsupported):
        form = value.form
    elif isinstance(value, np.ndarray):
        form = f"an array of {value.dtype}"
    elif isinstance(value, Tensor):
        form = f"a tensor of {value.dtype}"
    try:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(value)
        elif isinstance(value, bool | int | float):
            value = torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass  # long doubles, and integers beyond 64 bits
    if isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in _DTYPES:
        return value.detach()
    raise CheckpointError(
        f"{path} holds {form} under the name '{show_text(name)}', not a tensor of real numbers. "
        f"{_SAFE_REMEDY}"
    )


def _strip_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def is_ours(checkpoint: Mapping[str, Any]) -> bool:
    """Return True if InstanceZoo wrote the checkpoint, so that its names are our models' names."""
    metadata = checkpoint.get("metadata")
    author = metadata.get("__author__") if isinstance(metadata, Mapping) else None
    author = author or checkpoint.get("__author__")
    return isinstance(author, str) and author.startswith(AUTHOR)


def read_facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Read what one of our files says about its weights: "config", "cfg", "class_names" ...

    Args:
        checkpoint: as from `read_checkpoint`.

    Returns:
        Lists of a `.safetensors` file are JSON texts. Other types are left out.
    """
    metadata = checkpoint.get("metadata")
    facts = {**checkpoint, **(metadata if isinstance(metadata, Mapping) else {})}
    return {name: facts[name] for name in FACTS if isinstance(facts.get(name), str | list)}


def read_average(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the running average of the weights, name -> tensor; empty if a file has none.

    Raises:
        CheckpointError: it has another form.
    """
    average = checkpoint.get("ema")  # state of torch's AveragedModel
    if average is None:
        return {}
    if not isinstance(average, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in average.items()
    ):
        raise CheckpointError(f"its 'ema' is not a dict of named tensors. {_DAMAGED_REMEDY}")
    return {n.removeprefix("module."): v for n, v in average.items() if n != "n_averaged"}
