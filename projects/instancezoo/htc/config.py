"""Config keys of HTC."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.data.windows import UNLABELLED
from instancezoo.errors import ConfigError, check_choice, check_numbers, is_number

_CANVAS = "ExpandCanvas"
META_ARCH, MASK_HEAD = "HybridTaskCascadeRCNN", "HTCMaskHead"
_SECTION = "MODEL.HTC"
_LIMITS = {
    "SEMANTIC_FUSION_LEVEL": (0, inf),
    "SEMANTIC_NUM_CLASSES": (0, 10**5),
    "SEMANTIC_NUM_CONVS": (0, 100),
    "SEMANTIC_CONV_DIM": (1, inf),
    "SEMANTIC_LOSS_WEIGHT": (0, inf),
    "SEMANTIC_IGNORE_VALUE": (-(2**31), 2**31),
}
SEMANTIC_TARGETS = ("auto", "stuff", "things")


def add_htc_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.HTC`; stages have `cfg.MODEL.ROI_BOX_CASCADE_HEAD`."""
    node = cfg.MODEL.setdefault("HTC", CfgNode())
    # Factor of all losses of each stage.
    node.STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)
    # A stage's mask head is trained on the boxes that the stage has refined; if False, on those
    # that it got (section 3.1).
    node.INTERLEAVED = True
    # A stage's mask head gets the features of the one before (section 3.1).
    node.MASK_INFO_FLOW = True
    # Masks in inference: "mean" of the stages' probabilities, or the "last" stage alone, which
    # takes less time.
    node.MASK_MERGE = "mean"
    # Mean over the stages of class "logits", followed by softmax, or of "probs".
    node.SCORE_MERGE = "logits"
    # Ground-truth boxes join the proposals of every stage; if False, those of the first.
    node.ADD_GT_EVERY_STAGE = True
    # Sample ROI_HEADS.BATCH_SIZE_PER_IMAGE boxes anew in every stage; if False, in the first one.
    node.RESAMPLE_EVERY_STAGE = True

    # Semantic segmentation, whose features join those of boxes and masks (section 3.2).
    node.SEMANTIC_ON = True
    # Which features get them: "bbox", "mask".
    node.SEMANTIC_FUSION = ("bbox", "mask")
    node.SEMANTIC_IN_FEATURES = ("p2", "p3", "p4", "p5", "p6")
    # Index in SEMANTIC_IN_FEATURES of the map to whose size the others are resized.
    node.SEMANTIC_FUSION_LEVEL = 1
    # Classes of the semantic maps, the largest label plus one; 0: the number of thing classes plus
    # one for the background, as painted maps need.
    node.SEMANTIC_NUM_CLASSES = 183
    # 3x3 convolutions, and their width.
    node.SEMANTIC_NUM_CONVS = 4
    node.SEMANTIC_CONV_DIM = 256
    node.SEMANTIC_LOSS_WEIGHT = 0.2
    # Label of pixels that are not trained on.
    node.SEMANTIC_IGNORE_VALUE = 255
    # Training targets: "stuff" maps of the data set, maps painted from its "things", or "auto": the
    # data set's maps if it has them, else painted ones.
    node.SEMANTIC_TARGETS = "auto"


