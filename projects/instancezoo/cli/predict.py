"""`instancezoo predict`: pictures and COCO JSON from images, folders and videos."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from detectron2.data.catalog import Metadata

from instancezoo.checkpoint.classes import UNKNOWN, ClassList
from instancezoo.checkpoint.description import read_description
from instancezoo.cli.arguments import add_dataset_argument, read_share
from instancezoo.config import ZooConfig, follow_dataset, load_cfg, register_datasets
from instancezoo.data import load_metadata
from instancezoo.errors import ConfigError, ZooError
from instancezoo.inference import ImagePredictor, gather_inputs, predict_inputs
from instancezoo.inference.coco_json import MASK_FORMS
from instancezoo.inference.confidence import list_score_keys
from instancezoo.inference.predict import PREDICTIONS_NAME
from instancezoo.model_zoo import get_described_config

DEFAULT_CONFIDENCE = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `instancezoo predict`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder, or quoted pattern ('photos/*.jpg')",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint of a training, whose config and class names it holds, or any other that "
        "`convert` reads",
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="config of the weights, if they do not hold their own"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder for the pictures and {PREDICTIONS_NAME}",
    )
    parser.add_argument(
        "--confidence",
        type=read_share,
        help=f"smallest score to keep (default {DEFAULT_CONFIDENCE}, or the method's own threshold "
        "if --opts sets its key)",
    )
    parser.add_argument(
        "--masks",
        choices=MASK_FORMS,
        default="rle",
        help=f"form of the masks in {PREDICTIONS_NAME}: rle (default) for every model, or polygon "
        "for models that predict polygons (PolarMask)",
    )
    parser.add_argument(
        "--relative-to",
        type=Path,
        metavar="DIR",
        help=f"write file names in {PREDICTIONS_NAME} relative to this folder (default: as given)",
    )
    parser.add_argument("--no-pictures", action="store_true", help=f"only {PREDICTIONS_NAME}")
    add_dataset_argument(parser)
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides"
    )


def run(args: argparse.Namespace) -> int:
    """Predict. Returns 1 if a file failed, else 0."""
    if args.output.exists() and not args.output.is_dir():
        raise ZooError(f"--output {args.output} is a file: name a folder")
    inputs = gather_inputs(args.inputs)
    if args.config_file:
        cfg, metadata, classes = _load_given(args)
    elif args.weights:
        cfg, metadata, classes = _load_trained(args)
    else:
        raise ConfigError(
            "name the model: --weights FILE of a training, or also --config-file FILE"
        )
    if args.masks == "polygon" and cfg.TEST.AUG.ENABLED:
        raise ConfigError(
            "--masks polygon: masks merged by TEST.AUG are no polygons any more; leave it out, or "
            "set TEST.AUG.ENABLED False"
        )
    failures = predict_inputs(
        ImagePredictor(cfg, _choose_confidence(args, cfg), classes=classes),
        inputs,
        args.output,
        cfg,
        metadata=metadata,
        with_pictures=not args.no_pictures,
        mask_form=args.masks,
        relative_to=args.relative_to,
    )
    print(f"{len(inputs) - len(failures)} of {len(inputs)} files done: {args.output}")
    for failure in failures:
        print(f"not done: {failure.path}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def _load_trained(args: argparse.Namespace) -> tuple[ZooConfig, Metadata, ClassList]:
    """Take config and classes from the weights. Returns them and the classes to compare with."""
    description = read_description(args.weights)
    cfg = get_described_config(description, args.weights, _list_overrides(args))
    register_datasets(cfg, args.dataset)
    known = description.classes
    if not _names_dataset(args) or not cfg.DATASETS.TEST:
        return cfg, known.to_metadata(), UNKNOWN
    name = cfg.DATASETS.TEST[0]
    metadata = load_metadata(name)
    if not known:
        follow_dataset(cfg, len(metadata.thing_classes), name)
    return cfg, metadata, ClassList.from_metadata(metadata)


def _load_given(args: argparse.Namespace) -> tuple[ZooConfig, Metadata, ClassList]:
    """Take the config from --config-file, and classes from the weights if no data set is named."""
    overrides = _list_overrides(args)
    without_sets = [*overrides, "DATASETS.TEST", "()"]
    cfg = load_cfg(args.config_file, without_sets, training=False)
    known = read_description(cfg.MODEL.WEIGHTS).classes if cfg.MODEL.WEIGHTS else UNKNOWN
    if _names_dataset(args) or not known:
        try:
            followed = load_cfg(args.config_file, overrides, args.dataset, training=False)
        except ZooError as error:
            if args.dataset:
                raise
            # The training data may be absent where a model is used.
            what = "the data set is left out" if known else "class names are unknown"
            print(f"{what}: {error}", file=sys.stderr)
        else:
            if followed.DATASETS.TEST:
                metadata = load_metadata(followed.DATASETS.TEST[0])
                return followed, metadata, ClassList.from_metadata(metadata)
    if known:
        with suppress(ConfigError):  # NUM_CLASSES by hand: loading the weights tells what differs
            follow_dataset(cfg, len(known.names), cfg.MODEL.WEIGHTS)
    return cfg, known.to_metadata(), UNKNOWN


def _list_overrides(args: argparse.Namespace) -> list[str]:
    if len(args.opts) % 2:
        raise ConfigError(f"--opts takes pairs KEY VALUE, but it has {' '.join(args.opts)}")
    overrides = [*args.opts, "MODEL.MASK_OUTPUT", "rle"]
    if args.dataset:
        names = tuple(argument.partition("=")[0] for argument in args.dataset)
        overrides = ["DATASETS.TEST", repr(names), *overrides]
    if args.weights:
        overrides += ["MODEL.WEIGHTS", args.weights]
    return overrides


def _names_dataset(args: argparse.Namespace) -> bool:
    """Return True if the user named a data set; that of a config file is only its default."""
    return bool(args.dataset) or "DATASETS.TEST" in args.opts[0::2]


def _choose_confidence(args: argparse.Namespace, cfg: ZooConfig) -> float | None:
    """Return the smallest score to keep; None if --opts set the method's own threshold."""
    by_hand = [key for key in list_score_keys(cfg) if key in args.opts[0::2]]
    if not by_hand:
        return DEFAULT_CONFIDENCE if args.confidence is None else float(args.confidence)
    if args.confidence is not None:
        raise ConfigError(
            f"--confidence {args.confidence:g} and {' and '.join(by_hand)} (behind --opts) both "
            "limit the scores: leave out the key, and --confidence rules, or leave out "
            "--confidence, and the key rules"
        )
    return None
