"""Estimate of a training step's memory without running the step."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Activations of the whole model per activations of its backbone. Measured with Mask R-CNN: 1.7 at
# 160x128 (ResNet-18), 1.6 at 448x320 and 1.4 at 800x640 (ResNet-50), 1.1 with EfficientNet.
HEADS_FACTOR = 1.5
# Activations with autocast per activations without: it halves them, but for norms and losses.
AMP_FACTOR = 0.6
_BYTES_PER_PARAMETER = 4


def estimate_training_memory(
    model: nn.Module, cfg: Any, batch: int, height: int, width: int
) -> float:
    """Bytes of a training step: `parameters * copies + batch * activations * HEADS_FACTOR`.

    Activations are the tensors that autograd keeps of the backbone's forward pass; they are
    counted on the meta device, which computes nothing. Copies are the weights, their average if
    MODEL.EMA.ENABLED, and for trained ones the gradient and the optimiser's state (SGD one copy,
    AdamW two).

    Args:
        model: has a `backbone`; unchanged.
        cfg: the full config.
        batch: images on one device.
        height, width: of the largest network input, in pixels.
    """
    num_all, num_trained = count_parameters(model)
    num_states = 1 if cfg.SOLVER.OPTIMIZER == "SGD" else 2
    copies = num_all * (2 if cfg.MODEL.EMA.ENABLED else 1) + num_trained * (1 + num_states)
    channels = len(cfg.MODEL.PIXEL_MEAN)
    activations = count_saved_bytes(model.backbone, channels, height, width) * HEADS_FACTOR
    if cfg.SOLVER.AMP.ENABLED:
        activations *= AMP_FACTOR
    return float(copies * _BYTES_PER_PARAMETER + batch * activations)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of all and of trained parameters, tensors' elements counted."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def count_saved_bytes(backbone: Any, channels: int, height: int, width: int) -> int:
    """Bytes that autograd keeps of a backbone's forward pass on one image.

    Args:
        backbone: Detectron2's `Backbone`; unchanged.
        channels: of the image.
        height, width: of the image in pixels; padded here as the model does.
    """
    divisor = max(1, backbone.size_divisibility)
    height, width = (-(-side // divisor) * divisor for side in (height, width))
    on_meta = copy.deepcopy(backbone).to("meta").train()
    parameters = {id(p) for p in on_meta.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in parameters:
            saved[tensor.untyped_storage()._cdata] = tensor  # views of one storage count once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Two images: batch norm refuses to learn from a single value.
        on_meta(torch.zeros(2, channels, height, width, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) // 2


def measure_free_memory(device: str) -> int | None:
    """Bytes that are free now on a device; None if unknown."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    table = Path("/proc/meminfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
