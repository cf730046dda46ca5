"""SSAP: single-shot instance segmentation with an affinity pyramid; importing it registers it."""

from instancezoo.method import Method

from .config import add_ssap_config, keep_all_cells
from .head import SSAPHead
from .ssap import SSAP

METHOD = Method(
    name="SSAP",
    registry_names=("SSAP",),
    add_config=add_ssap_config,
    detection_limit="MODEL.SSAP.MAX_INSTANCES",
    score_keys=("MODEL.SSAP.SCORE_THRESH",),
    prepare_untrained=keep_all_cells,
    stages={"group": "partition graphs", "make_masks": "make masks"},
)

__all__ = ["METHOD", "SSAP", "SSAPHead"]
