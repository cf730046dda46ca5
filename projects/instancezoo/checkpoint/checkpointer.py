"""Detectron2's checkpointer with safe reading, published files, strict loading, atomic saving."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from safetensors.torch import save as serialize_safetensors
from torch import Tensor, nn

from instancezoo.errors import first_line
from instancezoo.files import open_atomically, remove_leftovers

from .classes import UNKNOWN, ClassDifference, ClassList, compare_classes
from .convert import MAX_TENSORS, apply_layout, describe_nearest, find_layout
from .description import Description, describe_checkpoint, fetch_checkpoint, remove_query
from .display import show_names, show_text
from .finite import check_finite
from .mismatch import Mismatch, compare_tensors, find_backbone_prefix, is_lenient
from .mmdetection import check_origin
from .new_parts import find_new_parts
from .reader import (
    AUTHOR,
    CheckpointError,
    check_file,
    is_ours,
    read_average,
    read_checkpoint,
    read_facts,
)
from .rename import Layout
from .run_record import RECORD_NAME, RunRecord
from .torch_file import check_archive, is_archive

_TAG = "last_checkpoint"
_NUMBERED = re.compile(r".*_(\d{7,})\.pth")
_REMEDY = (
    "Use the config that the file was trained with{where}, or load only the tensors that fit: "
    "MODEL.WEIGHTS_ALLOW_PARTIAL True (behind --opts of `instancezoo predict`; train_net.py also "
    "has --allow-partial)"
)
_AS_THEY_ARE = ", or load them as they are: MODEL.WEIGHTS_ALLOW_NON_FINITE True"
_IN_THE_FILE = " (the file holds it: leave --config-file of `instancezoo predict` out)"


class ZooCheckpointer(DetectionCheckpointer):
    """Loads our own and published checkpoints strictly, and saves so that a kill loses nothing.

    Args:
        model: model to load into and save from; wrappers of data parallelism are removed.
        save_dir: folder of a training run.
        save_to_disk: if True, this process writes; None lets only the main process write.
        allow_partial: load the tensors that fit and log the others, instead of raising an error.
        allow_non_finite: load NaN and infinity, too, instead of raising an error.
        classes: of the data set that the model is for, to be compared with a file's classes; a file
            that does not name its classes is not compared.
        facts: entries of every saved file: "cfg", "class_names" ..., see `description.py`.
        checkpointables: further objects with `state_dict` and `load_state_dict`; their states hold
            only tensors, numbers, texts and containers of these, else they could not be read again.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_partial: bool = False,
        allow_non_finite: bool = False,
        classes: ClassList = UNKNOWN,
        facts: Mapping[str, Any] | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.allow_partial = allow_partial
        self.allow_non_finite = allow_non_finite
        self.classes = classes
        self.facts = dict(facts or {})
        self._loading = ""
        self._starts_training = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file: ours, Detectron2's, or one that the method's authors published.

        Args:
            path: a path or an address that Detectron2's `PathManager` knows; "" loads nothing.
            checkpointables: names of the objects to restore beside the model; None for all. With
                an empty list the weights start a new training, whose classes may be others: they
                are compared with a warning, where an error would be raised. Its new parts may be
                missing, see `find_new_parts`.

        Returns:
            The file's other content, such as "iteration".

        Raises:
            CheckpointError: the file cannot be read, does not fit the model, or was trained on
                other classes or in another order of them; the model is then unchanged.
        """
        self._starts_training = checkpointables is not None and not checkpointables
        self._loading = path = os.fspath(path) if path else ""
        is_address = "://" in path
        try:
            if path and not is_address:
                check_file(fetch_checkpoint(remove_query(path)))
            return super().load(path, checkpointables)
        except Exception:
            if is_address:  # no network, no such address
                check_file(fetch_checkpoint(remove_query(path)))
            raise
        finally:
            self._parsed_url_during_load = None  # after an error Detectron2 does not reset it

    def save(self, name: str, **kwargs: Any) -> None:
        """Save model, checkpointables and `kwargs` as `save_dir/name.pth`, atomically.

        It becomes the last checkpoint, from which training resumes.
        """
        if self.save_dir and self.save_to_disk:
            self.save_untagged(name, **kwargs)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_untagged(self, name: str, **kwargs: Any) -> None:
        """Save without marking the file as the last checkpoint, such as the best weights so far."""
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict(), "__author__": AUTHOR}
        data |= self.facts
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        data |= kwargs
        target = Path(self.save_dir) / f"{name}.pth"
        if target.parent != Path(self.save_dir):
            raise ValueError(f"a checkpoint's name must not hold a folder, but it is '{name}'")
        for pattern in ("*.pth", _TAG):
            remove_leftovers(target.parent, pattern)
        self.logger.info(f"Saving checkpoint to {target}")
        with open_atomically(target) as file:
            try:
                torch.save(data, file)
            except RuntimeError as error:  # torch hides that of the disk behind its own
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record, atomically, which checkpoint is the last."""
        with open_atomically(Path(self.save_dir) / _TAG) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Return True if `save_dir` holds a whole checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Find the newest whole checkpoint of the latest run in `save_dir`; "" if there is none.

        Incomplete files, and those of earlier runs, are skipped with a warning.
        """
        if not self.save_dir:
            return ""
        run, found, of_others = RunRecord.read(self.save_dir).run, "", []
        for path in _list_candidates(Path(self.save_dir)):
            if not is_whole(path):
                self.logger.warning(f"{path} is torn (writer killed?): using an older checkpoint")
            elif run and read_checkpoint(str(path)).get("run") != run:
                of_others.append(path.name)
            else:
                found = str(path)
                break
        if of_others:
            record = Path(self.save_dir) / RECORD_NAME
            self.logger.warning(
                f"{self.save_dir}: {', '.join(of_others)} of an earlier run left unused. To resume "
                f"that run, remove {record}"
            )
        return found

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        query = self._parsed_url_during_load.query if self._parsed_url_during_load else ""
        if query == "matching_heuristics=True":
            checkpoint["matching_heuristics"] = True
        elif query:
            raise CheckpointError(
                f"{self._loading}: unknown query '?{query}'. Use ?matching_heuristics=True or none"
            )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        wanted = self.model.state_dict()
        state, layout = self._adapt(checkpoint, wanted)
        try:
            description = describe_checkpoint(checkpoint, layout)
        except CheckpointError as error:
            raise CheckpointError(f"{self._loading}: {error}") from None
        checkpoint.pop("model")
        by_names = checkpoint.pop("matching_heuristics", False) is True
        fills_backbone = bool(by_names or description.is_backbone)
        backbone_only = fills_backbone and all(name.startswith("backbone.") for name in state)
        difference = compare_classes(description.classes.names, self.classes.names)
        new = set(find_new_parts(self.model, state) if self._starts_training else ())
        expected = {name: tensor for name, tensor in wanted.items() if name not in new}
        mismatch = compare_tensors(expected, state, backbone_only=backbone_only)
        if mismatch:
            self._report(mismatch, description, layout, difference)
        is_told = bool(mismatch) and difference is not None and difference.kind == "number"
        if difference is not None and not is_told and not backbone_only:
            self._report_classes(difference)
        fitting = {n: v for n, v in state.items() if n in wanted and n not in mismatch.shapes}
        if not self.allow_non_finite:
            check_finite(self._loading, fitting, _AS_THEY_ARE)
        self.model.load_state_dict({**wanted, **fitting}, strict=False)
        if new and not backbone_only:
            self.logger.info(f"{self._loading} has no {show_names(sorted(new))}: they start anew")

    def _adapt(
        self, checkpoint: dict[str, Any], wanted: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Layout | None]:
        """Rename the file's tensors as in the model. Returns (tensors, recognised layout)."""
        state: dict[str, Tensor] = checkpoint["model"]
        missing = [name for name in wanted if name not in state and not is_lenient(name)]
        if is_ours(checkpoint):
            is_backbone = read_facts(checkpoint).get("method") == "backbone"
            return _move_backbone(state, wanted) if is_backbone else state, None
        try:
            layout = find_layout(state)
            if layout is not None and not missing:  # Detectron2's zoo has our names
                return state, layout
            if layout is not None:
                check_origin(checkpoint, layout, self.model)
                return self._convert(layout, state, wanted), layout
        except CheckpointError as error:
            raise CheckpointError(f"{self._loading}: {error}") from None
        if not missing:
            return state, None
        if checkpoint.get("matching_heuristics") is True and len(state) <= MAX_TENSORS:
            return self._match_names(checkpoint, wanted), None
        if not any(name in wanted for name in state):
            remedy = _REMEDY.format(where="")
            raise CheckpointError(f"{self._loading}: {describe_nearest(state)}. {remedy}")
        return state, None

    def _match_names(
        self, checkpoint: dict[str, Any], wanted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Match names by their ends, as Detectron2 does."""
        author = checkpoint.get("__author__")
        caffe2 = isinstance(author, str) and author == "Caffe2"
        try:
            return align_and_update_state_dicts(wanted, checkpoint["model"], c2_conversion=caffe2)
        except Exception as error:  # its assertions expect the names of Detectron's zoo
            raise CheckpointError(
                f"{self._loading}: its names cannot be matched with the model's: "
                f"{show_text(first_line(error))}. {_REMEDY.format(where='')}"
            ) from error

    def _convert(
        self, layout: Layout, state: dict[str, Tensor], wanted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        converted = apply_layout(layout, state, allow_unknown=self.allow_partial)
        self.logger.info(
            f"Recognised '{layout.name}' ({layout.method}, licence {layout.licence}): "
            f"{len(converted.used)} tensors used, {len(converted.unused)} have no place here"
        )
        if converted.unknown:
            self.logger.warning(f"No rule for, and left out: {show_names(converted.unknown)}")
        is_backbone = layout.fills == "backbone"
        return _move_backbone(converted.state, wanted) if is_backbone else converted.state

    def _report(
        self,
        mismatch: Mismatch,
        description: Description,
        layout: Layout | None,
        difference: ClassDifference | None,
    ) -> None:
        message = (
            f"{self._loading}{_describe_origin(description, layout)} does not fit the model "
            f"{type(self.model).__name__}: {mismatch.describe()}"
        )
        if difference is not None and difference.kind == "number":
            message += f". {difference.message}"
        if not self.allow_partial:
            where = _IN_THE_FILE if description.config_text else ""
            raise CheckpointError(f"{message}. {_REMEDY.format(where=where)}")
        if not mismatch.num_fitting:
            raise CheckpointError(f"{message}. No tensor of it can be used: check MODEL.WEIGHTS")
        lines = "\n  ".join(mismatch.list_lines())
        self.logger.warning(f"{message}. Loaded partially, as allowed:\n  {lines}")

    def _report_classes(self, difference: ClassDifference) -> None:
        message = f"{self._loading}: {difference.message}"
        if difference.kind == "order" or not (self.allow_partial or self._starts_training):
            raise CheckpointError(message)
        self.logger.warning(message)


def _describe_origin(description: Description, layout: Layout | None) -> str:
    """Name the config that a file belongs to, if known."""
    if layout is not None:
        return f" (recognised as '{layout.name}', whose config is {layout.config})"
    if description.config_name:  # written by `instancezoo convert`
        return f" (converted, its config is {show_text(description.config_name)})"
    return ""


def _move_backbone(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a bare backbone's tensors for a model with or without an FPN."""
    prefix = find_backbone_prefix(wanted)
    nested = "backbone.bottom_up."
    return {prefix + name.removeprefix(nested): tensor for name, tensor in state.items()}


def save_safetensors(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Save named tensors as a `.safetensors` file, atomically.

    Args:
        path: file to write.
        state: name -> tensor on any device; tensors that share memory are each stored in full.
        metadata: short texts for the file's header.
    """
    # the format has neither shared nor strided memory
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with open_atomically(path) as file:
        file.write(serialize_safetensors(whole, metadata=dict(metadata or {})))


def use_average(model: nn.Module, rest: dict[str, Any], *, allow_non_finite: bool = False) -> None:
    """Replace a model's weights by their running average, if its checkpoint holds one.

    Args:
        model: loaded from the checkpoint; changed in place.
        rest: the value that `ZooCheckpointer.load` returned.
        allow_non_finite: use NaN and infinity, too.

    Raises:
        CheckpointError: the average does not fit the model, or is not finite.
    """
    if not (average := read_average(rest)):
        return
    where = "the running average in MODEL.WEIGHTS ('ema')"
    mismatch = compare_tensors(model.state_dict(), average)
    if mismatch:
        raise CheckpointError(
            f"{where} does not fit the model: {mismatch.describe()}. Set MODEL.EMA.ENABLED False "
            "to use the weights themselves"
        )
    if not allow_non_finite:
        check_finite(where, average, _AS_THEY_ARE)
    model.load_state_dict(average, strict=False)


def is_whole(path: str | Path) -> bool:
    """Return True if a checkpoint is complete: every record in it matches its checksum."""
    path = Path(path)
    try:
        check_file(path)
        if not is_archive(path):
            read_checkpoint(path)  # torch's old format has no checksums
            return True
        with zipfile.ZipFile(path) as archive:
            check_archive(archive)
            has_data = any(name.endswith("data.pkl") for name in archive.namelist())
            return has_data and archive.testzip() is None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError):
        return False


def _list_candidates(folder: Path) -> list[Path]:
    """List the checkpoints of a training run, newest first."""
    try:
        tagged = folder / (folder / _TAG).read_text().strip()
    except (OSError, UnicodeDecodeError):
        tagged = folder
    found = [path for path in folder.glob("*.pth") if not path.name.startswith(".")]
    ours = [p for p in found if _NUMBERED.fullmatch(p.name) or p.stem == "model_final"]
    ours.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if tagged not in found:
        return ours
    # The writer may have been killed between a save and its tag. Numbers alone do not decide: an
    # older, longer run may have left its files here; nor do times: a copied folder has new ones.
    untagged = [p for p in ours if _is_newer(p, tagged)]
    return [*untagged, tagged, *(p for p in ours if p != tagged and p not in untagged)]


def _is_newer(path: Path, tagged: Path) -> bool:
    number, last = _NUMBERED.fullmatch(path.name), _NUMBERED.fullmatch(tagged.name)
    if number is None or (last is not None and int(number[1]) <= int(last[1])):
        return False
    return path.stat().st_mtime_ns > tagged.stat().st_mtime_ns
