"""`instancezoo benchmark`: time of inference, stage by stage."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from instancezoo.benchmark import format_report, measure_config
from instancezoo.cli.arguments import add_dataset_argument, read_count
from instancezoo.config import load_cfg
from instancezoo.files import open_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `instancezoo benchmark`."""
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="random weights without it")
    add_dataset_argument(parser)
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument("--image", type=Path, metavar="FILE", help="picture to predict on")
    picture.add_argument(
        "--size",
        type=read_count,
        nargs=2,
        default=(800, 1333),
        metavar=("H", "W"),
        help="size of a generated picture, before the config's resize (default 800 1333)",
    )
    parser.add_argument(
        "--detections",
        type=read_count,
        default=100,
        metavar="N",
        help="number of detections to keep with random weights (default 100)",
    )
    parser.add_argument(
        "--repeat", type=read_count, default=10, metavar="N", help="measurements (default 10)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code."""
    # Without --weights nothing is downloaded.
    weights = ["MODEL.WEIGHTS", args.weights or "", "MODEL.TIMM.WEIGHTS", ""]
    cfg = load_cfg(args.config_file, [*weights, *args.opts], args.dataset, training=False)
    report = measure_config(
        cfg,
        config_name=args.config_file,
        image_file=args.image,
        size=tuple(args.size),
        num_detections=args.detections,
        repeats=args.repeat,
    )
    print(format_report(report))
    if args.json:
        with open_atomically(args.json) as file:
            file.write(json.dumps(report.to_json(), indent=2).encode())
    return 0
