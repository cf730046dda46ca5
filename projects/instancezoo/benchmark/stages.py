"""Which parts of a model are stages: its modules, what all models share, what methods declare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from detectron2.layers import batched_nms
from detectron2.modeling import detector_postprocess
from torch import nn

from instancezoo.methods import METHODS
from instancezoo.modeling.masks import masks_for_output

from .clock import Name, StageClock, time_functions, time_methods, time_modules

OTHER = "other"


def _name_mask_stage(masks: Any, height: int, width: int, mask_output: str) -> str:
    return "masks to RLE" if mask_output == "rle" else "masks to bitmask"


# What one-stage and two-stage models have in common: a method of the model, or a function -> stage.
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
    clock: StageClock, model: nn.Module, methods: Sequence[tuple[Any, str, Name]] = ()
) -> Iterator[None]:
    """Count the stages of every call of a model.

    Args:
        clock: counts.
        model: a meta-architecture.
        methods: object, name of the method, stage: what else is a stage.
    """
    stages = dict(SHARED_STAGES)
    for method in METHODS:
        stages |= method.stages
    functions = [(key, stage) for key, stage in stages.items() if callable(key)]
    paths = {key: stage for key, stage in stages.items() if isinstance(key, str)}
    with ExitStack() as stack:
        stack.enter_context(time_modules(clock, [(OTHER, model), *list_modules(model)]))
        stack.enter_context(time_methods(clock, [*_list_methods(model, paths), *methods]))
        stack.enter_context(time_functions(clock, functions))
        yield


def list_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Stages of a model's parts and of their parts; the rest of a part is what it does itself.

    Of a backbone with a pyramid only the bottom-up network is a stage of its own: the rest is the
    pyramid.
    """
    stages: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        inner = dict(child.named_children())
        if "bottom_up" in inner:
            inner = {"bottom_up": inner["bottom_up"]}
        stages.append((f"{name}, rest" if inner else name, child))
        for part, module in inner.items():
            # A container is never called, only what it holds.
            is_container = isinstance(module, nn.ModuleList | nn.ModuleDict)
            called = module.children() if is_container else [module]
            stages += [(f"{name}.{part}", some) for some in called]
    return stages


def _list_methods(model: nn.Module, paths: dict[str, Name]) -> Iterator[tuple[Any, str, Name]]:
    for path, stage in paths.items():
        *holders, method = path.split(".")
        holder: Any = model
        for part in holders:
            holder = getattr(holder, part, None)
        if hasattr(holder, method):
            yield holder, method, stage
