"""The stages of a model: its modules, what all models share, and what methods declare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.layers import batched_nms
from detectron2.modeling import detector_postprocess
from torch import nn

from instancezoo.methods import METHODS
from instancezoo.modeling.masks import masks_for_output

from .clock import Name, StageClock, TimedMethod, time_functions, time_methods

OTHER = "other"


def _name_mask_stage(masks: Any, height: int, width: int, mask_output: str) -> str:
    return "masks to RLE" if mask_output == "rle" else "masks to bitmask"


# Shared by one-stage and two-stage models: a method of the model, or a function -> stage.
SHARED_STAGES: dict[str | Callable[..., Any], Name] = {
    "preprocess": "normalise and pad",
    "preprocess_image": "normalise and pad",
    "decode": "decode",
    "inference": "decode",
    "postprocess": "boxes and fields",
    masks_for_output: _name_mask_stage,
    batched_nms: "box NMS",
    detector_postprocess: "boxes and fields",
}


@contextmanager
def time_stages(
    clock: StageClock, model: nn.Module, methods: Sequence[TimedMethod] = ()
) -> Iterator[None]:
    """Time the stages of every call of a model.

    Args:
        clock: adds up their seconds.
        model: a meta-architecture.
        methods: further stages.
    """
    stages = dict(SHARED_STAGES)
    for method in METHODS:
        stages |= method.stages
    functions = [(key, stage) for key, stage in stages.items() if callable(key)]
    paths = {key: stage for key, stage in stages.items() if isinstance(key, str)}
    timed = [(model, "forward", OTHER), *_list_modules(model), *_list_methods(model, paths)]
    with time_methods(clock, [*timed, *methods]), time_functions(clock, functions):
        yield


def _list_modules(model: nn.Module) -> Iterator[TimedMethod]:
    """Stages of a model's parts and of their parts; "rest" is a part's own work.

    A backbone with a pyramid has two stages: the bottom-up network, and the pyramid as the rest.
    """
    for name, child in model.named_children():
        inner = dict(child.named_children())
        if "bottom_up" in inner:
            inner = {"bottom_up": inner["bottom_up"]}
        yield child, "forward", f"{name}, rest" if inner else name
        for part, module in inner.items():
            # A container is never called, only its modules.
            is_container = isinstance(module, nn.ModuleList | nn.ModuleDict)
            for called in module.children() if is_container else [module]:
                yield called, "forward", f"{name}.{part}"


def _list_methods(model: nn.Module, paths: dict[str, Name]) -> Iterator[TimedMethod]:
    for path, stage in paths.items():
        *holders, method = path.split(".")
        holder: Any = model
        for part in holders:
            holder = getattr(holder, part, None)
        if hasattr(holder, method):
            yield holder, method, stage
