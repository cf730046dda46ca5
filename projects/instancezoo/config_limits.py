"""Limits of numbers and lengths of lists that no training can work without.

Upper limits are far above all that was ever published; a larger value is a slip of the hand that
would fill the memory or never end.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import inf
from typing import Any

from instancezoo.config_types import list_items, list_values
from instancezoo.errors import ConfigError, describe_limits, is_number

_SHARE, _ANY = (0, 1), (-inf, inf)
_NOT_NEGATIVE, _POSITIVE, _COUNT = (0, inf), (1e-6, inf), (1, inf)
_LAYERS, _WIDTH, _SIDE = (0, 100), (1, 2**16), (1, 2**14)
# Parts of a loss are multiplied: larger ones overflow.
_WEIGHT, _PIXEL = (0, 1e6), (-1e6, 1e6)
_RATE = (0, 1000)
# Pattern of full keys -> lowest and highest value, also of each number in a list. The first pattern
# that fits counts; a key's default is always accepted.
_LIMITS: dict[str, tuple[float, float]] = {
    "SEED": (-1, 2**31),  # NumPy takes 32 bits
    "VIS_PERIOD": _NOT_NEGATIVE,
    "DATALOADER.NUM_WORKERS": (0, 512),
    "DATALOADER.REPEAT_THRESHOLD": _NOT_NEGATIVE,
    "INPUT.MIN_SIZE_TEST": (0, 2**31),
    "INPUT.M*_SIZE_*": (1, 2**31),
    "INPUT.FIXED_SIZE_ANTIALIAS": _SHARE,
    "INPUT.FIXED_*": _SIDE,
    "INPUT.CROP.SIZE": _POSITIVE,
    "INPUT.MIN_OBJECT_*": _NOT_NEGATIVE,
    "INPUT.MIN_BOX_SIDE": _NOT_NEGATIVE,
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.IMS_PER_BATCH": (1, 2**16),
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.NUM_DECAYS": (1, 1000),
    "SOLVER.BASE_LR*": _RATE,
    "SOLVER.WEIGHT_DECAY*": _RATE,
    "SOLVER.BIAS_LR_FACTOR": _RATE,
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _POSITIVE,
    "SOLVER.*": _NOT_NEGATIVE,
    "TEST.DETECTIONS_PER_IMAGE": (-1, inf),
    "TEST.AUG.M*_SIZE*": _SIDE,
    "TEST.PRECISE_BN.NUM_ITER": _COUNT,
    "TEST.EVAL_PERIOD": _NOT_NEGATIVE,
    "TEST.NUM_PICTURES": _NOT_NEGATIVE,
    "MODEL.PIXEL_MEAN": _PIXEL,
    "MODEL.PIXEL_STD": (1e-6, 1e6),
    "MODEL.BACKBONE.FREEZE_AT": (0, 5),
    "MODEL.EMA.DECAY": _SHARE,
    "MODEL.ANCHOR_GENERATOR.SIZES": (1e-3, 1e5),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (1e-3, 1e3),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0, 1 - 1e-6),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _NOT_NEGATIVE,
    "MODEL.RESNETS.*_GROUPS": _WIDTH,
    "MODEL.RESNETS.DEFORM_INTERVAL": (1, 100),
    "MODEL.RESNETS.WIDTH_PER_GROUP": _WIDTH,
    "MODEL.*.BBOX_REG_WEIGHTS": (1e-6, 1e6),
    "MODEL.*.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.*.POSITIVE_FRACTION": _SHARE,
    "MODEL.*.IOU_THRESHOLDS": _SHARE,
    "MODEL.*.LOW_QUALITY_FLOOR": _SHARE,
    "MODEL.*.IOUS": _SHARE,
    "MODEL.*.NMS_TH*": _SHARE,
    "MODEL.*_NMS_TOPK_*": _COUNT,
    "MODEL.*.TOPK_CANDIDATES_TEST": _COUNT,
    "MODEL.*.POOLER_RESOLUTION": (1, 64),
    "MODEL.*.POOLER_SAMPLING_RATIO": (0, 16),
    "MODEL.*.OUTPUT_SIDE_RESOLUTION": (1, 64),
    "MODEL.*.NUM_GRIDS": (1, 256),
    "MODEL.*.NUM_CLASSES": (1, 10**5),
    "MODEL.*.NUM_*CONV*": _LAYERS,
    "MODEL.*.NUM_FC": _LAYERS,
    "MODEL.*.*_CHANNELS": _WIDTH,
    "MODEL.*.*_DIM": _WIDTH,
    "MODEL.*.CONV_DIMS": (-1, 2**16),  # -1: those of the input
    "MODEL.*.NUM_KERNELS": _WIDTH,
    "MODEL.*.WIDTHS": _WIDTH,
    "MODEL.*.TRAIN_NUM_POINTS": (1, 2**14),
    "MODEL.*.OVERSAMPLE_RATIO": (1, 32),
    "MODEL.*.SUBDIVISION_STEPS": (0, 8),
    "MODEL.*.SUBDIVISION_NUM_POINTS": _WIDTH,
    "MODEL.*.SIZE_DIVISIBILITY": (0, 1024),
    "MODEL.*.*_BETA": _NOT_NEGATIVE,
    "MODEL.*_ALPHA": _SHARE,
    "MODEL.*_GAMMA": (0, 100),
    "MODEL.*_WEIGHT": _WEIGHT,
    "MODEL.*.LOSS_WEIGHT_*": _WEIGHT,
    "MODEL.*.NMS_SIGMA": (1e-3, 1e6),
    "MODEL.*.SIGMA": (0, 1e6),
}
# Full key -> allowed numbers of values.
_LENGTHS: dict[str, tuple[int, ...]] = {
    "INPUT.CROP.SIZE": (2,),
    "INPUT.FIXED_SIZE": (0, 2),
    "INPUT.FIXED_HEIGHTS_TRAIN": (0, 2),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (4,),
    "MODEL.RPN.BBOX_REG_WEIGHTS": (4,),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (4,),
}


def check_sizes(cfg: Any, defaults: Any) -> None:
    """Raise `ConfigError` for a number or a list that no training can work with.

    Args:
        cfg: the whole config, with values of the right kinds.
        defaults: the config that no file and no user changed.
    """
    untouched = dict(list_values(defaults))
    for key, value in list_values(cfg):
        if value == untouched.get(key):
            continue
        low, high = next((_LIMITS[p] for p in _LIMITS if fnmatchcase(key, p)), _ANY)
        items = [item for item in list_items(value) if isinstance(item, int | float)]
        if not all(low <= item <= high for item in items):
            range_ = "one or more numbers, each " if isinstance(value, list | tuple) else ""
            raise ConfigError(
                f"{key} is {value!r}; it must be {range_}{describe_limits(low, high)}"
            )
        if key in _LENGTHS and len(value) not in _LENGTHS[key]:
            counts = " or ".join(map(str, _LENGTHS[key]))
            raise ConfigError(f"{key} is {value!r}; it must have {counts} values")
    _check_related(cfg)


def _check_related(cfg: Any) -> None:
    """Keys whose values depend on each other."""
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        raise ConfigError(
            "INPUT.MIN_SIZE_TRAIN is (); it must be one or more numbers, such as (800,)"
        )
    if not cfg.TEST.AUG.MIN_SIZES:
        raise ConfigError(
            "TEST.AUG.MIN_SIZES is (); it must be one or more numbers, such as (640, 800, 960)"
        )
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.KEYPOINT_ON:
        raise ConfigError(
            "TEST.AUG.ENABLED: keypoints cannot be merged; set it or MODEL.KEYPOINT_ON to False"
        )
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(cfg.INPUT.MIN_SIZE_TRAIN) != 2:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {cfg.INPUT.MIN_SIZE_TRAIN}; with "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' it must be two numbers"
        )
    if cfg.INPUT.CROP.TYPE.startswith("relative") and max(cfg.INPUT.CROP.SIZE) > 1:
        raise ConfigError(
            f"INPUT.CROP.SIZE is {cfg.INPUT.CROP.SIZE}; with INPUT.CROP.TYPE "
            f"'{cfg.INPUT.CROP.TYPE}' it must be shares of the image, up to 1"
        )
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if not 0 < len(mean) == len(std):
        raise ConfigError(
            f"MODEL.PIXEL_MEAN is {list(mean)} and MODEL.PIXEL_STD {list(std)}; both must have one "
            "number per channel, those of PIXEL_STD above 0"
        )
    steps = list(cfg.SOLVER.STEPS)
    if not all(map(is_number, steps)) or steps != sorted(set(steps)):
        raise ConfigError(f"SOLVER.STEPS is {steps}; it must be iterations in ascending order")
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ConfigError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}; it must divide SOLVER.IMS_PER_BATCH, "
            f"which is {cfg.SOLVER.IMS_PER_BATCH}"
        )
    for row in cfg.TEST.EXPECTED_RESULTS:
        is_row = isinstance(row, list | tuple) and len(row) == 4
        if not is_row or not (is_number(row[2]) and is_number(row[3])):
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS holds {row!r}; it must be lists such as "
                "['segm', 'AP', 34.5, 0.5]: task, metric, value, tolerance"
            )
