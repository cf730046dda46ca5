"""The deformable ResNet-FPN: where it deforms, and that it starts as the plain network."""

import pytest
import torch
from detectron2.modeling import build_backbone

from instancezoo import get_cfg
from instancezoo.layers.deform_conv import DeformConv


def _build(name, modulated=False, stages=(False, True, True, True)):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    if name.startswith("build_deform"):
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = list(stages)
        cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    torch.manual_seed(0)
    return build_backbone(cfg).eval()


@pytest.mark.parametrize("modulated,channels", [(False, 18), (True, 27)])
def test_only_the_named_stages_deform(modulated, channels):
    backbone = _build("build_deform_resnet_fpn_backbone", modulated)
    names = [n for n, m in backbone.named_modules() if isinstance(m, DeformConv)]
    assert len(names) == 4 + 6 + 3
    assert not any("res2" in name for name in names)
    weight = dict(backbone.named_parameters())["bottom_up.res3.0.conv2.offset.weight"]
    assert weight.shape[0] == channels
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen and all("stem" in name or "res2" in name for name in frozen)


def test_a_new_one_computes_what_the_plain_network_computes():
    plain = _build("build_resnet_fpn_backbone")
    deformable = _build("build_deform_resnet_fpn_backbone")
    mismatch = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert not mismatch.unexpected_keys
    assert all("conv2.offset" in name for name in mismatch.missing_keys)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = plain(image), deformable(image)
    assert found.keys() == expected.keys()
    for level in expected:
        torch.testing.assert_close(found[level], expected[level], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("interval,blocks", [(1, 13), (3, 2 + 2 + 1)])
def test_every_nth_block_deforms(interval, blocks):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_deform_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    cfg.MODEL.RESNETS.DEFORM_MODULATED = cfg.MODEL.RESNETS.DEFORM_BIAS = True
    cfg.MODEL.RESNETS.DEFORM_INTERVAL = interval
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    names = [n for n, m in backbone.named_modules() if isinstance(m, DeformConv)]
    assert len(names) == blocks
    assert all(int(name.split(".")[2]) % interval == 0 for name in names)
    biases = [n for n, _ in backbone.named_parameters() if n.endswith("conv2.bias")]
    assert len(biases) == blocks
