"""The rename rules that turn a published checkpoint's names and tensors into ours.

A method's `convert.py` is a table. Each row holds the published name of a tensor and ours:

    ("backbone.body.layer{s}.{b}.bn{c}.*", "backbone.bottom_up.res{s+1}.{b}.conv{c}.norm.*")

`{s}` stands for an index, which the right side repeats, or shifts as `{s+1}`; `*` for any text
without a dot; `**` for any text. The stars of the right side are those of the left, in order.
Everything else is literal. Names that fit a pattern of `unused` are left out; every other name
must fit a row, and the first row that it fits applies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Literal

from detectron2.data import MetadataCatalog
from torch import Tensor

from .classes import ClassList
from .display import show_text

Transform = Callable[[Tensor], Tensor]
Row = tuple[str, str] | tuple[str, str, Transform]

_TOKEN = re.compile(r"(\*\*|\*|\{\w+\})")
_SLOT = re.compile(r"\*\*|\*|\{(\w+)([+-]\d+)?\}")


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    regex, stars = "", count()
    for part in _TOKEN.split(pattern):
        if part.startswith("*"):
            regex += f"(?P<star{next(stars)}>{'.*' if part == '**' else '[^.]*'})"
        elif _TOKEN.fullmatch(part):
            name = part[1:-1]
            regex += f"(?P={name})" if f"(?P<{name}>" in regex else f"(?P<{name}>[0-9]+)"
        else:
            regex += re.escape(part)
    return re.compile(regex)


def match_name(pattern: str, name: str) -> dict[str, str] | None:
    """Match a whole name. Returns the text of each star and index, None if it does not fit."""
    found = _compile(pattern).fullmatch(name)
    return found.groupdict() if found else None


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Fill the right side of a row with what `match_name` found.

    Raises:
        ValueError: the right side has an index or a star that the left side lacks.
    """
    stars = count()

    def fill(token: re.Match[str]) -> str:
        name = token[1] or f"star{next(stars)}"
        if name not in values:
            raise ValueError(f"'{template}' uses {token[0]}, which its pattern lacks")
        return str(int(values[name]) + int(token[2])) if token[2] else values[name]

    return _SLOT.sub(fill, template)


@dataclass(frozen=True)
class TrainedOn:
    """The data set of published weights, which gives their classes.

    Attributes:
        dataset: its name in Detectron2's catalog.
        tensor: pattern of a published tensor with a fixed number of rows per class.
        num_rows: its rows with this data set's classes; files of other trainings may have others.
    """

    dataset: str
    tensor: str
    num_rows: int

    @classmethod
    def coco(cls, tensor: str, num_rows: int = 80) -> TrainedOn:
        """COCO's 80 classes."""
        return cls("coco_2017_train", tensor, num_rows)


@dataclass(frozen=True)
class Layout:
    """A published checkpoint's layout: how to recognise it, and how its names become ours.

    Attributes:
        name: unique, as shown to users, for example "torchvision maskrcnn_resnet50_fpn".
        method: name of the method, as in the README's table.
        config: the config whose model it fills, for example "solo/solo_R_50_FPN_1x"; for a
            backbone, the fragment of configs/base/ with its pixel mean and strides.
        licence: licence of the published weights, and where it is stated.
        rows: (pattern, our name[, transform of the tensor]), see the module's docstring.
        must: patterns, each of which at least one name of the file fits.
        must_not: patterns that no name of the file fits.
        unused: patterns of names that have no place in the model.
        shapes: pattern -> shape (None: any size) of every tensor that fits it; separates
            networks that differ only in width.
        other_shapes: pattern -> shape that no tensor may have, since it marks another layout.
        fills: "model", or "backbone" for weights to initialise training with.
        trained_on: the data set of the published weights.
        derived: rows of our tensors that the file lacks, made from those that it has, such as the
            statistics of a norm that were folded into its weight.
        style: which of MMDetection's two styles of images and strides `config` has, see
            `mmdetection.check_origin`; "" if the files do not state it.
    """

    name: str
    method: str
    config: str
    licence: str
    rows: tuple[Row, ...]
    must: tuple[str, ...]
    must_not: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    other_shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    fills: Literal["model", "backbone"] = "model"
    trained_on: TrainedOn | None = None
    derived: tuple[tuple[str, str, Transform], ...] = ()
    style: Literal["", "pytorch", "caffe"] = ""

    def __post_init__(self) -> None:
        # A wrong row fails at import, not when a user converts a file.
        for row in (*self.rows, *self.derived):
            fill_template(row[1], match_name(row[0], _TOKEN.sub("1", row[0])) or {})

    def find_row(self, name: str) -> tuple[str, Transform | None] | None:
        """Find the row of a published name. Returns (our name, transform), None if unknown."""
        for row in self.rows:
            values = match_name(row[0], name)
            if values is not None:
                return fill_template(row[1], values), row[2] if len(row) == 3 else None
        return None

    def find_derived(self, name: str) -> Iterator[tuple[str, Transform]]:
        """Yield our tensors that a published one makes beside its own: (our name, transform)."""
        for pattern, template, transform in self.derived:
            values = match_name(pattern, name)
            if values is not None:
                yield fill_template(template, values), transform

    def is_unused(self, name: str) -> bool:
        """Return True if `name` is listed as having no place in the model."""
        return any(match_name(pattern, name) is not None for pattern in self.unused)

    def find_classes(self, state: Mapping[str, Tensor]) -> ClassList:
        """Find the classes of a published file; none if its outputs are of another data set.

        Args:
            state: published name -> tensor.
        """
        if self.trained_on is None:
            return ClassList()
        pattern, expected = self.trained_on.tensor, self.trained_on.num_rows
        found = {tuple(state[n].shape[:1]) for n in state if match_name(pattern, n) is not None}
        if found != {(expected,)}:
            return ClassList()
        return ClassList.from_metadata(MetadataCatalog.get(self.trained_on.dataset))

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return True if a file's names and shapes fit the signature; see `list_differences`."""
        has_all = all(any(_iterate_fitting(text, shapes)) for text in self.must)
        return has_all and not self.list_differences(shapes)

    def list_differences(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """List how a file's names and shapes differ from the signature; empty if they fit it.

        Args:
            shapes: name -> shape, for every tensor of the file.
        """
        found = [f"no '{text}'" for text in self.must if not _fitting(text, shapes)]
        for text in self.must_not:
            found += [f"has '{show_text(name)}'" for name in _fitting(text, shapes)[:1]]
        for text, expected in self.shapes.items():
            for name in _fitting(text, shapes):
                if not _same_shape(shapes[name], expected):
                    wanted = tuple("any" if size is None else size for size in expected)
                    found.append(f"'{show_text(name)}' is {shapes[name]}, not {wanted}")
        for text, excluded in self.other_shapes.items():
            for name in _fitting(text, shapes):
                if _same_shape(shapes[name], excluded):
                    found.append(f"'{show_text(name)}' is {shapes[name]}, as in another network")
        return found


def _fitting(pattern: str, names: Mapping[str, tuple[int, ...]]) -> list[str]:
    return list(_iterate_fitting(pattern, names))


def _iterate_fitting(pattern: str, names: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    if not _TOKEN.search(pattern):
        return (pattern,) if pattern in names else ()
    matches = _compile(pattern).fullmatch
    return (name for name in names if matches(name))


def _same_shape(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        wanted is None or size == wanted for size, wanted in zip(shape, expected, strict=True)
    )
