"""YOLACT and YOLACT++; importing it registers the method."""

from instancezoo.method import Method

from .config import add_yolact_config
from .convert import LAYOUTS
from .decode import find_candidates, rescore_masks, suppress_duplicates
from .yolact import YOLACT

METHOD = Method(
    name="YOLACT",
    registry_names=("YOLACT",),
    add_config=add_yolact_config,
    layouts=LAYOUTS,
    candidate_limits=("MODEL.YOLACT.NMS_TOP_K",),
    score_keys=("MODEL.YOLACT.SCORE_THRESH_TEST", "MODEL.YOLACT.FINAL_SCORE_THRESH"),
    stages={
        find_candidates: "candidates",
        suppress_duplicates: "box NMS",
        rescore_masks: "mask IoU",
    },
)

__all__ = ["METHOD", "YOLACT"]
