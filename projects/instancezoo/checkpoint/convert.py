"""Recognises published checkpoints by their names and converts them to ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor

from .layouts import BACKBONE_LAYOUTS
from .reader import CheckpointError
from .rename import Layout

_SHOWN = 5


@dataclass(frozen=True)
class Converted:
    """A published checkpoint under our names.

    Attributes:
        layout: what the file was recognised as.
        state: our name -> tensor.
        used: name in the file -> our name.
        unused: names in the file that the layout lists as having no place.
        unknown: names in the file without a row, left out where that was allowed.
    """

    layout: Layout
    state: dict[str, Tensor]
    used: dict[str, str]
    unused: list[str]
    unknown: list[str]


def list_layouts() -> list[Layout]:
    """List the layouts that are recognised: those of every method, then those of backbones alone.

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
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    fitting = [layout for layout in list_layouts() if not layout.list_differences(shapes)]
    if len(fitting) > 1:
        names = " and ".join(f"'{layout.name}'" for layout in fitting)
        raise CheckpointError(f"the file's names fit {names}. One signature needs a `must_not`")
    return fitting[0] if fitting else None


def convert_state_dict(state: Mapping[str, Tensor], *, allow_unknown: bool = False) -> Converted:
    """Recognise a published checkpoint and convert its tensors.

    Args:
        state: name -> tensor, as in the file.
        allow_unknown: leave out names without a row, in place of an error.

    Returns:
        The tensors under our names. Tensors without a transform are the file's own, not copies.

    Raises:
        CheckpointError: not recognised; a name fits no row; two names end up as one.
    """
    layout = find_layout(state)
    if layout is None:
        raise CheckpointError(describe_nearest(state))
    converted = apply_layout(layout, state)
    if converted.unknown and not allow_unknown:
        raise CheckpointError(
            f"the file looks like '{layout.name}', but {len(converted.unknown)} of its "
            f"{len(state)} names have no row: {show_names(converted.unknown)}. It may be another "
            "version of the model"
        )
    return converted


def apply_layout(layout: Layout, state: Mapping[str, Tensor]) -> Converted:
    """Apply a layout's rows to every tensor.

    Raises:
        CheckpointError: two names end up as one.
    """
    converted = Converted(layout, state={}, used={}, unused=[], unknown=[])
    sources: dict[str, str] = {}
    for name, tensor in state.items():
        if layout.is_unused(name):
            converted.unused.append(name)
            continue
        row = layout.find_row(name)
        if row is None:
            converted.unknown.append(name)
            continue
        target, transform = row
        if target in sources:
            raise CheckpointError(
                f"'{sources[target]}' and '{name}' both become '{target}' by the layout "
                f"'{layout.name}'. Correct its rows"
            )
        sources[target] = name
        converted.used[name] = target
        converted.state[target] = tensor if transform is None else transform(tensor)
    return converted


def describe_nearest(state: Mapping[str, Tensor]) -> str:
    """Describe, for a file that fits no layout, the nearest one and the first differences."""
    layouts = list_layouts()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def count_known(layout: Layout) -> int:
        return sum(layout.find_row(name) is not None or layout.is_unused(name) for name in state)

    nearest = max(layouts, key=lambda x: (count_known(x), -len(x.list_differences(shapes))))
    known = count_known(nearest)
    if not known:
        return (
            "the file's names fit no known layout, and no single name is known. They begin "
            f"{show_names(list(state))}. `instancezoo convert` takes: "
            f"{', '.join(layout.name for layout in layouts)}"
        )
    unknown = [
        name for name in state if nearest.find_row(name) is None and not nearest.is_unused(name)
    ]
    differences = nearest.list_differences(shapes)[:_SHOWN]
    differences += [f"unknown there: {show_names(unknown)}"] if unknown else []
    return (
        f"the file's names fit no known layout. Nearest is '{nearest.name}' "
        f"({known} of {len(state)} names known); the file differs: {'; '.join(differences)}"
    )


def show_names(names: list[str], limit: int = _SHOWN) -> str:
    """Write the first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
