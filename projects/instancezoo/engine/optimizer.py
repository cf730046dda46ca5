"""The optimizer and its gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from instancezoo.errors import check_choice

OPTIMIZERS = ("SGD", "AdamW")
CLIP_TYPES = ("value", "norm", "full_model")


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Build `SOLVER.OPTIMIZER`: Detectron2's SGD, or AdamW with the same parameter groups.

    Parameters without a dimension, such as the bandwidth of a kernel, have no weight decay.

    `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` is, as in Detectron2, "value" or "norm" (of each parameter
    alone), or "full_model": the norm of all parameters together, as in most papers.

    Raises:
        ConfigError: unknown optimizer or type of clipping.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    check_choice("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, OPTIMIZERS)
    if clip.ENABLED:
        check_choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, CLIP_TYPES)
    clips_together = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    if clips_together:  # Detectron2 has only the other two
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    build = build_sgd if cfg.SOLVER.OPTIMIZER == "SGD" else _build_adamw
    optimizer = build(cfg, model)
    _free_scalars(optimizer)
    if clips_together:
        _clip_together(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
    return optimizer


def _build_adamw(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.AdamW(
        groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def _free_scalars(optimizer: torch.optim.Optimizer) -> None:
    """Move single numbers to groups without weight decay, which would pull them to 0."""
    for group in list(optimizer.param_groups):
        scalars = [parameter for parameter in group["params"] if parameter.ndim == 0]
        if scalars and group["weight_decay"]:
            group["params"] = [p for p in group["params"] if p.ndim > 0]
            optimizer.add_param_group({**group, "params": scalars, "weight_decay": 0.0})


def _clip_together(optimizer: torch.optim.Optimizer, limit: float, norm_type: float) -> None:
    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, limit, norm_type)

    optimizer.register_step_pre_hook(clip)
