"""Detectron2's config with InstanceZoo's keys; importing this module registers every method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode as _CfgNode
from detectron2.config import get_cfg as _get_detectron2_cfg
from detectron2.utils.file_io import PathManager

import instancezoo.modeling  # noqa: F401  (registers architectures and backbones)
from instancezoo.config_values import (
    check_best_metric,
    check_device,
    check_names,
    check_sizes,
    explain_type,
    suggest_file,
)
from instancezoo.data.datasets import load_metadata, parse_dataset_argument, register_dataset
from instancezoo.data.images import ImageReader
from instancezoo.errors import ConfigError, check_choice, suggest
from instancezoo.methods import METHODS
from instancezoo.modeling.masks import MASK_OUTPUTS

_PAIR_OR_TEXT = "PIXEL_RANGE"  # below INPUT


class CfgNode(_CfgNode):
    """Detectron2's config node with helpful errors and a record of the keys that were set.

    A misspelt key raises a `ConfigError` that names the nearest existing one. Only plain YAML is
    read: a file with Python tags is refused, not executed.
    """

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file. Raises `ConfigError`."""
        if not PathManager.isfile(cfg_filename):
            hint = suggest_file(cfg_filename)
            raise ConfigError(f"config file '{cfg_filename}' does not exist{hint}")
        try:
            loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"config file '{cfg_filename}' is not plain YAML: {error}") from error
        except OSError as error:
            raise ConfigError(f"config file '{cfg_filename}' or a _BASE_ of it: {error}") from error
        except (TypeError, AttributeError):
            loaded = None  # Detectron2 expects a mapping
        if not isinstance(loaded, dict):
            raise ConfigError(f"config file '{cfg_filename}' holds no KEY: VALUE lines")
        keys = [k for k, value in _list_values(loaded) if not isinstance(value, dict) or not value]
        self.__dict__.setdefault("_keys_set", set()).update(keys)
        try:
            super().merge_from_file(cfg_filename, allow_unsafe=allow_unsafe)
        except TypeError as error:
            raise ConfigError(
                f"config file '{cfg_filename}' has a single value where a group of keys belongs"
            ) from error
        except (KeyError, ValueError) as error:
            known = dict(_list_values(self))
            unknown = next((key for key in keys if key not in known and key != "VERSION"), None)
            if unknown is not None:
                raise ConfigError(_explain_unknown(unknown, known, cfg_filename)) from error
            leaves = [(k, v) for k, v in _list_values(loaded) if not isinstance(v, dict)]
            problem = self._explain_type(leaves) or error.args[0]
            raise ConfigError(f"{problem} (in {cfg_filename})") from error

    def merge_from_other_cfg(self, cfg_other: Any) -> Any:
        """Merge a config of the same class; whole numbers are accepted for fractions."""
        _widen_integers(cfg_other, self)
        if "INPUT" in cfg_other and _PAIR_OR_TEXT in cfg_other.INPUT:
            cfg_other.INPUT[_PAIR_OR_TEXT] = self._pair_to_text(cfg_other.INPUT[_PAIR_OR_TEXT])
        merged = super().merge_from_other_cfg(cfg_other)
        self._translate_names()
        return merged

    def merge_from_list(self, cfg_list: list[Any]) -> Any:
        """Merge `[KEY, VALUE, ...]`, with whole numbers as in files. Raises `ConfigError`."""
        if len(cfg_list) % 2:
            raise ConfigError(
                f"overrides come in pairs KEY VALUE, but {len(cfg_list)} words were given: "
                f"{' '.join(map(str, cfg_list))}"
            )
        known = dict(_list_values(self))
        overrides: list[Any] = []
        for key, text in zip(map(str, cfg_list[0::2]), cfg_list[1::2], strict=True):
            if key not in known and not self.is_new_allowed():
                raise ConfigError(_explain_unknown(key, known, "the command line"))
            if key == f"INPUT.{_PAIR_OR_TEXT}":
                text = self._pair_to_text(text)
            value = self._decode_cfg_value(text)
            is_whole = type(value) is int and isinstance(known.get(key), float)
            overrides += [key, float(value) if is_whole else text]
        self.__dict__.setdefault("_keys_set", set()).update(overrides[0::2])
        try:
            merged = super().merge_from_list(overrides)
        except ValueError as error:
            pairs = zip(overrides[0::2], overrides[1::2], strict=True)
            problem = self._explain_type(pairs) or error.args[0]
            raise ConfigError(f"{problem} (on the command line)") from error
        self._translate_names()
        return merged

    def was_set(self, key: str) -> bool:
        """Return True if a config file or an override named this full key."""
        return key in self.__dict__.get("_keys_set", ())

    @classmethod
    def _pair_to_text(cls, value: Any) -> Any:
        # The key's default is a text, so yacs takes no pair, nor a text that reads as one.
        decoded = cls._decode_cfg_value(value)
        return " ".join(map(str, decoded)) if isinstance(decoded, list | tuple) else value

    def _explain_type(self, pairs: Iterable[tuple[str, Any]]) -> str:
        """Tell which of (full key, value) has the wrong type; "" if none has."""
        known = dict(_list_values(self))
        for key, value in pairs:
            is_whole = type(value) is int and isinstance(known.get(key), float)
            try:
                if key in known and not is_whole:
                    _CfgNode.merge_from_list(self.clone(), [key, value])
            except ValueError:
                return explain_type(key, value, known[key])
        return ""

    def _translate_names(self) -> None:
        if "MODEL" in self and "MASK_OUTPUT" in self.MODEL:  # a whole config, not a node of it
            for method in METHODS:
                method.translate(self)


