"""PolarMask; importing it registers the method."""

from detectron2.config import CfgNode

from instancezoo.layers.nms import nms_per_class
from instancezoo.method import Method

from .config import add_polarmask_config, translate_polarmask_keys
from .convert import LAYOUTS
from .mapper import PolarMaskMapper
from .polarmask import PolarMask


def _find_candidate_score(cfg: CfgNode, score: float) -> float:
    # The score is probability * (centerness + offset), and the centerness is at most 1.
    return score / (1 + max(cfg.MODEL.POLARMASK.CENTERNESS_OFFSET, 0.0))


METHOD = Method(
    name="PolarMask",
    registry_names=("PolarMask",),
    add_config=add_polarmask_config,
    translate=translate_polarmask_keys,
    layouts=LAYOUTS,
    candidate_limits=("MODEL.POLARMASK.TOPK_CANDIDATES_TEST",),
    score_keys=("MODEL.POLARMASK.SCORE_THRESH_TEST",),
    candidate_score=_find_candidate_score,
    stages={nms_per_class: "box NMS"},
)

__all__ = ["METHOD", "PolarMask", "PolarMaskMapper"]
