"""Recognition of published checkpoints by their names, and conversion to ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from instancezoo.errors import first_line

from .classes import ClassList
from .display import show_names, show_text
from .finite import check_finite
from .layouts import BACKBONE_LAYOUTS
from .mmdetection import VERSION_1, check_origin, is_version_1
from .reader import (
    AUTHOR,
    CheckpointError,
    is_ours,
    read_average,
    read_checkpoint,
    read_facts,
)
from .rename import Layout, Transform

# Published models have some thousands of tensors. A file with far more is not searched for names,
# which would take minutes.
MAX_TENSORS = 20_000
_SAMPLE = 500  # names by which the nearest layout is chosen
_SHOWN = 3
_AS_THEY_ARE = ", or convert them as they are: `instancezoo convert --allow-non-finite`"


@dataclass(frozen=True)
class Converted:
    """A published checkpoint under our names.

    Attributes:
        layout: the recognised layout.
        state: our name -> tensor.
        used: published name -> our name.
        unused: published names that the layout lists as having no place in the model.
        unknown: published names without a row, left out where that was allowed.
    """

    layout: Layout
    state: dict[str, Tensor]
    used: dict[str, str]
    unused: list[str]
    unknown: list[str]


def list_layouts() -> list[Layout]:
    """List the layouts that are recognised: those of every method, then those of bare backbones.

    Raises:
        KeyError: two layouts have one name.
    """
    # The one arrow up in this package, followed at the first use: whatever module is imported
    # first, all methods' layouts are known, and method folders can import this one.
    methods = import_module("instancezoo.methods").METHODS
    layouts = [*(layout for method in methods for layout in method.layouts), *BACKBONE_LAYOUTS]
    counts = Counter(layout.name for layout in layouts)
    if doubled := [name for name, count in counts.items() if count > 1]:
        raise KeyError(f"several layouts have one name: {', '.join(doubled)}")
    return layouts


def find_layout(state: Mapping[str, Tensor]) -> Layout | None:
    """Find the layout whose signature a file's names fit; None if there is none.

    Raises:
        CheckpointError: more than one fits.
    """
    if len(state) > MAX_TENSORS:
        return None
    shapes = _list_shapes(state)
    fitting = [layout for layout in list_layouts() if layout.fits(shapes)]
    if len(fitting) > 1:
        names = " and ".join(f"'{layout.name}'" for layout in fitting)
        raise CheckpointError(f"the file's names fit {names}. One signature needs a `must_not`")
    return fitting[0] if fitting else None


def convert_file(
    path: str | Path, *, allow_unknown: bool = False, allow_non_finite: bool = False
) -> tuple[dict[str, Any], Converted | None]:
    """Read a published checkpoint file and convert it.

    Args:
        path: a local file.
        allow_unknown: leave out names without a row instead of raising an error.
        allow_non_finite: convert NaN and infinity, too.

    Returns:
        A checkpoint: "model" (our name -> tensor), "__author__" and, for a published file, its
        "method", "config", "licence" and, if known, "class_names" and "category_ids"; and how it
        was converted, None if InstanceZoo wrote it. Such a file keeps what it says about itself,
        and its averaged weights replace the others, as in evaluation.

    Raises:
        CheckpointError: the file cannot be read or converted.
    """
    checkpoint = read_checkpoint(path)
    try:
        result, converted = _convert_checkpoint(checkpoint, allow_unknown)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not allow_non_finite:
        check_finite(path, result["model"], _AS_THEY_ARE)
    return result, converted


def _convert_checkpoint(
    checkpoint: dict[str, Any], allow_unknown: bool
) -> tuple[dict[str, Any], Converted | None]:
    if is_ours(checkpoint):
        facts = read_facts(checkpoint)
        facts |= ClassList.from_facts(facts).to_facts()
        return {"model": {**checkpoint["model"], **read_average(checkpoint)}, **facts}, None
    converted = convert_state_dict(checkpoint["model"], allow_unknown=allow_unknown)
    layout = converted.layout
    check_origin(checkpoint, layout)
    facts = {"method": layout.method, "config": layout.config, "licence": layout.licence}
    facts |= layout.find_classes(checkpoint["model"]).to_facts()
    author = f"{AUTHOR}, from {layout.name}"
    return {"model": converted.state, "__author__": author, **facts}, converted


def convert_state_dict(state: Mapping[str, Tensor], *, allow_unknown: bool = False) -> Converted:
    """Recognise a published checkpoint and convert its tensors.

    Args:
        state: published name -> tensor.
        allow_unknown: leave out names without a row instead of raising an error.

    Returns:
        The tensors under our names. Tensors without a transform are the file's own, not copies.

    Raises:
        CheckpointError: not recognised; a name fits no row; two names become one.
    """
    layout = find_layout(state)
    if layout is None:
        raise CheckpointError(describe_nearest(state))
    return apply_layout(layout, state, allow_unknown=allow_unknown)


def apply_layout(
    layout: Layout, state: Mapping[str, Tensor], *, allow_unknown: bool = False
) -> Converted:
    """Apply a layout's rows to every tensor; see `convert_state_dict`."""
    converted = Converted(layout, state={}, used={}, unused=[], unknown=[])
    for name, tensor in state.items():
        if layout.is_unused(name):
            converted.unused.append(name)
            continue
        row = layout.find_row(name)
        if row is None:
            converted.unknown.append(name)
            continue
        target, transform = row
        if target in converted.state:
            first = next(source for source, ours in converted.used.items() if ours == target)
            raise CheckpointError(
                f"'{show_text(first)}' and '{show_text(name)}' both become '{show_text(target)}' "
                f"by the layout '{layout.name}'. Correct its rows"
            )
        converted.used[name] = target
        converted.state[target] = _transform(name, tensor, transform)
    for name in converted.used:
        for target, transform in layout.find_derived(name):
            if target not in converted.state:
                converted.state[target] = _transform(name, state[name], transform)
    if converted.unknown and not allow_unknown:
        raise CheckpointError(
            f"the file looks like '{layout.name}', but {len(converted.unknown)} of its "
            f"{len(state)} names have no row: {show_names(converted.unknown)}. It may be another "
            "version of the model"
        )
    return converted


