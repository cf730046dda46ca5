"""Deep watershed transform; importing it registers the method."""

from instancezoo.method import Method

from .config import add_dwt_config, keep_all_pixels
from .convert import LAYOUTS
from .segmentor import DeepWatershed
from .semantics import ImageBackbone

METHOD = Method(
    name="Deep watershed",
    registry_names=("DeepWatershed", "ImageBackbone"),
    add_config=add_dwt_config,
    layouts=LAYOUTS,
    detection_limit="MODEL.DWT.MAX_INSTANCES",
    score_keys=("MODEL.DWT.SCORE_THRESH",),
    prepare_untrained=keep_all_pixels,
    stages={"group": "cut", "make_masks": "make masks"},
)

__all__ = ["METHOD", "DeepWatershed", "ImageBackbone"]
