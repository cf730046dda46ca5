"""HTC, and Cascade Mask R-CNN with its switches; importing it registers the method."""

from instancezoo.mask_rcnn import METHOD as MASK_RCNN
from instancezoo.method import Method

from .config import add_htc_config
from .convert import LAYOUTS
from .head import FusedSemanticHead, HTCMaskHead
from .htc import HybridTaskCascadeRCNN
from .roi_heads import HTCROIHeads

METHOD = Method(
    name="HTC",
    registry_names=("HybridTaskCascadeRCNN", "HTCROIHeads", "HTCMaskHead"),
    add_config=add_htc_config,
    layouts=LAYOUTS,
    candidate_limits=MASK_RCNN.candidate_limits,
    score_keys=MASK_RCNN.score_keys,
    set_score_thresh=MASK_RCNN.set_score_thresh,
    constant_parts=MASK_RCNN.constant_parts,
)

__all__ = [
    "METHOD",
    "FusedSemanticHead",
    "HTCMaskHead",
    "HTCROIHeads",
    "HybridTaskCascadeRCNN",
]
