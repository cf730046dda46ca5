"""SOLO and Decoupled SOLO; importing it registers both."""

from functools import partial

from instancezoo.layers.nms import matrix_nms
from instancezoo.method import Method

from .config import add_solo_config, lower_mask_threshold
from .convert import LAYOUTS
from .doctor import check_grids
from .masks import predict_masks
from .solo import SOLO, DecoupledSOLO

METHOD = Method(
    name="SOLO",
    registry_names=("SOLO", "DecoupledSOLO"),
    add_config=add_solo_config,
    layouts=LAYOUTS,
    doctor_checks={"grids": partial(check_grids, key="MODEL.SOLO")},
    detection_limit="MODEL.SOLO.MAX_PER_IMG",
    candidate_limits=("MODEL.SOLO.NMS_PRE",),
    score_keys=("MODEL.SOLO.SCORE_THR", "MODEL.SOLO.UPDATE_THR"),
    prepare_untrained=partial(lower_mask_threshold, name="SOLO"),
    stages={predict_masks: "mask channels", matrix_nms: "Matrix NMS"},
)

__all__ = ["METHOD", "SOLO", "DecoupledSOLO"]
