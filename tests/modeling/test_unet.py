"""The U-Net backbone."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from instancezoo import get_cfg
from instancezoo.errors import ConfigError
from instancezoo.modeling.backbones import UNetBackbone


def test_maps_have_the_stated_channels_and_strides():
    unet = UNetBackbone(in_channels=2, widths=[8, 16, 32], out_features=["u1", "u2", "u3"])
    assert unet.size_divisibility == 4
    maps = unet(torch.rand(2, 2, 24, 16))
    for name, shape in unet.output_shape().items():
        side = torch.tensor([24, 16]) // shape.stride
        assert maps[name].shape == (2, shape.channels, *side.tolist())


def test_a_pixel_of_the_finest_map_sees_the_bottom():
    unet = UNetBackbone(in_channels=1, widths=[4, 4, 4, 4], norm="").eval()
    image = torch.rand(1, 1, 64, 64, requires_grad=True)
    unet(image)["u1"][0, :, 32, 32].sum().backward()
    rows = image.grad[0, 0].any(dim=1).nonzero()
    assert rows.min() <= 8 and rows.max() >= 56  # two 3x3 convolutions at stride 8 and more above


@pytest.mark.parametrize("names", [["u1"], ["u2"], ["u3"], ["u3", "u2"], ["u1", "u3"]])
def test_every_weight_learns_whatever_maps_are_used(names):
    unet = UNetBackbone(in_channels=1, widths=[4, 6, 8], out_features=names)
    maps = unet(torch.rand(1, 1, 16, 8))
    assert list(maps) == names
    for name, shape in unet.output_shape().items():
        assert maps[name].shape == (1, shape.channels, 16 // shape.stride, 8 // shape.stride)
    sum(found.sum() for found in maps.values()).backward()
    assert all(weight.grad is not None for weight in unet.parameters())


def test_it_is_built_from_the_config():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "UNetBackbone", "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        unet = build_backbone(cfg)
    assert unet.output_shape() == {"u1": ShapeSpec(channels=64, stride=1)}
    assert [up.in_channels for up in unet.up] == [128, 256, 512, 1024]


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("WIDTHS", [8], "2 or more widths"),
        ("WIDTHS", [8, 0, 16], r"WIDTHS.*1 or more"),
        ("WIDTHS", [8, 16.5], r"WIDTHS.*whole number"),
        ("OUT_FEATURES", ["u9"], "u1, u2, u3"),
        ("OUT_FEATURES", [], "one map or more"),
        ("NORM", "BM", r"MODEL\.UNET\.NORM"),
        ("NORM", "GN", r"MODEL\.UNET\.WIDTHS.*multiple of 32"),
    ],
)
def test_bad_values_are_named(key, value, named):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "UNetBackbone"
    cfg.MODEL.UNET.WIDTHS = [8, 16, 24]
    cfg.MODEL.UNET[key] = value
    with pytest.raises(ConfigError, match=named):
        build_backbone(cfg)
