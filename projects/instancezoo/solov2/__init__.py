"""SOLOv2; importing it registers the method."""

from functools import partial

from instancezoo.layers.dynamic_conv import dynamic_conv
from instancezoo.layers.nms import matrix_nms
from instancezoo.method import Method
from instancezoo.solo.config import lower_mask_threshold
from instancezoo.solo.doctor import check_grids

from .config import add_solov2_config
from .convert import LAYOUTS
from .solov2 import SOLOv2

METHOD = Method(
    name="SOLOv2",
    registry_names=("SOLOv2",),
    add_config=add_solov2_config,
    layouts=LAYOUTS,
    doctor_checks={"grids": partial(check_grids, key="MODEL.SOLOV2")},
    detection_limit="MODEL.SOLOV2.MAX_PER_IMG",
    candidate_limits=("MODEL.SOLOV2.NMS_PRE",),
    score_keys=("MODEL.SOLOV2.SCORE_THR", "MODEL.SOLOV2.UPDATE_THR"),
    prepare_untrained=partial(lower_mask_threshold, name="SOLOV2"),
    stages={dynamic_conv: "dynamic convolution", matrix_nms: "Matrix NMS"},
)

__all__ = ["METHOD", "SOLOv2"]