def check_htc_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Refuse values that the ROI heads cannot work with.

    Args:
        cfg: the whole config.
        shapes: of the backbone's maps, by name.

    Raises:
        ConfigError: with the key and what it may be.
    """
    node = cfg.MODEL.HTC
    check_numbers(_SECTION, node, _LIMITS)
    check_choice(f"{_SECTION}.MASK_MERGE", node.MASK_MERGE, ("mean", "last"))
    check_choice(f"{_SECTION}.SCORE_MERGE", node.SCORE_MERGE, ("logits", "probs"))
    check_choice(f"{_SECTION}.SEMANTIC_TARGETS", node.SEMANTIC_TARGETS, SEMANTIC_TARGETS)
    for part in node.SEMANTIC_FUSION:
        check_choice(f"{_SECTION}.SEMANTIC_FUSION", part, ("bbox", "mask"))
    _check_stages(cfg)
    _check_names(cfg)
    if node.SEMANTIC_ON:
        _check_semantics(cfg, shapes)


def count_semantic_classes(cfg: CfgNode) -> int:
    """Number of semantic logits."""
    return cfg.MODEL.HTC.SEMANTIC_NUM_CLASSES or cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1


def _check_stages(cfg: CfgNode) -> None:
    stages, weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.HTC.STAGE_LOSS_WEIGHTS
    counts = {len(stages.IOUS), len(stages.BBOX_REG_WEIGHTS), len(weights)}
    if len(counts) != 1 or not all(is_number(value) and value >= 0 for value in weights):
        raise ConfigError(
            f"{_SECTION}.STAGE_LOSS_WEIGHTS is {tuple(weights)}, MODEL.ROI_BOX_CASCADE_HEAD.IOUS "
            f"has {len(stages.IOUS)} values, BBOX_REG_WEIGHTS {len(stages.BBOX_REG_WEIGHTS)}: each "
            "of the three needs one value per stage, weights 0 or more"
        )
    if list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS) != list(stages.IOUS[:1]):
        raise ConfigError(
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS is {list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)}; it "
            f"must be the first of MODEL.ROI_BOX_CASCADE_HEAD.IOUS, {list(stages.IOUS[:1])}"
        )
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ConfigError(
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is False, but the boxes of a cascade do not "
            "depend on a class: set it to True"
        )


def _check_names(cfg: CfgNode) -> None:
    model = cfg.MODEL
    if model.META_ARCHITECTURE != META_ARCH:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is '{model.META_ARCHITECTURE}'; with MODEL.ROI_HEADS.NAME "
            f"'{model.ROI_HEADS.NAME}' it must be '{META_ARCH}'"
        )
    if model.MASK_ON and model.ROI_MASK_HEAD.NAME != MASK_HEAD:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.NAME is '{model.ROI_MASK_HEAD.NAME}'; with MODEL.ROI_HEADS.NAME "
            f"'{model.ROI_HEADS.NAME}' it must be '{MASK_HEAD}'"
        )
    if (model.MASK_ON or model.HTC.SEMANTIC_ON) and not model.ROI_MASK_HEAD.POOLER_TYPE:
        user = MASK_HEAD if model.MASK_ON else "the semantic branch"
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is '', but {user} pools features by it: set it to "
            "'ROIAlignV2'"
        )
    for key in ("USE_SIGMOID_CE", "TRAIN_ON_PRED_BOXES"):
        if model.ROI_BOX_HEAD[key]:
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.{key} is True, which '{model.ROI_HEADS.NAME}' does not follow "
                "in all its stages: set it to False"
            )
    if model.KEYPOINT_ON:
        raise ConfigError(
            f"MODEL.KEYPOINT_ON is True, but '{model.ROI_HEADS.NAME}' finds no keypoints"
        )


def _check_semantics(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    node, num_things = cfg.MODEL.HTC, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name in node.SEMANTIC_IN_FEATURES:
        check_choice(f"{_SECTION}.SEMANTIC_IN_FEATURES", name, shapes)
    if len(node.SEMANTIC_IN_FEATURES) <= node.SEMANTIC_FUSION_LEVEL:
        raise ConfigError(
            f"{_SECTION}.SEMANTIC_FUSION_LEVEL is {node.SEMANTIC_FUSION_LEVEL}, but "
            f"SEMANTIC_IN_FEATURES has {len(node.SEMANTIC_IN_FEATURES)} maps, counted from 0"
        )
    parts = ["bbox", *(["mask"] if cfg.MODEL.MASK_ON else [])]
    if not set(parts) & set(node.SEMANTIC_FUSION):
        raise ConfigError(
            f"{_SECTION}.SEMANTIC_FUSION is {tuple(node.SEMANTIC_FUSION)}: name one of "
            f"{', '.join(parts)}, or set {_SECTION}.SEMANTIC_ON to False"
        )
    num_classes = count_semantic_classes(cfg)
    if 0 <= node.SEMANTIC_IGNORE_VALUE < num_classes:
        raise ConfigError(
            f"{_SECTION}.SEMANTIC_IGNORE_VALUE is {node.SEMANTIC_IGNORE_VALUE}, which is one of "
            f"the {num_classes} semantic classes: set it to {num_classes} or more"
        )
    if node.SEMANTIC_IGNORE_VALUE != UNLABELLED and any(
        _CANVAS in entry for entry in cfg.INPUT.AUGMENTATIONS
    ):
        raise ConfigError(
            f"{_SECTION}.SEMANTIC_IGNORE_VALUE is {node.SEMANTIC_IGNORE_VALUE}, but {_CANVAS} of "
            f"INPUT.AUGMENTATIONS marks pixels outside the image by {UNLABELLED}: set it to that"
        )
    if node.SEMANTIC_TARGETS == "things" and num_classes <= num_things:
        raise ConfigError(
            f"{_SECTION}.SEMANTIC_NUM_CLASSES is {num_classes}, but maps painted from "
            f"{num_things} thing classes need {num_things + 1}: set it to 0 or more than that"
        )
