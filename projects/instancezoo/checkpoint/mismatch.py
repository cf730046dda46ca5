"""Comparison of a checkpoint's tensors with a model's, and an explanation of the differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from .convert import MAX_TENSORS
from .display import show_names, show_text

Shape = tuple[int, ...]
# Set by the config or counted anew, so files may have or lack them, as in Detectron2.
_LENIENT_ENDS = ("pixel_mean", "pixel_std", "num_batches_tracked", "moving_num_foreground")
_LENIENT_PART = "anchor_generator.cell_anchors"
_BACKBONE = "backbone."
_DEPTH = 8  # levels of a name that are compared
_MAX_LINES = 200


@dataclass(frozen=True)
class Mismatch:
    """How the tensors of a file differ from those of a model.

    Attributes:
        missing: names of the model that the file lacks.
        unexpected: names of the file that the model lacks.
        shapes: name -> (shape in the file, shape in the model), where the two differ.
        num_fitting: number of tensors that fit.
        methods: (parts only in the file, parts only in the model) outside the backbone if the
            differences are large enough for another method, else None.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[Shape, Shape]]
    num_fitting: int
    methods: tuple[list[str], list[str]] | None = None

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def describe(self) -> str:
        """Write counts, first names and the likely cause, in one line."""
        parts = []
        if self.shapes:
            first = [f"{name} {a} for {b}" for name, (a, b) in self.shapes.items()]
            parts.append(f"{len(self.shapes)} of another shape: {show_names(first)}")
        if self.missing:
            parts.append(f"{len(self.missing)} not in the file: {show_names(self.missing)}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} only in the file: {show_names(self.unexpected)}")
        return f"{self.num_fitting} tensors fit; {'; '.join(parts)}{self._explain()}"

    def _explain(self) -> str:
        if self.methods:  # checked first: the methods' FPNs may differ, too
            file, model = map(show_names, self.methods)
            return f". The file is of another method: it has {file}; the model has {model}"
        different = [*self.missing, *self.unexpected, *self.shapes]
        if any(name.startswith(_BACKBONE) for name in different):
            return ". The file is of another backbone, or of another norm"
        counts = guess_class_counts(list(self.shapes.values()))
        if counts and not self.missing and not self.unexpected:
            return (
                f". The file has {counts[0]} classes, the model {counts[1]}: the model's number "
                "follows the data set, so check --dataset"
            )
        if self.missing and self.unexpected:
            return ". The file is of another version of the method, or of another norm"
        return ""

    def list_lines(self) -> list[str]:
        """List the first tensors that differ, one per line, and the number of further ones."""
        lines = [
            f"other shape: {n}, {a} in the file, {b} here" for n, (a, b) in self.shapes.items()
        ]
        lines += [f"not in the file: {name}" for name in self.missing]
        lines += [f"only in the file: {name}" for name in self.unexpected]
        more = [f"and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
        return [show_text(line, most=400) for line in lines[:_MAX_LINES]] + more


def compare_tensors(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor], *, backbone_only: bool = False
) -> Mismatch:
    """Compare a model's tensors with those of a file.

    Args:
        model: the model's `state_dict()`.
        state: the file's tensors under the model's names.
        backbone_only: require only the backbone's tensors, as for weights of a backbone alone.
    """
    wanted = [name for name in model if not is_lenient(name)]
    if backbone_only:
        # FPN is trained with the task. A norm folded into scale and shift has no statistics.
        stem = find_backbone_prefix(model)
        wanted = [
            name
            for name in wanted
            if name.startswith(stem) and ".running_" not in name and "fpn_" not in name
        ]
    common = [name for name in state if name in model]
    shapes = {
        name: (tuple(state[name].shape), tuple(model[name].shape))
        for name in common
        if state[name].shape != model[name].shape
    }
    return Mismatch(
        missing=[name for name in wanted if name not in state],
        unexpected=[name for name in state if name not in model and not is_lenient(name)],
        shapes=shapes,
        num_fitting=len(common) - len(shapes),
        methods=_find_other_method(model, state),
    )


def is_lenient(name: str) -> bool:
    """Return True if a file may have or lack this tensor."""
    return name.endswith(_LENIENT_ENDS) or _LENIENT_PART in name


def _find_other_method(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[list[str], list[str]] | None:
    """Find the parts that differ if at least half of the layers of one are absent in the other."""
    if len(state) > MAX_TENSORS:  # more than any method has
        return None
    ours, theirs = _list_head_layers(model), _list_head_layers(state)
    missing = [name for name in ours if name not in state]
    unexpected = [name for name in theirs if name not in model]
    few = 2 * len(missing) < len(ours) and 2 * len(unexpected) < len(theirs)
    if not missing or not unexpected or few:
        return None
    return _name_parts(unexpected, model), _name_parts(missing, state)


def _list_head_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    # Vectors are biases and norms: they vary within a method.
    return [
        name
        for name, tensor in tensors.items()
        if tensor.ndim > 1 and not name.startswith(_BACKBONE) and not is_lenient(name)
    ]


def _name_parts(names: list[str], others: Iterable[str]) -> list[str]:
    """Name the outermost modules of `names` that `others` lack, from the second level inwards."""
    known = {prefix for other in others for prefix in _list_prefixes(other)}
    parts = []
    for name in names:
        inner = _list_prefixes(name)[1:-1]
        parts.append(next((prefix for prefix in inner if prefix not in known), name))
    return list(dict.fromkeys(parts))


def _list_prefixes(name: str) -> list[str]:
    """List "a", "a.b", "a.b.c" of the name "a.b.c"."""
    return list(accumulate(name.split(".")[:_DEPTH], "{}.{}".format))


def find_backbone_prefix(names: Mapping[str, Tensor]) -> str:
    """Find the prefix of a model's backbone names, which differs with and without an FPN."""
    nested = f"{_BACKBONE}bottom_up."
    return nested if any(name.startswith(nested) for name in names) else _BACKBONE


def guess_class_counts(shapes: list[tuple[Shape, Shape]]) -> tuple[int, int] | None:
    """Guess the class counts behind shapes that differ only in their first two sizes.

    A classifier has K or K + 1 (background) outputs, a box regressor or a mask head a multiple.
    A layer may also take K logits beside its other inputs, as PointRend's point head does.

    Returns:
        (classes in the file, classes in the model), None if no such pair explains all shapes.
    """
    if any(len(a) != len(b) or a[2:] != b[2:] or not a for a, b in shapes):
        return None
    pairs = {(a[0], b[0]) for a, b in shapes if a[0] != b[0]}
    more_inputs = {a[1] - b[1] for a, b in shapes if a[1:] != b[1:]}
    if not pairs:
        return None
    smallest = min(pairs)
    for file, model in (smallest, (smallest[0] - 1, smallest[1] - 1)):
        if file < 1 or model < 1 or not more_inputs <= {file - model}:
            continue
        multiples = pairs - {(file + 1, model + 1)}
        if all(a % file == 0 and a // file * model == b for a, b in multiples):
            return file, model
    return None
