"""Detectron2's config with InstanceZoo's keys; importing this module registers every method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Any

import yaml
from detectron2.config import CfgNode as CfgNode  # re-exported for the keys of users
from detectron2.config import get_cfg as _get_detectron2_cfg
from detectron2.utils.file_io import PathManager
from yacs.config import CfgNode as YacsNode

import instancezoo.modeling  # noqa: F401  (registers architectures and backbones)
from instancezoo.config_keys import add_shared_keys
from instancezoo.config_limits import check_sizes
from instancezoo.config_trial import check_builds
from instancezoo.config_types import check_types, list_values
from instancezoo.config_values import (
    check_best_metric,
    check_crowds,
    check_device,
    check_names,
    explain_type,
    suggest_file,
)
from instancezoo.data.augmentations import build_augmentations
from instancezoo.data.datasets import load_metadata, parse_dataset_argument, register_dataset
from instancezoo.data.images import ImageReader
from instancezoo.errors import ConfigError, check_choice, suggest
from instancezoo.methods import METHODS
from instancezoo.modeling.masks import MASK_OUTPUTS

_PAIR_OR_TEXT = "PIXEL_RANGE"  # below INPUT


class ZooConfig(CfgNode):
    """Detectron2's config with helpful errors and a record of the keys that were set.

    A misspelt key raises a `ConfigError` that names the nearest existing one. Only plain YAML is
    read: a file with Python tags is refused, not executed. The groups of keys are Detectron2's own
    `CfgNode`, so that they mix with those of any other extension.
    """

    @classmethod
    def _create_config_tree_from_dict(cls, dic: dict[str, Any], key_list: list[str]) -> Any:
        return CfgNode._create_config_tree_from_dict(dic, key_list)

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        return CfgNode._decode_cfg_value(value)

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
            problem = self._explain_type(list_values(loaded)) or error.args[0]
            raise ConfigError(f"{problem} (in {cfg_filename})") from error

    def merge_from_other_cfg(self, cfg_other: Any) -> Any:
        """Merge another config; whole numbers are accepted for fractions."""
        _use_one_class(self)
        _widen_integers(cfg_other, self)
        if "INPUT" in cfg_other and _PAIR_OR_TEXT in cfg_other.INPUT:
            cfg_other.INPUT[_PAIR_OR_TEXT] = self._pair_to_text(cfg_other.INPUT[_PAIR_OR_TEXT])
        merged = super().merge_from_other_cfg(cfg_other)
        self._follow({key for key, _ in _list_values(cfg_other)})
        return merged

    def merge_from_list(self, cfg_list: list[Any]) -> Any:
        """Merge `[KEY, VALUE, ...]`, with whole numbers as in files. Raises `ConfigError`."""
        if options := [str(word) for word in cfg_list if str(word).startswith("--")]:
            raise ConfigError(
                f"option {options[0]} comes after the overrides; all options go before the first "
                "KEY"
            )
        if len(cfg_list) % 2:
            raise ConfigError(
                f"overrides come in pairs KEY VALUE, but {len(cfg_list)} words were given: "
                f"{' '.join(map(str, cfg_list))}"
            )
        _use_one_class(self)
        known = dict(_list_values(self))
        overrides: list[Any] = []
        for key, text in zip(map(str, cfg_list[0::2]), cfg_list[1::2], strict=True):
            if key not in known and not self.is_new_allowed():
                raise ConfigError(_explain_unknown(key, known, "the command line"))
            if key == f"INPUT.{_PAIR_OR_TEXT}":
                text = self._pair_to_text(text)
            value = self._decode_cfg_value(text)
            is_whole = type(value) is int and isinstance(known.get(key), float)
            overrides += [key, _to_fraction(value) if is_whole else text]
        self.__dict__.setdefault("_keys_set", set()).update(overrides[0::2])
        try:
            merged = super().merge_from_list(overrides)
        except ValueError as error:
            pairs = zip(overrides[0::2], overrides[1::2], strict=True)
            problem = self._explain_type(pairs) or error.args[0]
            raise ConfigError(f"{problem} (on the command line)") from error
        self._follow(set(overrides[0::2]))
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
                    CfgNode.merge_from_list(self.clone(), [key, value])
            except ValueError:
                return explain_type(key, value, known[key])
        return ""

    def _follow(self, merged: set[str]) -> None:
        """Adjust the keys that follow from others, after a merge that named the keys `merged`."""
        if "MODEL" not in self or "MASK_OUTPUT" not in self.MODEL:  # not a whole config
            return
        for method in METHODS:
            method.translate(self)
        if self.DATASETS.NUM_CLASSES and "DATASETS.NUM_CLASSES" in merged:
            for key, node in _list_heads(self):
                if key not in merged and not self.was_set(key):
                    node.NUM_CLASSES = self.DATASETS.NUM_CLASSES


def get_cfg() -> ZooConfig:
    """Return Detectron2's defaults with every key of InstanceZoo and its methods.

    `MODEL.DEVICE` is "cuda" on a machine with a GPU, else "cpu". "mps" must be asked for: torch
    lacks some operators there, and no method here was tried on it.
    """
    cfg = ZooConfig(_get_detectron2_cfg())
    add_instancezoo_config(cfg)
    return cfg


def add_instancezoo_config(cfg: CfgNode) -> None:
    """Add every key of InstanceZoo and its methods to Detectron2's config, in place.

    Prefer `get_cfg`: a stock config does not translate the names in published config files and does
    not follow `DATASETS.NUM_CLASSES`; it merges `OUTPUT_DIR/config.yaml`, where both is done.
    """
    add_shared_keys(cfg)
    for method in METHODS:
        method.add_config(cfg)


def load_cfg(
    config_file: str,
    overrides: list[Any] | None = None,
    datasets: list[str] | None = None,
    *,
    training: bool = True,
) -> ZooConfig:
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
    from_file = cfg.clone()
    cfg.merge_from_list(overrides or [])
    check_values(cfg)
    register_datasets(cfg, datasets or [])
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
    check_builds(cfg, [from_file, get_cfg()])
    return cfg


def register_datasets(cfg: CfgNode, arguments: list[str]) -> None:
    """Register data sets, `NAME=json:images` each, with the limits of a config."""
    for argument in arguments:
        paths = parse_dataset_argument(argument)
        register_dataset(*paths, strict=cfg.DATASETS.STRICT, max_pixels=cfg.INPUT.MAX_PIXELS)


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
    defaults = get_cfg()
    check_types(cfg, defaults)
    check_device(cfg.MODEL.DEVICE)
    check_names(cfg)
    check_sizes(cfg, defaults)
    check_best_metric(cfg.TEST.BEST_METRIC)
    check_choice("MODEL.MASK_OUTPUT", cfg.MODEL.MASK_OUTPUT, MASK_OUTPUTS)
    ImageReader.from_config(cfg)  # refuses what it cannot read by
    build_augmentations(cfg)
    check_crowds(cfg)
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ConfigError("MODEL.LOAD_PROPOSALS: not supported; set it to False")


def follow_dataset(cfg: ZooConfig, num_classes: int, dataset_name: str) -> None:
    """Set every `NUM_CLASSES` of instance heads to the data set's number, in place.

    Args:
        cfg: config to change (defrosted).
        num_classes: number of thing classes of the data set.
        dataset_name: name for the message.

    Raises:
        ConfigError: a `NUM_CLASSES` was set by hand to another number.
    """
    defaults = dict(_list_values(get_cfg()))
    for key, node in _list_heads(cfg):
        own = node.NUM_CLASSES
        by_hand = cfg.was_set(key) or own not in (defaults.get(key), cfg.DATASETS.NUM_CLASSES)
        if by_hand and own != num_classes:
            raise ConfigError(
                f"{key} is {own}, but data set '{dataset_name}' has {num_classes} "
                f"classes. Leave {key} out to follow the data set, or name another data set"
            )
        node.NUM_CLASSES = num_classes
    cfg.DATASETS.NUM_CLASSES = num_classes


def _list_heads(cfg: CfgNode) -> Iterator[tuple[str, CfgNode]]:
    """Yield (key, its group) for every `NUM_CLASSES` of things; SEM_SEG_HEAD counts stuff."""
    for name, node in cfg.MODEL.items():
        if isinstance(node, CfgNode) and "NUM_CLASSES" in node and name != "SEM_SEG_HEAD":
            yield f"MODEL.{name}.NUM_CLASSES", node


def _use_one_class(node: CfgNode) -> None:
    """Make all groups of keys Detectron2's `CfgNode`, in place, since yacs merges no other class.

    Extensions also add nodes of yacs, fvcore, or `type(cfg)()`.
    """
    for child in node.values():
        if isinstance(child, YacsNode):
            if type(child) is not CfgNode:
                object.__setattr__(child, "__class__", CfgNode)  # as references to it stay valid
            _use_one_class(child)


def _widen_integers(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            _widen_integers(value, default)
        elif type(value) is int and isinstance(default, float):
            values[name] = _to_fraction(value)


def _to_fraction(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return inf  # refused later, with its key


def _list_values(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) for every key, groups of keys included."""
    for name, value in node.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _list_values(value, f"{prefix}{name}.")


def _explain_unknown(key: str, known: Iterable[str], where: str) -> str:
    # Users misspell the last part, or put an existing name into a wrong group.
    same_leaf = [k for k in sorted(known) if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = suggest(key, sorted(known), cutoff=0.5) or suggest(key, same_leaf, cutoff=0)
    return f"config key {key} (in {where}) does not exist{hint}"
