"""PolarMask; importing it registers the method."""

from instancezoo.layers.nms import nms_per_class
from instancezoo.method import Method

from .config import add_polarmask_config, translate_polarmask_keys
from .convert import LAYOUTS
from .mapper import PolarMaskMapper
from .polarmask import PolarMask

METHOD = Method(
    name="PolarMask",
    registry_names=("PolarMask",),
    add_config=add_polarmask_config,
    translate=translate_polarmask_keys,
    layouts=LAYOUTS,
    candidate_limits=("MODEL.POLARMASK.TOPK_CANDIDATES_TEST",),
    score_keys=("MODEL.POLARMASK.SCORE_THRESH_TEST",),
    stages={nms_per_class: "box NMS"},
)

__all__ = ["METHOD", "PolarMask", "PolarMaskMapper"]
