"""Checks of values that training would refuse later without naming their key, or ignore."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from instancezoo.data.mappers import MAPPER_REGISTRY
from instancezoo.engine.loader import SAMPLERS
from instancezoo.engine.optimizer import CLIP_TYPES, OPTIMIZERS
from instancezoo.engine.step import PRECISIONS
from instancezoo.errors import ConfigError, check_choice, suggest
from instancezoo.evaluation.average_precision import BACKENDS

# Choices that Detectron2 has in its functions only.
_SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POOLERS = ("", "ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated")
# Keys whose value is a registered name, or "" where a part is not used.
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "INPUT.MAPPER": MAPPER_REGISTRY,
}
_CHOICES: dict[str, Iterable[Any]] = {
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.LR_SCHEDULER_NAME": _SCHEDULES,
    "SOLVER.WARMUP_METHOD": ("constant", "linear"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": CLIP_TYPES,
    "SOLVER.AMP.DTYPE": PRECISIONS,
    "DATALOADER.SAMPLER_TRAIN": SAMPLERS,
    "INPUT.MASK_FORMAT": ("bitmask", "polygon"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "TEST.COCO_BACKEND": BACKENDS,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    **{
        f"MODEL.{part}.NORM": _NORMS for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    },
}
_TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def check_device(device: str) -> None:
    """Raise `ConfigError` if MODEL.DEVICE is no device, or one that this machine lacks."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE '{device}' is no device: set cuda, mps or cpu") from error
    is_present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_present.get(kind, True):
        what = "GPU" if kind == "cuda" else f"device of the kind '{kind}'"
        raise ConfigError(
            f"MODEL.DEVICE is '{device}', but torch finds no {what}: leave the key out to use the "
            "machine's default, or set MODEL.DEVICE cpu"
        )


def check_names(cfg: Any) -> None:
    """Raise `ConfigError` for a name that is not registered, or none of the known choices."""
    for key, registry in _REGISTRIES.items():
        name, known = _read_value(cfg, key), [name for name, _ in registry]
        if registry is PROPOSAL_GENERATOR_REGISTRY:
            known.append("PrecomputedProposals")
        if name and name not in known:
            hint = suggest(name, known) or f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"{key} '{name}' does not exist{hint}")
    for key, choices in _CHOICES.items():
        check_choice(key, _read_value(cfg, key), choices)


def check_crowds(cfg: Any) -> None:
    """Raise `ConfigError` for INPUT.CROWDS with an architecture that would learn them as objects.

    Architectures that know of crowds have an attribute `keep_crowds`.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if cfg.INPUT.CROWDS and not hasattr(dict(META_ARCH_REGISTRY).get(name), "keep_crowds"):
        raise ConfigError(
            f"INPUT.CROWDS is True, but MODEL.META_ARCHITECTURE {name} would learn crowds as "
            "objects: set it to False"
        )


def check_best_metric(metric: str, class_names: list[str] | None = None) -> None:
    """Raise `ConfigError` if TEST.BEST_METRIC is no figure of the evaluation.

    Args:
        metric: `TASK/METRIC`, with `DATA SET/` before it if there are several; "" for none.
        class_names: of the data set; None if unknown.
    """
    if not metric:
        return
    found = re.fullmatch(r"(?:.+/)?(?:bbox|segm)/(AP-(.+)|.+)", metric)
    is_class = found is not None and found[2] is not None
    if found is None or not (is_class or found[1] in _METRICS):
        raise ConfigError(
            f"TEST.BEST_METRIC is '{metric}'; it must be segm/METRIC or bbox/METRIC, where METRIC "
            f'is one of {", ".join(_METRICS)}, AP-<class name>; "" keeps no best checkpoint'
        )
    if not is_class or class_names is None:
        return
    if len(class_names) == 1:
        raise ConfigError(
            f"TEST.BEST_METRIC is '{metric}', but the data set has a single class: set "
            f"{metric.split('/AP-')[0]}/AP"
        )
    if found[2] not in class_names:
        hint = suggest(found[2], class_names)
        raise ConfigError(
            f"TEST.BEST_METRIC is '{metric}', but the data set has no class '{found[2]}'{hint}"
        )


def explain_type(key: str, value: Any, default: Any) -> str:
    """Say which type of value a key expects, after one of another type was refused."""
    is_group = isinstance(default, dict)
    expected = "a group of keys" if is_group else _TYPES.get(type(default), "of another type")
    example = "" if is_group or default in ("", [], ()) else f", such as {default!r}"
    return f"{key} is {value!r}; it must be {expected}{example}"


def suggest_file(path: str) -> str:
    """Suggest a YAML file for a path that does not exist: "; did you mean 'x'?", or ""."""
    wanted = Path(path)
    if wanted.parent.is_dir():
        files = wanted.parent.glob("*.yaml")
    else:  # the folder may be misspelt, too
        files = wanted.parent.parent.glob("*/*.yaml")
    return suggest(str(wanted), sorted(map(str, files)))


def _read_value(cfg: Any, key: str) -> Any:
    """Value of a full key such as SOLVER.BASE_LR."""
    return reduce(getattr, key.split("."), cfg)
