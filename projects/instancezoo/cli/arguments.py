"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--dataset NAME=JSON:IMAGES`, which `load_cfg` registers."""
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=JSON:IMAGES",
        help="a COCO-format data set: annotation file and image folder; may be repeated",
    )
