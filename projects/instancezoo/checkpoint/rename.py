"""The rename-rule engine: a published checkpoint's names and tensors -> ours.

A method's `convert.py` is a table. Each row says what one kind of tensor is called there and here:

    ("backbone.body.layer{s}.{b}.bn{c}.*", "backbone.bottom_up.res{s+1}.{b}.conv{c}.norm.*")

`{s}` stands for an index, which the right side repeats, or shifts as `{s+1}`; `*` for any text
without a dot; `**` for any text. The stars of the right side are those of the left, in order.
Everything else is literal. A name that fits a pattern of `unused` is left out; of the others each
must fit a row, and the first that it fits is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

Transform = Callable[[Tensor], Tensor]
Row = tuple[str, str] | tuple[str, str, Transform]

_TOKEN = re.compile(r"\*\*|\*|\{\w+\}")
_SLOT = re.compile(r"\*\*|\*|\{(\w+)([+-]\d+)?\}")


class Pattern:
    """One left side of a table, compiled."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts, end, stars = [], 0, 0
        for token in _TOKEN.finditer(text):
            parts.append(re.escape(text[end : token.start()]))
            end = token.end()
            if token[0].startswith("*"):
                parts.append(f"(?P<star{stars}>{'.*' if token[0] == '**' else '[^.]*'})")
                stars += 1
            else:
                name = token[0][1:-1]
                seen = f"(?P<{name}>" in "".join(parts)
                parts.append(f"(?P={name})" if seen else f"(?P<{name}>[0-9]+)")
        self._regex = re.compile("".join(parts) + re.escape(text[end:]))

    def match(self, name: str) -> dict[str, str] | None:
        """Match a whole name. Returns what its stars and indices stand for, None if it differs."""
        found = self._regex.fullmatch(name)
        return found.groupdict() if found else None


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Write a right side with the values that `Pattern.match` found.

    Raises:
        ValueError: the right side names an index or a star that the left side has not.
    """
    stars = 0

    def fill(token: re.Match[str]) -> str:
        nonlocal stars
        if token[0].startswith("*"):
            name, stars = f"star{stars}", stars + 1
        else:
            name = token[1]
        if name not in values:
            raise ValueError(f"'{template}' uses {token[0]}, which its pattern has not")
        return str(int(values[name]) + int(token[2])) if token[2] else values[name]

    return _SLOT.sub(fill, template)


@dataclass(frozen=True)
class Layout:
    """A published checkpoint's layout: how to recognise it, and what its names are here.

    Attributes:
        name: unique, as shown to users, for example "torchvision maskrcnn_resnet50_fpn".
        method: name of the method, as in the README's table.
        config: the config whose model it fills, for example "mask_rcnn/mask_rcnn_R_50_FPN_1x".
        licence: licence of the published weights, and where it is stated.
        rows: (pattern, name here[, transform of the tensor]), see the module's text.
        unused: patterns of names that the model has no place for.
        must: patterns that some name of the file fits, each.
        must_not: patterns that no name of the file fits.
        shapes: pattern -> shape (None: any size) that each tensor it fits has; tells apart
            networks that differ in width only.
        other_shapes: pattern -> shape that no tensor it fits has, since another layout claims it.
        fills: "model", or "backbone" for weights to initialise training with.
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

    def __post_init__(self) -> None:
        for row in self.rows:  # a wrong row fails where it is written, not at a user's
            values = Pattern(row[0]).match(_TOKEN.sub("1", row[0]))
            fill_template(row[1], values or {})

    @cached_property
    def _compiled_rows(self) -> list[tuple[Pattern, str, Transform | None]]:
        return [(Pattern(row[0]), row[1], row[2] if len(row) == 3 else None) for row in self.rows]

    @cached_property
    def _compiled_unused(self) -> list[Pattern]:
        return [Pattern(text) for text in self.unused]

    def find_row(self, name: str) -> tuple[str, Transform | None] | None:
        """Find what `name` is called here. Returns (name here, transform), None if unknown."""
        for pattern, template, transform in self._compiled_rows:
            values = pattern.match(name)
            if values is not None:
                return fill_template(template, values), transform
        return None

    def is_unused(self, name: str) -> bool:
        """Tell whether `name` is on the list of names without a place in the model."""
        return any(pattern.match(name) is not None for pattern in self._compiled_unused)

    def list_differences(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """List how a file's names and shapes differ from the signature; empty if they fit it.

        Args:
            shapes: name -> shape, of every tensor of the file.
        """
        found = [f"no '{text}'" for text in self.must if not _fitting(text, shapes)]
        found += [f"has '{_fitting(t, shapes)[0]}'" for t in self.must_not if _fitting(t, shapes)]
        for text, expected in self.shapes.items():
            for name in _fitting(text, shapes):
                if not _same_shape(shapes[name], expected):
                    wanted = tuple("any" if n is None else n for n in expected)
                    found.append(f"'{name}' is {shapes[name]}, not {wanted}")
        for text, excluded in self.other_shapes.items():
            for name in _fitting(text, shapes):
                if _same_shape(shapes[name], excluded):
                    found.append(f"'{name}' is {shapes[name]}, as in another network")
        return found


def _fitting(text: str, names: Mapping[str, tuple[int, ...]]) -> list[str]:
    pattern = Pattern(text)
    return [name for name in names if pattern.match(name) is not None]


def _same_shape(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        wanted is None or size == wanted for size, wanted in zip(shape, expected, strict=True)
    )
