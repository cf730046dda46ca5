"""Models that several checkpoint tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

import instancezoo

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_CLASSES = 7  # without background


@pytest.fixture(scope="session")
def make_cfg() -> Callable[..., CfgNode]:
    """Config by name, on the CPU and without weights."""

    def make(name: str = "base/rcnn_fpn", num_classes: int = NUM_CLASSES) -> CfgNode:
        cfg = instancezoo.get_cfg()
        cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.WEIGHTS = ""
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        return cfg

    return make


@pytest.fixture(scope="session")
def torchvision_model() -> nn.Module:
    """torchvision's Mask R-CNN with random weights."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1
    ).eval()
    for module in model.modules():  # fresh norms would not show a wrong statistic
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
    for head in (model.rpn.head.cls_logits, model.roi_heads.box_predictor.cls_score):
        nn.init.normal_(head.bias)  # zero biases would not show a wrong order
    return model


@pytest.fixture(scope="session")
def torchvision_file(
    torchvision_model: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The state dict of `torchvision_model`, as torchvision publishes such files."""
    path = tmp_path_factory.mktemp("torchvision") / "maskrcnn_resnet50_fpn.pth"
    torch.save(torchvision_model.state_dict(), path)
    return path
