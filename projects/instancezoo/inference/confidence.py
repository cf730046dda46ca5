"""The score thresholds of a config's method, and their change to a wanted confidence."""

from __future__ import annotations

import sys
from functools import reduce
from importlib import import_module
from typing import Any

from instancezoo.method import Method, find_method

# Keys of Detectron2's own architectures.
_OTHER_KEYS = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.RETINANET.SCORE_THRESH_TEST")
_OTHER_LIMIT = "TEST.DETECTIONS_PER_IMAGE"
# Models keep scores above their threshold: a score that equals the confidence, and one that fp32
# rounds below it, must be among them.
_MARGIN = 1e-6


def list_score_keys(cfg: Any) -> tuple[str, ...]:
    """List the keys of the thresholds below which a config's model drops detections."""
    method = _find_method(cfg)
    return _OTHER_KEYS if method is None else method.score_keys


def apply_confidence(cfg: Any, confidence: float, *, may_raise: bool = True) -> None:
    """Set the thresholds, in place, so that no detection with a wanted score is lost.

    A detection has a score above 0, so 0 keeps all that the method's limits of numbers leave. A
    higher confidence saves the time of detections that would be dropped.

    Args:
        cfg: a full config.
        confidence: smallest wanted score, in [0, 1]. Models may return lower ones, too.
        may_raise: if False, thresholds that are lower already stay.
    """
    method = _find_method(cfg)
    lowest = confidence if method is None else method.candidate_score(cfg, confidence)
    for key in list_score_keys(cfg):
        value = lowest * (1 - _MARGIN)
        cfg.merge_from_list([key, value if may_raise else min(value, _read_key(cfg, key))])


def find_lowest_score(cfg: Any) -> float:
    """Find the threshold of a config's scores; 0 where its keys apply to another quantity."""
    method = _find_method(cfg)
    if method is not None and method.candidate_score(cfg, 1.0) != 1.0:
        return 0.0
    return min(_read_key(cfg, key) for key in list_score_keys(cfg))


def find_detection_limit(cfg: Any) -> int:
    """Find the largest number of detections per image of a config's model."""
    method = _find_method(cfg)
    limit = _read_key(cfg, _OTHER_LIMIT if method is None else method.detection_limit)
    return limit if limit >= 0 else sys.maxsize  # as in Detectron2, a negative one is none


def _read_key(cfg: Any, key: str) -> Any:
    return reduce(getattr, key.split("."), cfg)


def _find_method(cfg: Any) -> Method | None:
    # An arrow up, followed at the first use, as by the layouts of checkpoints.
    return find_method(import_module("instancezoo.methods").METHODS, cfg)
