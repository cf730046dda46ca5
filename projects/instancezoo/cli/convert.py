"""`instancezoo convert SRC DST`: a published checkpoint -> a file with our names."""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

import torch

from instancezoo.checkpoint.checkpointer import save_safetensors
from instancezoo.checkpoint.classes import ClassList, show_classes, to_texts
from instancezoo.checkpoint.convert import Converted, convert_file
from instancezoo.checkpoint.description import fetch_checkpoint
from instancezoo.checkpoint.display import show_text
from instancezoo.checkpoint.reader import CheckpointError
from instancezoo.files import open_atomically, remove_leftovers

_FORMATS = (".safetensors", ".pth")
_MAX_LINES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `instancezoo convert`."""
    parser.add_argument("source", metavar="SRC", help="published file or its address")
    parser.add_argument(
        "target", type=Path, metavar="DST", help=f"file to write: {' or '.join(_FORMATS)}"
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="convert the tensors that have a rule and list the others, instead of an error",
    )
    parser.add_argument(
        "--allow-non-finite",
        action="store_true",
        help="convert weights that are NaN or infinite, too, instead of an error",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was recognised. Returns the exit code."""
    target: Path = args.target
    if target.suffix.lower() not in _FORMATS:
        raise CheckpointError(f"{target} must end in {' or '.join(_FORMATS)}")
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder. Name the file to write")
    remove_leftovers(target.parent, glob.escape(target.name))
    checkpoint, converted = convert_file(
        fetch_checkpoint(args.source),
        allow_unknown=args.allow_partial,
        allow_non_finite=args.allow_non_finite,
    )
    if converted is None:
        print(f"{args.source} is InstanceZoo's own already: {len(checkpoint['model'])} tensors")
    else:
        _print_report(converted)
    classes = ClassList.from_facts(checkpoint)
    if target.suffix.lower() == ".safetensors":
        save_safetensors(target, checkpoint.pop("model"), to_texts(checkpoint))
    else:
        with open_atomically(target) as file:
            torch.save(checkpoint, file)
    if classes:
        print(f"classes  {show_classes(classes.names)}")
    print(f"wrote    {target}")
    return 0


def _print_report(converted: Converted) -> None:
    layout = converted.layout
    print(f"layout   {layout.name}")
    print(f"method   {layout.method}")
    print(f"config   {layout.config}")
    print(f"licence  {layout.licence}")
    print(
        f"tensors  {len(converted.used)} used, {len(converted.unused)} without a place in the model"
    )
    if layout.fills == "backbone":
        print("note     fills only the backbone, to start training from; config is a base fragment")
    _print_names("unused", converted.unused)
    _print_names("unknown, left out", converted.unknown)


def _print_names(kind: str, names: list[str]) -> None:
    for name in names[:_MAX_LINES]:
        print(f"  {kind}: {show_text(name)}")
    if len(names) > _MAX_LINES:
        print(f"  {kind}: and {len(names) - _MAX_LINES} more")
