"""`instancezoo predict`: pictures and COCO JSON from images, folders and videos."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from instancezoo.cli.arguments import add_dataset_argument, read_share
from instancezoo.config import CfgNode, load_cfg
from instancezoo.errors import ZooError
from instancezoo.inference import ImagePredictor, gather_inputs, predict_inputs
from instancezoo.inference.coco_json import MASK_FORMS
from instancezoo.inference.predict import PREDICTIONS_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `instancezoo predict`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder, or quoted pattern ('photos/*.jpg')",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="any checkpoint that `convert` reads")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder for the pictures and {PREDICTIONS_NAME}",
    )
    parser.add_argument(
        "--confidence", type=read_share, default=0.5, help="smallest score to keep (default 0.5)"
    )
    parser.add_argument(
        "--masks",
        choices=MASK_FORMS,
        default="rle",
        help=f"form of the masks in {PREDICTIONS_NAME}: rle (default) for every model, or polygon "
        "for models that predict polygons (PolarMask)",
    )
    parser.add_argument("--no-pictures", action="store_true", help=f"only {PREDICTIONS_NAME}")
    add_dataset_argument(parser)
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides"
    )


def run(args: argparse.Namespace) -> int:
    """Predict. Returns 1 if a file failed, else 0."""
    inputs = gather_inputs(args.inputs)
    overrides = [*args.opts, "MODEL.MASK_OUTPUT", "rle"]
    if args.weights:
        overrides += ["MODEL.WEIGHTS", args.weights]
    cfg = _load_cfg(args.config_file, overrides, args.dataset)
    failures = predict_inputs(
        ImagePredictor(cfg, args.confidence),
        inputs,
        args.output,
        cfg,
        with_pictures=not args.no_pictures,
        mask_form=args.masks,
    )
    print(f"{len(inputs) - len(failures)} of {len(inputs)} files done: {args.output}")
    for failure in failures:
        print(f"not done: {failure.path}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def _load_cfg(config_file: str, overrides: list[str], datasets: list[str]) -> CfgNode:
    if datasets:
        overrides = ["DATASETS.TEST", f"('{datasets[0].split('=')[0]}',)", *overrides]
    try:
        return load_cfg(config_file, overrides, datasets, training=False)
    except ZooError as error:
        if datasets:
            raise
        # The training data may be absent where a model is used. If the config itself is wrong, it
        # fails again.
        print(f"class names are unknown: {error}", file=sys.stderr)
        return load_cfg(config_file, [*overrides, "DATASETS.TEST", "()"], training=False)