def get_cfg() -> CfgNode:
    """Return Detectron2's defaults with every key of InstanceZoo and its methods.

    `MODEL.DEVICE` is "cuda" on a machine with a GPU, else "cpu". "mps" must be asked for: torch
    lacks some operators there, and no method here was tried on it.
    """
    cfg = CfgNode(_get_detectron2_cfg())
    add_instancezoo_config(cfg)
    for method in METHODS:
        method.add_config(cfg)
    return cfg


def add_instancezoo_config(cfg: CfgNode) -> None:
    """Add the keys that all methods share."""
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    # Form of `pred_masks` after inference: "bitmask" (bool tensor, as in Detectron2) or "rle" (list
    # of COCO RLE dicts; full-size masks are never built). Evaluation always uses "rle".
    cfg.MODEL.MASK_OUTPUT = "bitmask"
    # Load what fits of MODEL.WEIGHTS and leave the other tensors as initialised. Set it to
    # fine-tune on other classes.
    cfg.MODEL.WEIGHTS_ALLOW_PARTIAL = False

    # Number of pyramid levels above P5 made by convolutions: 2 (P6 and P7), 1 or 0; read by
    # MODEL.BACKBONE.NAME "build_resnet_fpn_top_levels_backbone".
    cfg.MODEL.FPN.TOP_LEVELS = 2

    # Exponential moving average of the weights: evaluated, and saved beside the model.
    cfg.MODEL.EMA = CfgNode()
    cfg.MODEL.EMA.ENABLED = False
    # Decay per iteration, in [0, 1); lower it for short trainings.
    cfg.MODEL.EMA.DECAY = 0.9998

    # timm feature extractor under an FPN, for MODEL.BACKBONE.NAME "build_timm_fpn_backbone".
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "resnet18"
    # Its weights: "" random, "hub" timm's own, "package:NAME" of an installed package, or a file.
    cfg.MODEL.TIMM.WEIGHTS = ""

    # "SGD" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Precision under SOLVER.AMP.ENABLED: "bfloat16" (any device) or "float16" (scaled gradients).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"

    # Form of ground-truth masks; "bitmask" takes annotations as polygons and as RLE.
    cfg.INPUT.MASK_FORMAT = "bitmask"
    # Height and width in pixels that every image is stretched to, in training and inference. ()
    # keeps the aspect ratio and resizes by MIN_SIZE_* and MAX_SIZE_*.
    cfg.INPUT.FIXED_SIZE = ()
    # With FIXED_SIZE: lowest and highest height in pixels that training samples from; the width
    # stays. () always takes FIXED_SIZE.
    cfg.INPUT.FIXED_HEIGHTS_TRAIN = ()
    # Ignore training objects with fewer pixels than MIN_OBJECT_AREA or with both box sides shorter
    # than MIN_OBJECT_SIDE pixels (before resizing).
    cfg.INPUT.MIN_OBJECT_AREA = 0
    cfg.INPUT.MIN_OBJECT_SIDE = 0
    # How the values of image files map to [0, 255], the range of MODEL.PIXEL_MEAN: "type" (8-bit
    # values stay, 16-bit ones become their high byte, floats in [0, 1] are multiplied by 255),
    # "minmax" or "percentiles" of each image ("percentiles 1 99" for others than 0.5 and 99.5), or
    # the two values that become 0 and 255, such as (0, 4095). All but "type" keep every level.
    # The number of channels is that of MODEL.PIXEL_MEAN.
    cfg.INPUT.PIXEL_RANGE = "type"
    # Largest number of pixels of an image, a guard against damaged and hostile files; 0 for any.
    cfg.INPUT.MAX_PIXELS = 178956970
    # Dataset mapper: "instance", or one that a method registers (its README says when to use it).
    cfg.INPUT.MAPPER = "instance"
    # Refuse a data set with bad annotations. False drops them, and reports counts and ids.
    cfg.DATASETS.STRICT = False

    # Library that matches detections: "hotcoco", or the slower "pycocotools" (same numbers). AP
    # counts all detections of the model: raise TEST.DETECTIONS_PER_IMAGE, or the method's own key,
    # for images with more objects. COCO's figures, which count the 100 most confident ones of an
    # image and class, are shown beside where they differ (in metrics.json: "segm_at_100").
    cfg.TEST.COCO_BACKEND = "hotcoco"
    # Number of best and number of worst images drawn after the last evaluation.
    cfg.TEST.NUM_PICTURES = 20
    # TASK/METRIC of the printed tables, such as segm/AP or bbox/AP50, whose best checkpoint is kept
    # as model_best.pth; "" keeps none. For a model without masks segm means bbox.
    cfg.TEST.BEST_METRIC = "segm/AP"
    # Also compute the losses on DATASETS.TEST every TEST.EVAL_PERIOD iterations.
    cfg.TEST.VALIDATION_LOSS = False


