"""Darknet-53: its layers, names and frozen stages."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from instancezoo import get_cfg
from instancezoo.modeling.backbones.darknet import Darknet


def test_layers_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        network = Darknet(out_features=["res3", "res4", "res5"])
        outputs = network(torch.zeros(1, 3, 256, 256))
    shapes = {name: tuple(maps.shape[1:]) for name, maps in outputs.items()}
    assert shapes == {"res3": (256, 32, 32), "res4": (512, 16, 16), "res5": (1024, 8, 8)}
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 52  # the 53rd layer is the classifier
    assert all(conv.bias is None for conv in convs)
    # Weights of the paper's table 1: 3x3 and 1x1 convolutions, and two numbers per norm channel
    weights = sum(conv.weight.numel() for conv in convs)
    norms = 2 * sum(conv.out_channels for conv in convs)
    assert sum(p.numel() for p in network.parameters()) == weights + norms == 40_584_928


def test_residuals_add_the_input_without_an_activation() -> None:
    torch.manual_seed(0)
    network = Darknet(out_features=["res1"]).eval()
    block = network.res1[1]
    features = torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        inner = block.conv2(block.conv1(features))
        assert torch.equal(block(features), features + inner)
        conv, norm = block.conv1.conv, block.conv1.norm
        expected = norm(conv(features))
        expected = torch.where(expected > 0, expected, 0.1 * expected)
        torch.testing.assert_close(block.conv1(features), expected)


def test_frozen_stages_do_not_train() -> None:
    network = Darknet(out_features=["res2", "res3"], freeze_at=2).train()
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"res3"}
    assert not network.stem.norm.training and not network.res2[0].norm.training
    assert network.res3[0].norm.training
    assert not hasattr(network, "res4")


def test_backbone_has_levels_above_the_last_stage() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_darknet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    with torch.device("meta"):
        backbone = build_backbone(cfg)
        outputs = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(m.shape[2:]) for name, m in outputs.items()} == {
        "p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1),
    }  # fmt: skip
    for name, shape in backbone.output_shape().items():
        assert shape.channels == outputs[name].shape[1] and shape.stride == 2 ** int(name[1:])


def test_an_unknown_output_is_an_error() -> None:
    with pytest.raises(ValueError, match="res1, res2, res3, res4, res5"):
        Darknet(out_features=["res6"])
