"""Semi-convolutional embeddings; importing it registers the method."""

from instancezoo.method import Method

from .config import add_semiconv_config, keep_all_pixels
from .doctor import check_smallest_segment
from .head import SemiConvHead, SemiConvPixelHead
from .roi_heads import SemiConvMaskHead, SemiConvROIHeads
from .segmentor import SemiConvSegmentor

METHOD = Method(
    name="Semi-convolutional",
    registry_names=("SemiConvSegmentor", "SemiConvROIHeads", "SemiConvMaskHead"),
    add_config=add_semiconv_config,
    doctor_checks={"segments": check_smallest_segment},
    detection_limit="MODEL.SEMICONV.MAX_INSTANCES",
    score_keys=("MODEL.SEMICONV.SCORE_THRESH",),
    prepare_untrained=keep_all_pixels,
    stages={"group": "group pixels", "make_masks": "make masks"},
)

__all__ = [
    "METHOD",
    "SemiConvHead",
    "SemiConvMaskHead",
    "SemiConvPixelHead",
    "SemiConvROIHeads",
    "SemiConvSegmentor",
]
