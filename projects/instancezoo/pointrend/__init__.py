"""PointRend; importing it registers the method."""

from . import convert  # noqa: F401  (registers the layouts of published checkpoints)
from .config import add_pointrend_config, translate_official_names
from .head import POINT_HEAD_REGISTRY, StandardPointHead
from .mask_head import PointRendMaskHeadBatched
from .solov2 import SOLOv2PointRend

__all__ = [
    "POINT_HEAD_REGISTRY",
    "PointRendMaskHeadBatched",
    "SOLOv2PointRend",
    "StandardPointHead",
    "add_pointrend_config",
    "translate_official_names",
]