def _transform(name: str, tensor: Tensor, transform: Transform | None) -> Tensor:
    try:
        return tensor if transform is None else transform(tensor)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"'{show_text(name)}' has another shape than in published files, "
            f"{tuple(tensor.shape)}: {first_line(error)}"
        ) from None


def describe_nearest(state: Mapping[str, Tensor]) -> str:
    """Describe, for a file that fits no layout, the nearest one and the first differences."""
    if len(state) > MAX_TENSORS:
        return (
            f"the file's names fit no known layout: it has {len(state)} tensors, published models "
            f"have some thousands. They begin {show_names(list(state))}"
        )
    if is_version_1(state):
        return f"the file's names fit no known layout: {VERSION_1}"
    layouts, shapes = list_layouts(), _list_shapes(state)
    sample = list(state)[:: -(-len(state) // _SAMPLE) or 1]
    few = {name: shapes[name] for name in sample}

    def list_unknown(layout: Layout, names: Iterable[str]) -> list[str]:
        return [n for n in names if layout.find_row(n) is None and not layout.is_unused(n)]

    def measure(layout: Layout) -> tuple[int, int]:
        return len(list_unknown(layout, sample)), len(layout.list_differences(few))

    nearest = min(layouts, key=measure)
    unknown = list_unknown(nearest, state)
    if len(unknown) == len(state):
        methods = dict.fromkeys(layout.method for layout in layouts)
        return (
            "the file's names fit no known layout, and no single name is known. They begin "
            f"{show_names(unknown)}. `instancezoo convert` takes {len(layouts)} layouts of: "
            f"{', '.join(methods)}"
        )
    differences = nearest.list_differences(shapes)[:_SHOWN]
    differences += [f"unknown there: {show_names(unknown)}"] if unknown else []
    return (
        f"the file's names fit no known layout. Nearest is '{nearest.name}' "
        f"({len(state) - len(unknown)} of {len(state)} names known); "
        f"the file differs: {'; '.join(differences)}"
    )


def _list_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
