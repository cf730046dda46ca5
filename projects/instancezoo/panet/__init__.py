"""PANet; importing it registers the method."""

from instancezoo.method import Method

from .backbone import PANetFPN, build_resnet_panet_fpn_backbone, build_timm_panet_fpn_backbone
from .config import add_panet_config
from .convert import LAYOUTS
from .head import PANetConvFCHead, PANetFusionMaskHead
from .proposals import PANetRPN
from .roi_heads import PANetROIHeads

METHOD = Method(
    name="PANet",
    registry_names=(
        "PANetROIHeads",
        "PANetFusionMaskHead",
        "PANetRPN",
        "build_resnet_panet_fpn_backbone",
        "build_timm_panet_fpn_backbone",
    ),
    add_config=add_panet_config,
    layouts=LAYOUTS,
)

__all__ = [
    "METHOD",
    "PANetConvFCHead",
    "PANetFPN",
    "PANetFusionMaskHead",
    "PANetROIHeads",
    "PANetRPN",
    "build_resnet_panet_fpn_backbone",
    "build_timm_panet_fpn_backbone",
]
