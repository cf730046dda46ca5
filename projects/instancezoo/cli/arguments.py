"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse
import math


def read_count(text: str) -> int:
    """Read a whole number above 0, as the `type` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def read_share(text: str) -> float:
    """Read a number between 0 and 1, as the `type` of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return value


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--dataset NAME=JSON:IMAGES`, which `load_cfg` registers."""
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=JSON:IMAGES",
        help="register a COCO-format data set: annotation file and image folder; may be repeated",
    )
