"""PointRend; importing it registers the method."""

from instancezoo.method import Method
from instancezoo.solov2 import METHOD as SOLOV2

from .config import add_pointrend_config, translate_official_names
from .convert import LAYOUTS
from .head import POINT_HEAD_REGISTRY, StandardPointHead
from .htc import HTCPointRendROIHeads
from .mask_head import PointRendMaskHeadBatched
from .solov2 import SOLOv2PointRend

METHOD = Method(
    name="PointRend",
    registry_names=("PointRendMaskHeadBatched", "SOLOv2PointRend", "HTCPointRendROIHeads"),
    add_config=add_pointrend_config,
    translate=translate_official_names,
    layouts=LAYOUTS,
    doctor_checks=SOLOV2.doctor_checks,
    detection_limit=SOLOV2.detection_limit,
    score_keys=SOLOV2.score_keys,
    candidate_limits=SOLOV2.candidate_limits,
)

__all__ = [
    "METHOD",
    "POINT_HEAD_REGISTRY",
    "HTCPointRendROIHeads",
    "PointRendMaskHeadBatched",
    "SOLOv2PointRend",
    "StandardPointHead",
]
