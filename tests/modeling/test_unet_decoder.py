"""The U-Net decoder on ResNet and timm encoders."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from instancezoo import get_cfg
from instancezoo.errors import ConfigError, ZooError
from instancezoo.modeling.backbones import EncoderUNet, unet_decoder

LITE0 = "tf_efficientnet_lite0"


def _make_cfg(*overrides):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_unet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.UNET.DECODER_WIDTHS = [4, 6, 8, 10, 12]
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.mark.parametrize(
    "overrides,skips",
    [
        ([], [0, 0, 64, 128, 256]),  # ResNet's stem has stride 4 in Detectron2
        (["MODEL.RESNETS.OUT_FEATURES", ["stem", "res3"]], [0, 0, 64]),
        (["MODEL.UNET.ENCODER", "timm", "MODEL.TIMM.NAME", LITE0], [0, 16, 24, 40, 112]),
        (["MODEL.UNET.ENCODER", "timm", "MODEL.TIMM.NAME", "resnet18"], [0, 64, 64, 128, 256]),
        (["MODEL.UNET.ENCODER", "timm", "MODEL.TIMM.NAME", "convnext_atto"], [0, 0, 40, 80, 160]),
    ],
)
def test_it_uses_every_map_of_the_encoder(overrides, skips):
    unet = build_backbone(_make_cfg(*overrides))
    assert isinstance(unet, EncoderUNet) and unet.size_divisibility == 2 ** len(skips)
    assert unet.output_shape() == {"u1": ShapeSpec(channels=4, stride=1)}
    widths = [4, 6, 8, 10, 12][: len(skips)]
    joined = [merge.in_channels for merge in reversed(unet.merge)]
    assert joined == [width + skip for width, skip in zip(widths, skips, strict=True)]
    maps = unet(torch.rand(2, 3, 64, 96))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"u1": (2, 4, 64, 96)}
    maps["u1"].sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None] == []


class Pyramid(torch.nn.Module):
    """An encoder in little: averages of the image."""

    def forward(self, images):
        return {"b": F.avg_pool2d(images, 4), "a": F.avg_pool2d(images, 2)}

    def output_shape(self):
        return {"b": ShapeSpec(channels=1, stride=4), "a": ShapeSpec(channels=1, stride=2)}


def test_a_step_is_doubling_convolution_skip_convolution():
    unet = EncoderUNet(Pyramid(), widths=[1, 1], norm="")
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        for conv in [*unet.expand, *unet.merge]:
            conv.weight.zero_()
            conv.bias.zero_()
            conv.weight[:, :, 1, 1] = 1
    # The skip comes first: at stride 2 only it passes, at stride 1 there is none.
    unet.merge[0].weight.data[:, 1] = 0
    half = F.avg_pool2d(image, 2)
    expected = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(unet(image)["u1"], expected)


def test_timm_layers_are_frozen_up_to_a_stage():
    cfg = _make_cfg("MODEL.UNET.ENCODER", "timm", "MODEL.TIMM.NAME", "resnet18")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    frozen = [n for n, p in build_backbone(cfg).named_parameters() if not p.requires_grad]
    assert frozen and all(n.startswith("bottom_up.net.") for n in frozen)


@pytest.mark.parametrize(
    "overrides,named",
    [
        (["MODEL.UNET.ENCODER", "vgg"], r"MODEL\.UNET\.ENCODER.*resnet, timm"),
        (["MODEL.UNET.NORM", "BM"], r"MODEL\.UNET\.NORM"),
        (["MODEL.UNET.NORM", "GN"], r"MODEL\.UNET\.DECODER_WIDTHS.*multiple of 32"),
        (["MODEL.UNET.DECODER_WIDTHS", [8, 8]], r"DECODER_WIDTHS has 2 widths.*32.*5 doublings"),
        (["MODEL.UNET.DECODER_WIDTHS", [8, 8, 0, 8, 8]], r"DECODER_WIDTHS.*whole number"),
        (["MODEL.UNET.DECODER_WIDTHS", [8, 8, 8, 8, 8.5]], r"DECODER_WIDTHS.*whole number"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res2", "res4"]], r"RESNETS\.OUT_FEATURES.*\[4, 16\]"),
    ],
)
def test_bad_values_are_named(overrides, named):
    with pytest.raises(ConfigError, match=named):
        build_backbone(_make_cfg(*overrides))


def test_a_stride_that_is_no_power_of_two_is_named(monkeypatch):
    """Doubling would not lead back to the image's size."""
    encoder = Pyramid()
    encoder.output_shape = lambda: {"b": ShapeSpec(channels=1, stride=14)}
    monkeypatch.setattr(unet_decoder, "build_resnet_backbone", lambda *_: encoder)
    with pytest.raises(ConfigError, match=r"strides \[14\].*powers of two"):
        build_backbone(_make_cfg())


def test_an_unknown_timm_network_is_named():
    overrides = ["MODEL.UNET.ENCODER", "timm", "MODEL.TIMM.NAME", "resnet19x"]
    with pytest.raises(ZooError, match=r"MODEL\.TIMM\.NAME.*resnet19x"):
        build_backbone(_make_cfg(*overrides))
