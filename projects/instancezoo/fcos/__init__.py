"""FCOS; importing it registers the detector and its proposal generator."""

from typing import Any

from detectron2.config import CfgNode

from instancezoo.layers.nms import nms_per_class
from instancezoo.method import Method, set_score_thresh

from .config import add_fcos_config, translate_fcos_keys
from .convert import LAYOUTS
from .detector import FCOS, OneStageDetector
from .fcos import FCOSProposals


def _set_score_thresh(model: Any, value: float) -> None:
    set_score_thresh(model.proposal_generator, value)


def _find_candidate_score(cfg: CfgNode, score: float) -> float:
    # The score is sqrt(probability * quality), and the quality is at most 1.
    return score**2


METHOD = Method(
    name="FCOS",
    registry_names=("FCOS", "OneStageDetector"),
    add_config=add_fcos_config,
    translate=translate_fcos_keys,
    layouts=LAYOUTS,
    detection_limit="MODEL.FCOS.POST_NMS_TOPK_TEST",
    candidate_limits=("MODEL.FCOS.PRE_NMS_TOPK_TEST",),
    score_keys=("MODEL.FCOS.INFERENCE_TH_TEST",),
    candidate_score=_find_candidate_score,
    set_score_thresh=_set_score_thresh,
    constant_parts=("backbone", "proposal_generator.fcos_head"),
    stages={nms_per_class: "box NMS"},
)

__all__ = ["FCOS", "METHOD", "FCOSProposals", "OneStageDetector"]
