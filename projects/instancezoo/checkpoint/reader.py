"""Reading of a checkpoint file into plain tensors and containers; loading never runs code."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from instancezoo.errors import ZooError, first_line

from .safe_pickle import (
    ARRAY_GLOBALS,
    ArrayUnpickler,
    RefusedGlobal,
    list_globals,
    make_foreign,
    resolve,
)

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


class CheckpointError(ZooError):
    """A checkpoint cannot be used; the message names the file, the reason and the remedy."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    `.pth`, `.pt` and `.pyth` are read by torch's weights-only loader, `.pkl` by an unpickler that
    accepts only arrays, containers and numbers, `.safetensors` by its own library. Metadata of
    foreign classes is dropped; a file that calls anything is refused.

    Args:
        path: a local file.

    Returns:
        `{"model": {name: tensor on the CPU}, ...}` with the file's other content, such as
        "optimizer" or "iteration"; for a `.safetensors` file its "metadata".

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or it would run code.
    """
    path = Path(path)
    load = _pick_loader(path)
    try:
        data = load(path)
    except RefusedGlobal as error:
        raise CheckpointError(f"{path} is refused: {error}. {_SAFE_REMEDY}") from None
    except Exception as error:  # a torn file can end in any error, MemoryError included
        reason = first_line(error)[:200]
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or not a checkpoint: {reason}. {_DAMAGED_REMEDY}"
        ) from error
    return _unwrap(data, path)


def _pick_loader(path: Path) -> Callable[[Path], Any]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint. Name a file in it")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist. Check the path (MODEL.WEIGHTS)")
    with path.open("rb") as file:
        head = file.read(256).lstrip()
    if not head:
        raise CheckpointError(f"{path} is empty. {_DAMAGED_REMEDY}")
    if head.startswith(b"<"):
        raise CheckpointError(f"{path} is a web page, not a checkpoint. Download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not a checkpoint. Run `git lfs pull`")
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise CheckpointError(
            f"{path} ends in '{path.suffix}', which is not a known checkpoint format "
            f"({', '.join(_LOADERS)}). Rename it if it is one of these"
        )
    return loader


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # it names something that is neither tensor nor container
    # torch's own restricted interpreter runs again, with a stand-in for each foreign name: a class
    # instance becomes an empty object, and a call of a stand-in is refused. The interpreter itself
    # accepts a few names of the packages below, and no others.
    own = ("torch.", "collections.", "_codecs.", "builtins.")
    foreign = {name: make_foreign(name) for name in list_globals(path) if not name.startswith(own)}
    stand_ins: list[Any] = [(value, name) for name, value in {**foreign, **ARRAY_GLOBALS}.items()]
    try:
        with torch.serialization.safe_globals(stand_ins):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except RefusedGlobal:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error: ", 1)[-1].strip().split("\n")[0]
        raise RefusedGlobal(
            f"loading it would run code or need classes of other packages ({reason.rstrip('. ')})"
        ) from None
    return resolve(data)


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        data = resolve(ArrayUnpickler(file).load())
    if not isinstance(data, dict) or "model" in data:
        return data
    # Caffe2 and Detectron 1: Detectron2's heuristics match their names to ours
    weights = {
        name: value
        for name, value in data.get("blobs", data).items()
        if isinstance(value, np.ndarray) and not str(name).endswith("_momentum")
    }
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _load_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"model": state, "metadata": dict(file.metadata() or {})}


_LOADERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _load_torch,
    ".pt": _load_torch,
    ".pyth": _load_torch,
    ".pkl": _load_pickle,
    ".safetensors": _load_safetensors,
}


def _unwrap(data: Any, path: Path) -> dict[str, Any]:
    """Find the weights in a file's content. Returns `{"model": weights, ...rest}`."""
    rest: dict[str, Any] = {}
    weights = data
    while isinstance(weights, Mapping):
        inner = next((key for key in WEIGHT_KEYS if _holds_weights(weights.get(key))), None)
        if inner is None:
            break
        rest |= {key: value for key, value in weights.items() if key != inner}
        weights = weights[inner]
    if not _holds_weights(weights):
        found = list(weights)[:8] if isinstance(weights, Mapping) else type(weights).__name__
        raise CheckpointError(
            f"{path} holds no weights: expected a dict of named tensors, possibly under "
            f"{', '.join(WEIGHT_KEYS[:3])}; found {found}. {_SAFE_REMEDY}"
        )
    if path.suffix.lower() == ".pyth":  # pycls
        rest.setdefault("matching_heuristics", True)
    state = {name: _as_tensor(name, value, path) for name, value in weights.items()}
    return {**rest, "model": _strip_wrappers(state)}


def _holds_weights(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    tensors = any(isinstance(item, Tensor | np.ndarray) for item in value.values())
    return tensors or any(_holds_weights(value.get(key)) for key in WEIGHT_KEYS)


def _as_tensor(name: str, value: Any, path: Path) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value)
    if isinstance(value, bool | int | float):
        return torch.tensor(value)
    if isinstance(value, Tensor):
        return value.detach()
    raise CheckpointError(
        f"{path} holds a {type(value).__name__} under the name '{name}', not a tensor. "
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
    return str(author or checkpoint.get("__author__", "")).startswith(AUTHOR)


def read_facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Read what one of our files says about its weights: "config", "cfg", "class_names" ...

    Args:
        checkpoint: as from `read_checkpoint`.

    Returns:
        Lists of a `.safetensors` file are JSON texts.
    """
    facts = {**checkpoint, **checkpoint.get("metadata", {})}
    return {name: facts[name] for name in FACTS if name in facts}


def read_average(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the running average of the weights, name -> tensor; empty if a file has none."""
    average = checkpoint.get("ema") or {}  # state of torch's AveragedModel
    return {n.removeprefix("module."): v for n, v in average.items() if n != "n_averaged"}
