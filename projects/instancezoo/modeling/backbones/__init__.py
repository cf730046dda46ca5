"""Backbones that Detectron2 lacks; importing it registers them."""

from .darknet import Darknet, build_darknet_fpn_backbone
from .deform_resnet import build_deform_resnet_fpn_backbone, build_resnet_fpn_top_levels_backbone
from .timm_fpn import TimmBackbone, build_timm_fpn_backbone
from .unet import UNetBackbone
from .unet_decoder import EncoderUNet, build_unet_backbone

__all__ = [
    "Darknet",
    "EncoderUNet",
    "TimmBackbone",
    "UNetBackbone",
    "build_darknet_fpn_backbone",
    "build_deform_resnet_fpn_backbone",
    "build_resnet_fpn_top_levels_backbone",
    "build_timm_fpn_backbone",
    "build_unet_backbone",
]
