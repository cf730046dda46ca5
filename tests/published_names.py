"""What other repositories call the tensors of a ResNet with FPN; written apart from the converters.

Rows of (pattern, replacement) lead from our names to theirs, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from instancezoo import model_zoo

Row = tuple[str, str | Callable[[re.Match[str]], str]]


def list_resnet_rows(body: str, stem: str) -> list[Row]:
    """torchvision's names of the blocks, which all have in common.

    Args:
        body: what stands before `.layer1`.
        stem: what stands before `.conv1` and `.bn1`.
    """
    return [
        (r"^backbone\.bottom_up\.stem\.conv1\.norm", f"{stem}.bn1"),
        (r"^backbone\.bottom_up\.stem", stem),
        (r"^backbone\.bottom_up\.res(\d)", lambda m: f"{body}.layer{int(m[1]) - 1}"),
        (r"\.shortcut\.norm", ".downsample.1"),
        (r"\.shortcut", ".downsample.0"),
        (rf"^({re.escape(body)}\.layer.*)\.conv(\d)\.norm", r"\1.bn\2"),
    ]


def list_mmdetection_rows(finest: int) -> list[Row]:
    """MMDetection and what builds on it; its pyramid counts from the stage `finest`."""
    return [
        *list_resnet_rows("backbone", "backbone"),
        (r"backbone\.fpn_lateral(\d)", lambda m: f"neck.lateral_convs.{int(m[1]) - finest}.conv"),
        (
            r"backbone\.(?:fpn_output|top_block\.p)(\d)",
            lambda m: f"neck.fpn_convs.{int(m[1]) - finest}.conv",
        ),
    ]


# maskrcnn-benchmark and what builds on it
MASKRCNN_BENCHMARK: list[Row] = [
    *list_resnet_rows("backbone.body", "backbone.body.stem"),
    (r"^backbone\.fpn_lateral(\d)", lambda m: f"backbone.fpn.fpn_inner{int(m[1]) - 1}"),
    (r"^backbone\.fpn_output(\d)", lambda m: f"backbone.fpn.fpn_layer{int(m[1]) - 1}"),
    (r"^backbone\.top_block", "backbone.fpn.top_blocks"),
]


def rename(name: str, rows: Iterable[Row]) -> str:
    """Our name in the other repository's words."""
    for pattern, replacement in rows:
        name = re.sub(pattern, replacement, name)
    return name


def describe_model(config: str, *overrides: object) -> tuple[CfgNode, dict[str, Tensor]]:
    """Config by name, and the tensors (without values) of its model."""
    words = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta", *overrides]
    cfg = model_zoo.get_config(config, words)
    with torch.device("meta"):
        return cfg, build_model(cfg).state_dict()


def add_counters(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the counters of batches that PyTorch's own norms save."""
    counters = [name for name in published if name.endswith("running_var")]
    names = (name.replace("running_var", "num_batches_tracked") for name in counters)
    return published | {name: torch.zeros(()) for name in names}


def list_shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
