"""Levels above P5: what they are made of, how many there are, and deformable stages below."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from instancezoo import model_zoo
from instancezoo.errors import ConfigError
from instancezoo.layers.deform_conv import DeformConv
from instancezoo.modeling.fpn import build_top_block


def _build(*overrides):
    cfg = model_zoo.get_config("fcos/fcos_R_50_FPN_1x", ["MODEL.FPN.OUT_CHANNELS", 16, *overrides])
    torch.manual_seed(0)
    return build_backbone(cfg).eval()


def test_levels_and_strides():
    backbone = _build()
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {
        "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128,
    }  # fmt: skip
    assert backbone.size_divisibility == 32
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 160))
    sizes = [tuple(m.shape[2:]) for m in maps.values()]
    assert sizes == [(8, 20), (4, 10), (2, 5), (1, 3), (1, 2)]  # rounded up above p5


def test_p6_comes_from_p5_and_p7_from_what_is_positive_of_p6():
    backbone = _build()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
        p6 = backbone.top_block.p6(maps["p5"])
        p7 = backbone.top_block.p7(F.relu(p6))
    assert torch.equal(maps["p6"], p6) and torch.equal(maps["p7"], p7)
    assert (p6 < 0).any()


@pytest.mark.parametrize("levels", [0, 1])
def test_fewer_levels(levels):
    backbone = _build("MODEL.FPN.TOP_LEVELS", levels)
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6"][: 3 + levels]
    names = {name for name, _ in backbone.named_parameters() if "top_block" in name}
    assert names == ({"top_block.p6.weight", "top_block.p6.bias"} if levels else set())
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert maps.keys() == backbone.output_shape().keys()


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.TOP_LEVELS.*\b3\b"):
        _build("MODEL.FPN.TOP_LEVELS", 3)
    with pytest.raises(ValueError, match="3"):
        build_top_block(3, 16)


def test_stages_may_be_deformable():
    backbone = _build("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True])
    names = [name for name, module in backbone.named_modules() if isinstance(module, DeformConv)]
    assert names == [f"bottom_up.res5.{block}.conv2" for block in range(3)]


def test_bilinear_pyramid_has_each_maps_own_size_and_relus():
    backbone = _build(
        *("MODEL.FPN.UPSAMPLING", "bilinear", "MODEL.FPN.OUTPUT_RELU", True),
        *("MODEL.FPN.TOP_RELU", False),
    )
    assert backbone.size_divisibility == 0
    image = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        maps = backbone(image)
        stages = backbone.bottom_up(image)
        merged = backbone.fpn_lateral5(stages["res5"])
        for level in (5, 4, 3):
            if level < 5:
                lateral = getattr(backbone, f"fpn_lateral{level}")(stages[f"res{level}"])
                size = lateral.shape[2:]
                up = F.interpolate(merged, size, mode="bilinear", align_corners=False)
                merged = lateral + up
            conv = getattr(backbone, f"fpn_output{level}")
            expected = F.conv2d(merged, conv.weight, conv.bias, padding=1).relu()
            torch.testing.assert_close(maps[f"p{level}"], expected)
        p6 = backbone.top_block.p6(maps["p5"])
        assert torch.equal(maps["p6"], p6) and torch.equal(maps["p7"], backbone.top_block.p7(p6))
    assert list(maps) == ["p3", "p4", "p5", "p6", "p7"] and (p6 < 0).any()
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]


def test_bilinear_pyramid_without_levels_above():
    backbone = _build("MODEL.FPN.UPSAMPLING", "bilinear", "MODEL.FPN.TOP_LEVELS", 0)
    with torch.no_grad():
        assert list(backbone(torch.randn(1, 3, 33, 65))) == ["p3", "p4", "p5"]


def test_an_unknown_upsampling_is_refused():
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.UPSAMPLING.*nearest.*bilinear"):
        _build("MODEL.FPN.UPSAMPLING", "cubic")
