"""Compares a checkpoint's tensors with a model's and says what is wrong in the user's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from .convert import show_names

Shape = tuple[int, ...]
# Set by the config or counted anew: files may have them or not. Detectron2 is as lenient.
_LENIENT_ENDS = ("pixel_mean", "pixel_std", "num_batches_tracked", "moving_num_foreground")
_LENIENT_PART = "anchor_generator.cell_anchors"
_BACKBONE = "backbone."


@dataclass(frozen=True)
class Mismatch:
    """How the tensors of a file differ from those of a model.

    Attributes:
        missing: names of the model that the file lacks.
        unexpected: names of the file that the model lacks.
        shapes: name -> (shape in the file, shape in the model), where the two differ.
        num_fitting: how many tensors fit.
        methods: (parts that only the file has, parts that only the model has) outside the backbone
            where so much differs that the file is of another method, else None.
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
        if self.methods:  # first: the methods' FPNs may differ, too
            file, model = map(show_names, self.methods)
            return f". The file is of another method: it has {file}; the model has {model}"
        different = [*self.missing, *self.unexpected, *self.shapes]
        if any(name.startswith(_BACKBONE) for name in different):
            return ". The file is of another backbone, or of another norm"
        counts = guess_class_counts(list(self.shapes.values()))
        if counts and not self.missing and not self.unexpected:
            return (
                f". The file has {counts[0]} classes, the model {counts[1]}: they follow the data "
                "set, so check that its --dataset was given"
            )
        if self.missing and self.unexpected:
            return ". The file is of another version of the method, or of another norm"
        return ""

    def list_lines(self) -> list[str]:
        """List every tensor that differs, one a line."""
        lines = [
            f"other shape: {n}, {a} in the file, {b} here" for n, (a, b) in self.shapes.items()
        ]
        lines += [f"not in the file: {name}" for name in self.missing]
        return lines + [f"only in the file: {name}" for name in self.unexpected]


def compare_tensors(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor], *, backbone_only: bool = False
) -> Mismatch:
    """Compare a model's tensors with those of a file.

    Args:
        model: the model's `state_dict()`.
        state: the file's tensors under the model's names.
        backbone_only: the file need not fill what lies outside the backbone the file is of.
    """
    wanted = {name: tensor for name, tensor in model.items() if not is_lenient(name)}
    if backbone_only:
        # FPN is trained with the task. A norm folded into scale and shift has no statistics.
        stem = find_backbone_prefix(model)
        wanted = {
            name: tensor
            for name, tensor in wanted.items()
            if name in state
            or (name.startswith(stem) and ".running_" not in name and "fpn_" not in name)
        }
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
        methods=_tell_methods_apart(model, state),
    )


def is_lenient(name: str) -> bool:
    """Tell whether a file may have or lack this tensor."""
    return name.endswith(_LENIENT_ENDS) or _LENIENT_PART in name


def _tell_methods_apart(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[list[str], list[str]] | None:
    """Find what sets two methods apart: half of the layers of either are none of the other's."""
    ours, theirs = _list_head_layers(model), _list_head_layers(state)
    missing = [name for name in ours if name not in state]
    unexpected = [name for name in theirs if name not in model]
    few = 2 * len(missing) < len(ours) and 2 * len(unexpected) < len(theirs)
    if not missing or not unexpected or few:
        return None
    return _name_parts(unexpected, model), _name_parts(missing, state)


def _list_head_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    # Vectors are biases and norms: they come and go within a method.
    return [
        name
        for name, tensor in tensors.items()
        if tensor.ndim > 1 and not name.startswith(_BACKBONE) and not is_lenient(name)
    ]


def _name_parts(names: list[str], others: Iterable[str]) -> list[str]:
    """Name the outermost modules of `names` that `others` lack; the first level says too little."""
    known = {prefix for other in others for prefix in accumulate(other.split("."), _join)}
    parts = []
    for name in names:
        prefixes = list(accumulate(name.split(".")[:-1], _join))[1:]
        parts.append(next((prefix for prefix in prefixes if prefix not in known), name))
    return list(dict.fromkeys(parts))


def _join(prefix: str, part: str) -> str:
    return f"{prefix}.{part}"


def find_backbone_prefix(names: Mapping[str, Tensor]) -> str:
    """Find what a model puts before the names of its backbone: it differs with and without FPN."""
    nested = f"{_BACKBONE}bottom_up."
    return nested if any(name.startswith(nested) for name in names) else _BACKBONE


def guess_class_counts(shapes: list[tuple[Shape, Shape]]) -> tuple[int, int] | None:
    """Guess the class counts behind shapes that differ in their first two sizes only.

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
    candidates = [smallest, (smallest[0] - 1, smallest[1] - 1)]
    for file, model in candidates:
        if file < 1 or model < 1:
            continue
        if more_inputs <= {file - model} and all(_explains(file, model, *pair) for pair in pairs):
            return file, model
    return None


def _explains(file: int, model: int, outputs_file: int, outputs_model: int) -> bool:
    if (outputs_file, outputs_model) == (file + 1, model + 1):
        return True
    return outputs_file % file == 0 and outputs_file // file * model == outputs_model