def load_cfg(
    config_file: str,
    overrides: list[Any] | None = None,
    datasets: list[str] | None = None,
    *,
    training: bool = True,
) -> CfgNode:
    """Read the config of a command: file, data sets and overrides, with `NUM_CLASSES` resolved.

    Args:
        config_file: a YAML file, or "" for the defaults.
        overrides: `[KEY, VALUE, ...]`.
        datasets: data sets to register, `NAME=json:images` each.
        training: if True, take the classes of `DATASETS.TRAIN`, else those of `DATASETS.TEST`.

    Raises:
        ConfigError: a bad key or value, or data sets that disagree about their classes.
        DatasetError: a data set that cannot be read.
    """
    cfg = get_cfg()
    if config_file:
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(overrides or [])
    check_values(cfg)
    for argument in datasets or []:
        paths = parse_dataset_argument(argument)
        register_dataset(*paths, strict=cfg.DATASETS.STRICT, max_pixels=cfg.INPUT.MAX_PIXELS)
    train, test = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    check_datasets_are_used(cfg, datasets or [])
    names = train + test if training else test
    classes = {name: list(load_metadata(name).thing_classes) for name in names}
    for name in names[1:]:
        if classes[name] != classes[names[0]]:
            raise ConfigError(
                f"data sets '{names[0]}' ({len(classes[names[0]])} classes) and '{name}' "
                f"({len(classes[name])} classes) have different categories: give both the same "
                "list of categories, in the same order"
            )
    if test:
        check_best_metric(cfg.TEST.BEST_METRIC, classes[test[0]])
    if names:
        follow_dataset(cfg, len(classes[names[0]]), names[0])
    return cfg


