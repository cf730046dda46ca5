"""Mask R-CNN and Cascade Mask R-CNN: Detectron2's own heads, with masks that stay compact."""

from __future__ import annotations

from typing import Any

from torch import nn

from instancezoo.method import Method

from .convert import LAYOUTS


def set_score_thresh(model: Any, value: float) -> None:
    """Change the score threshold of the box predictors, of which a cascade has several."""
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        predictor.test_score_thresh = value


METHOD = Method(
    name="Mask R-CNN",
    registry_names=("GeneralizedRCNN", "GeneralizedRCNNCompactMasks"),
    layouts=LAYOUTS,
    candidate_limits=("MODEL.RPN.POST_NMS_TOPK_TEST", "MODEL.RPN.PRE_NMS_TOPK_TEST"),
    score_keys=("MODEL.ROI_HEADS.SCORE_THRESH_TEST",),
    set_score_thresh=set_score_thresh,
    constant_parts=("backbone", "proposal_generator"),
)

__all__ = ["METHOD"]
