"""The score thresholds of a config's method, and their change to a wanted confidence."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from instancezoo.method import Method, find_method

# Keys of Detectron2's own architectures.
_OTHER_KEYS = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.RETINANET.SCORE_THRESH_TEST")
# Models keep scores above their threshold: a score that equals the confidence, and one that fp32
# rounds below it, must be among them.
_MARGIN = 1e-6


def list_score_keys(cfg: Any) -> tuple[str, ...]:
    """List the keys of the thresholds below which a config's model drops detections."""
    method = _find_method(cfg)
    return _OTHER_KEYS if method is None else method.score_keys


def apply_confidence(cfg: Any, confidence: float) -> None:
    """Set the thresholds, in place, so that no detection with a wanted score is lost.

    A detection has a score above 0, so 0 keeps all that the method's limits of numbers leave. A
    higher confidence saves the time of detections that would be dropped.

    Args:
        cfg: a full config.
        confidence: smallest wanted score, in [0, 1]. Models may return lower ones, too.
    """
    method = _find_method(cfg)
    lowest = confidence if method is None else method.candidate_score(cfg, confidence)
    for key in list_score_keys(cfg):
        cfg.merge_from_list([key, lowest * (1 - _MARGIN)])


def _find_method(cfg: Any) -> Method | None:
    # An arrow up, followed at the first use, as by the layouts of checkpoints.
    return find_method(import_module("instancezoo.methods").METHODS, cfg)
