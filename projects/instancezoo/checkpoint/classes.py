"""The classes that weights were trained on, and their comparison with those of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detectron2.data.catalog import Metadata

from .display import show_text
from .reader import CheckpointError

_NAMES, _IDS = "class_names", "category_ids"  # entries of a checkpoint
_SHOWN = 5


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of a model's outputs; empty if they are unknown.

    Attributes:
        names: of the classes.
        category_ids: id of each class in the data set, or () if it has none.
    """

    names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    @classmethod
    def from_metadata(cls, metadata: Any) -> ClassList:
        """Read `thing_classes` and `thing_dataset_id_to_contiguous_id` of Detectron2's metadata."""
        names = tuple(map(str, metadata.get("thing_classes", None) or ()))
        contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
        ids = {index: category_id for category_id, index in contiguous.items()}
        numbers = [ids.get(index) for index in range(len(names))]
        known = [number for number in numbers if isinstance(number, int)]
        return cls(names, tuple(known) if len(known) == len(names) else ())

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> ClassList:
        """Read a checkpoint's entries, lists or JSON. Raises `CheckpointError` for other types."""
        names, ids = _read_list(facts, _NAMES, str), _read_list(facts, _IDS, int)
        if ids and len(ids) != len(names):
            raise CheckpointError(f"it has {len(names)} {_NAMES}, but {len(ids)} {_IDS}")
        return cls(names, ids)

    def to_facts(self) -> dict[str, list[Any]]:
        """Make a checkpoint's entries, without those that are not known."""
        facts: dict[str, list[Any]] = {_NAMES: list(self.names), _IDS: list(self.category_ids)}
        return {name: values for name, values in facts.items() if values}

    def to_metadata(self) -> Metadata:
        """Make metadata of these classes, as for a registered data set."""
        contiguous = {number: index for index, number in enumerate(self.category_ids)}
        metadata = Metadata(thing_classes=list(self.names))
        if contiguous:
            metadata.thing_dataset_id_to_contiguous_id = contiguous
        return metadata


UNKNOWN = ClassList()


@dataclass(frozen=True)
class ClassDifference:
    """How the classes of a data set differ from those that weights were trained on.

    Attributes:
        kind: "order" if both have the same names, "names" if they have only the same number of
            classes, else "number".
        message: what differs, and the remedy.
    """

    kind: Literal["order", "names", "number"]
    message: str


def compare_classes(trained: Sequence[str], wanted: Sequence[str]) -> ClassDifference | None:
    """Compare the classes of weights with those of a data set.

    Args:
        trained: names in the order of the weights; empty if unknown.
        wanted: names in the order of the data set; empty if unknown.

    Returns:
        None if the names are the same in the same order, or one list is unknown.
    """
    if not trained or not wanted or list(trained) == list(wanted):
        return None
    lists = f"The weights have {show_classes(trained)}; the data set has {show_classes(wanted)}"
    if len(trained) != len(wanted):
        return ClassDifference("number", f"{lists}. Use a data set with the weights' classes")
    positions = _show_positions(trained, wanted)
    if sorted(trained) == sorted(wanted):
        ids = [f"{name} {number}" for number, name in enumerate(trained, start=1)]
        return ClassDifference(
            "order",
            f"the weights were trained on these classes in another order: {positions}. {lists}. "
            "Classes are ordered by their category ids: in the JSON, give the categories ids that "
            f"grow in the weights' order ({_shorten(ids)}), and the annotations the same ids. "
            "`instancezoo predict` needs no data set",
        )
    return ClassDifference(
        "names",
        f"the weights were trained on other classes: {positions}. {lists}. Use a data set with "
        "the weights' classes; if only the names differ, rename the categories or set "
        "MODEL.WEIGHTS_ALLOW_PARTIAL True",
    )


def to_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Write a checkpoint's entries as texts, for the header of a `.safetensors` file."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in facts.items()
    }


def show_classes(names: Sequence[str]) -> str:
    """Write the number of classes and the first names."""
    return f"{len(names)} classes ({_shorten(names)})"


def _show_positions(trained: Sequence[str], wanted: Sequence[str]) -> str:
    """Write the first positions at which two lists of one length differ."""
    pairs = enumerate(zip(trained, wanted, strict=True))
    different = [
        f"class {i} is '{show_text(a)}' there and '{show_text(b)}' here"
        for i, (a, b) in pairs
        if a != b
    ]
    return _shorten(different)


def _shorten(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{', '.join(show_text(text, most=400) for text in texts[:_SHOWN])}{more}"


def _read_list(facts: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    value = facts.get(name, [])
    try:
        values = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(type(item) is kind for item in values):
        raise CheckpointError(
            f"its '{name}' is not a list of {kind.__name__}: {show_text(str(value), most=80)}. "
            "Save or convert the file again"
        )
    return tuple(values)