def check_datasets_are_used(cfg: CfgNode, arguments: list[str]) -> None:
    """Raise `ConfigError` for a `--dataset` that neither DATASETS.TRAIN nor TEST names.

    Args:
        cfg: the whole config.
        arguments: `NAME=json:images` each.
    """
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    names = [argument.partition("=")[0] for argument in arguments]
    if unused := [name for name in names if name not in used]:
        raise ConfigError(
            f"--dataset {', '.join(unused)} is not used: DATASETS.TRAIN is "
            f"{tuple(cfg.DATASETS.TRAIN)}, DATASETS.TEST {tuple(cfg.DATASETS.TEST)}. Name it in "
            f"one of them, for example DATASETS.TRAIN \"('{unused[0]}',)\""
        )


def check_values(cfg: CfgNode) -> None:
    """Refuse values that would fail later without naming their key, or have no effect."""
    check_device(str(cfg.MODEL.DEVICE))
    check_names(cfg)
    check_sizes(cfg)
    check_best_metric(cfg.TEST.BEST_METRIC)
    check_choice("MODEL.MASK_OUTPUT", cfg.MODEL.MASK_OUTPUT, MASK_OUTPUTS)
    ImageReader.from_config(cfg)  # its keys
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError("TEST.AUG.ENABLED: augmented tests are not supported; set it to False")
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ConfigError("MODEL.LOAD_PROPOSALS: not supported; set it to False")


def follow_dataset(cfg: CfgNode, num_classes: int, dataset_name: str) -> None:
    """Set every `NUM_CLASSES` of instance heads to the data set's number, in place.

    Args:
        cfg: config to change (defrosted).
        num_classes: number of thing classes of the data set.
        dataset_name: name for the message.

    Raises:
        ConfigError: a `NUM_CLASSES` was set by hand to another number.
    """
    defaults = dict(_list_values(get_cfg()))
    for name, node in cfg.MODEL.items():
        # SEM_SEG_HEAD counts stuff, not things
        if not isinstance(node, dict) or "NUM_CLASSES" not in node or name == "SEM_SEG_HEAD":
            continue
        key = f"MODEL.{name}.NUM_CLASSES"
        by_hand = cfg.was_set(key) or node["NUM_CLASSES"] != defaults.get(key)
        if by_hand and node["NUM_CLASSES"] != num_classes:
            raise ConfigError(
                f"{key} is {node['NUM_CLASSES']}, but data set '{dataset_name}' has {num_classes} "
                f"classes. Leave {key} out to follow the data set, or name another data set"
            )
        node["NUM_CLASSES"] = num_classes


def _widen_integers(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            _widen_integers(value, default)
        elif type(value) is int and isinstance(default, float):
            values[name] = float(value)


def _list_values(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) for every key, groups of keys included."""
    for name, value in node.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _list_values(value, f"{prefix}{name}.")


def _explain_unknown(key: str, known: Iterable[str], where: str) -> str:
    if key.startswith("--"):
        return f"option {key} comes after the overrides; all options go before the first KEY"
    # Users misspell the last part, or put an existing name into a wrong group.
    same_leaf = [k for k in sorted(known) if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = suggest(key, sorted(known), cutoff=0.5) or suggest(key, same_leaf, cutoff=0)
    return f"config key {key} (in {where}) does not exist{hint}"
