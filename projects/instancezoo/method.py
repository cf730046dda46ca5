"""The record by which a method declares itself; `instancezoo/methods.py` lists all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode

from instancezoo.checkpoint.rename import Layout
from instancezoo.doctor import Check

ConfigChange = Callable[[CfgNode], None]


def set_score_thresh(model: Any, value: float) -> None:
    """Change the score threshold of a built model with `decode_settings`."""
    model.decode_settings = dataclasses.replace(model.decode_settings, score_thresh=value)


def _change_nothing(cfg: CfgNode) -> None:
    pass


def _keep_score(cfg: CfgNode, score: float) -> float:
    return score


@dataclass(frozen=True)
class Method:
    """One method, or a family of methods in one folder.

    Attributes:
        name: name in the README's table.
        registry_names: the method's names in Detectron2's registries (meta-architecture, proposal
            generator, ROI heads, mask head, backbone); a config with one of them uses the method.
        add_config: adds the method's keys to Detectron2's defaults.
        translate: replaces names of official config files by ours, after each merge.
        layouts: published checkpoints that fill the method's models.
        doctor_checks: name shown before the findings -> check, for configs that use the method.
        detection_limit: key of the largest number of detections per image.
        candidate_limits: keys of the numbers of candidates, per image or level, that detections are
            chosen from at test time.
        score_keys: keys of the score thresholds below which detections are dropped.
        candidate_score: config, wanted score of detections -> largest value of `score_keys` that
            drops none of them. It differs from the score if the thresholds apply to another
            quantity.
        prepare_untrained: changes a config, beyond the thresholds of `score_keys`, so that a model
            with random weights finds something.
        set_score_thresh: changes the score threshold of a built model.
        constant_parts: sub-modules whose outputs do not depend on the score threshold.
        stages: function, or path of a method from the model -> name of its stage in the benchmark,
            in addition to modules.
    """

    name: str
    registry_names: tuple[str, ...]
    add_config: ConfigChange = _change_nothing
    translate: ConfigChange = _change_nothing
    layouts: tuple[Layout, ...] = ()
    doctor_checks: Mapping[str, Check] = field(default_factory=dict)
    detection_limit: str = "TEST.DETECTIONS_PER_IMAGE"
    candidate_limits: tuple[str, ...] = ()
    score_keys: tuple[str, ...] = ()
    candidate_score: Callable[[CfgNode, float], float] = _keep_score
    prepare_untrained: ConfigChange = _change_nothing
    set_score_thresh: Callable[[Any, float], None] = set_score_thresh
    constant_parts: tuple[str, ...] = ("backbone", "head")
    stages: Mapping[str | Callable[..., Any], str] = field(default_factory=dict)

    def is_used(self, cfg: CfgNode) -> bool:
        """Return True if a config names a part of this method."""
        model = cfg.MODEL
        sections = (model.PROPOSAL_GENERATOR, model.ROI_HEADS, model.ROI_MASK_HEAD, model.BACKBONE)
        names = {model.META_ARCHITECTURE, *(section.NAME for section in sections)}
        return not names.isdisjoint(self.registry_names)


def find_method(methods: Iterable[Method], cfg: CfgNode) -> Method | None:
    """Find the method that a config's meta-architecture belongs to; None if it is none of them."""
    name = cfg.MODEL.META_ARCHITECTURE
    return next((method for method in methods if name in method.registry_names), None)
