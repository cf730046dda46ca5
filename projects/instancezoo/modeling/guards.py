"""Batches without images, and numbers that are not finite: told with the image, never in silence.

Legend: N images, C channels, H W image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.layers import move_device_like
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from instancezoo.errors import ZooError


def is_without_images(batched_inputs: Sequence[Any], training: bool) -> bool:
    """Return True for an empty batch, whose result is an empty list.

    Raises:
        ZooError: in training, which has no losses without images.
    """
    if not batched_inputs and training:
        raise ZooError("an empty batch has no losses; give the model at least one image")
    return not batched_inputs


def move_image(image: Tensor, like: Tensor) -> Tensor:
    """Move an image (C, H, W) to a model's device; one of more precision gets the model's.

    Args:
        image: of any type.
        like: buffer of the model.
    """
    moved = move_device_like(image, like)
    is_wider = moved.is_floating_point() and moved.element_size() > like.element_size()
    return moved.to(like.dtype) if is_wider else moved


def move_images(batched_inputs: Sequence[dict[str, Any]], like: Any) -> list[dict[str, Any]]:
    """Copies of model inputs whose images went through `move_image`."""
    return [{**image, "image": move_image(image["image"], like)} for image in batched_inputs]


@contextmanager
def tell_non_finite(
    batched_inputs: Sequence[dict[str, Any]], parts: Iterable[nn.Module]
) -> Iterator[Callable[[Any], None]]:
    """Raise `ZooError` if pixels, or what parts of a model return inside the block, have NaN.

    Thresholds and box filters drop NaN: the result would be empty, or lack detections, in silence.
    The values wait on the device until the end of the block: there is one wait for all of them.

    Args:
        batched_inputs: N dicts with `image` (C, H, W), and names of the images for the message.
        parts: modules whose outputs may be tensors in any structure; lists of modules count as
            their elements.

    Yields:
        A function that adds further values, such as results.
    """
    sums: list[Tensor] = []

    def add(values: Any) -> None:
        floats = (tensor for tensor in _list_tensors(values) if tensor.is_floating_point())
        sums.extend(_sum(tensor) for tensor in floats)

    if is_tracing() or torch.compiler.is_compiling():  # a graph cannot hold the checks
        yield lambda values: None
        return
    _check_pixels(batched_inputs)
    hooks = [part.register_forward_hook(lambda *call: add(call[2])) for part in _unpack(parts)]
    try:
        yield add
    except Exception as error:  # some of Detectron2's structures refuse NaN with an assertion
        if _find_bad(sums):
            raise _explain(batched_inputs) from error
        raise
    finally:
        for hook in hooks:
            hook.remove()
    if _find_bad(sums):
        raise _explain(batched_inputs)


def _check_pixels(batched_inputs: Sequence[dict[str, Any]]) -> None:
    images = [image for image in batched_inputs if image["image"].is_floating_point()]
    for index in _find_bad([_sum(image["image"]) for image in images]):
        raise ZooError(
            f"{_name(images[index])} has pixels that are NaN or infinite: check the file"
        )


def _unpack(parts: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for part in parts:
        if isinstance(part, nn.ModuleList):
            yield from _unpack(part)
        else:
            yield part


def _sum(values: Tensor) -> Tensor:
    """Sum that is NaN or infinite where a value is."""
    return values.detach().sum(dtype=torch.promote_types(values.dtype, torch.float32))


def _find_bad(sums: Sequence[Tensor]) -> list[int]:
    """Indices of sums that are not finite."""
    if not sums:
        return []
    together = torch.stack([total.to(sums[0]) for total in sums])
    found: list[int] = (~together.isfinite()).nonzero().flatten().tolist()
    return found


def _explain(batched_inputs: Sequence[dict[str, Any]]) -> ZooError:
    names = ", ".join(_name(image) for image in batched_inputs)
    return ZooError(
        f"{names}: the model computes NaN or infinity, so detections are missing. Its weights have "
        "diverged: load an earlier checkpoint"
    )


def _name(image: dict[str, Any]) -> str:
    return f"image {image.get('file_name', image.get('image_id', '?'))}"


def _list_tensors(structure: Any) -> Iterator[Tensor]:
    """Yield the tensors in lists, dicts and objects such as `Instances`."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, nn.Module):  # its weights are used later
        yield from structure.parameters()
    elif isinstance(structure, dict):
        for value in structure.values():
            yield from _list_tensors(value)
    elif isinstance(structure, list | tuple):
        for value in structure:
            yield from _list_tensors(value)
    elif hasattr(structure, "__dict__"):
        yield from _list_tensors(vars(structure))
