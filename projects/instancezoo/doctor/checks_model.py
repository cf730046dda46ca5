"""Checks of the model: its construction, norms, weights, colours, masks and memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from instancezoo.checkpoint.checkpointer import ZooCheckpointer
from instancezoo.checkpoint.finite import list_non_finite
from instancezoo.checkpoint.reader import CheckpointError
from instancezoo.errors import first_line

from .context import Context
from .findings import Finding, error, ok, register_check, warning
from .memory import count_parameters, estimate_training_memory, measure_free_memory

MIN_BATCH_FOR_NORM = 4
MAX_MEMORY_SHARE = 0.9
# Relative difference from the mean or deviation that the backbone was trained with.
MAX_COLOUR_DIFFERENCE = 0.1


@register_check("model")
def check_model(context: Context) -> Iterator[Finding]:
    """The config builds."""
    model = context.model
    if model is None:
        problem = context.model_error or ValueError()
        yield error(
            f"the model does not build: {type(problem).__name__}: {first_line(problem)}",
            "correct the config; the other checks of the model are skipped",
        )
        return
    num_all, num_trained = count_parameters(model)
    yield ok(
        f"{context.cfg.MODEL.META_ARCHITECTURE} builds: {num_all / 1e6:.1f} million parameters, "
        f"{num_trained / 1e6:.1f} million trained"
    )


@register_check("norm")
def check_norm(context: Context) -> Iterator[Finding]:
    """Frozen layers need trained weights, batch norm needs a batch."""
    model = context.model
    if model is None:
        return
    frozen_norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if frozen_norms and not context.has_weights:
        yield error(
            f"{len(frozen_norms)} frozen batch norms have no trained weights: training diverges",
            "set MODEL.WEIGHTS, or MODEL.RESNETS.NORM BN (GN for small batches)",
        )
    if frozen and not context.has_weights:
        yield error(
            f"{len(frozen)} parameters stay frozen at random values",
            "set MODEL.WEIGHTS, or MODEL.BACKBONE.FREEZE_AT 0",
        )
    batch = context.cfg.SOLVER.IMS_PER_BATCH // max(1, context.num_gpus)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
    trained = [m for m in norms if m.weight.requires_grad]
    alone = [m for m in trained if not isinstance(m, nn.SyncBatchNorm)]
    if alone and batch < MIN_BATCH_FOR_NORM:
        yield warning(
            f"{len(alone)} batch norms learn from {batch} images per GPU",
            f"give each GPU {MIN_BATCH_FOR_NORM} images or more, or use GN or SyncBN",
        )
    elif not frozen_norms or context.has_weights:
        yield ok(f"{len(trained)} trained and {len(frozen_norms)} frozen batch norms")


@register_check("weights")
def check_weights(context: Context) -> Iterator[Finding]:
    """The file of MODEL.WEIGHTS can be read and fits the model."""
    path, model = context.cfg.MODEL.WEIGHTS, context.model
    if not path:
        start = "MODEL.TIMM.WEIGHTS" if context.has_weights else "random values"
        yield ok(f"MODEL.WEIGHTS is empty: the backbone starts from {start}")
        return
    if "://" in path and not path.startswith("published:"):
        yield ok(f"{path} is not checked: training downloads it")
        return
    if model is None:
        return
    partial = context.cfg.MODEL.WEIGHTS_ALLOW_PARTIAL
    checkpointer = ZooCheckpointer(  # what is not finite is told below
        model, save_to_disk=False, allow_partial=partial, allow_non_finite=True
    )
    try:
        checkpointer.load(path, checkpointables=[])  # as a training starts
    except (CheckpointError, OSError) as problem:
        yield error(str(problem), "set MODEL.WEIGHTS to a file that fits")
        return
    if broken := list_non_finite(model.state_dict()):
        yield error(
            f"{path}: {len(broken)} tensors hold NaN or infinity, first {broken[0]}",
            "set MODEL.WEIGHTS to an earlier checkpoint",
        )
    else:
        yield ok(f"{path} fits the model")


@register_check("colours")
def check_colours(context: Context) -> Iterator[Finding]:
    """Channel order, mean and deviation agree."""
    node, image_format = context.cfg.MODEL, context.cfg.INPUT.FORMAT
    mean = node.PIXEL_MEAN
    if len(mean) != 3:  # no colours
        yield ok(f"{len(mean)} channels, mean {mean}, deviation {node.PIXEL_STD}")
        return
    # Photographs have more red than blue on average, which shows in the mean.
    order = "RGB" if mean[0] > mean[-1] else "BGR" if mean[0] < mean[-1] else image_format
    if order != image_format:
        yield warning(
            f"INPUT.FORMAT is {image_format}, but MODEL.PIXEL_MEAN {mean} is in the order of "
            f"{order}",
            f"set INPUT.FORMAT {order}, or reverse MODEL.PIXEL_MEAN and MODEL.PIXEL_STD",
        )
    else:
        yield ok(f"{image_format}, mean {mean}, deviation {node.PIXEL_STD}")
    if context.timm_weights:
        yield from _check_timm_colours(node, image_format)


@register_check("masks")
def check_masks(context: Context) -> Iterator[Finding]:
    """Two-stage models predict masks only with MODEL.MASK_ON."""
    if hasattr(context.model, "roi_heads") and not context.cfg.MODEL.MASK_ON:
        yield warning("MODEL.MASK_ON is False: no masks, only boxes", "set MODEL.MASK_ON True")


@register_check("memory")
def check_memory(context: Context) -> Iterator[Finding]:
    """Memory of one training step against the free memory."""
    cfg = context.cfg
    if context.model is None or not hasattr(context.model, "backbone"):
        return
    size = context.largest_train_size
    shapes = [size.resize(facts.image_sizes) for facts in context.train]
    largest = np.concatenate(shapes).max(axis=0) if shapes else (size.short_edge, size.max_size)
    height, width = map(int, largest)
    batch = -(-cfg.SOLVER.IMS_PER_BATCH // max(1, context.num_gpus))
    needed = estimate_training_memory(context.model, cfg, batch, height, width)
    free = measure_free_memory(cfg.MODEL.DEVICE)
    message = (
        f"about {needed / 2**30:.1f} GiB for {batch} images of up to {width}x{height} "
        f"on {cfg.MODEL.DEVICE}"
    )
    if free is None:
        yield ok(message)
        return
    message += f", {free / 2**30:.1f} GiB are free now"
    remedy = (
        f"lower SOLVER.IMS_PER_BATCH (and SOLVER.BASE_LR with it) or {size.keys}, or set "
        "SOLVER.AMP.ENABLED True"
    )
    yield warning(message, remedy) if needed > MAX_MEMORY_SHARE * free else ok(message)


def _check_timm_colours(node: CfgNode, image_format: str) -> Iterator[Finding]:
    from timm import get_pretrained_cfg

    name = node.TIMM.NAME
    trained = get_pretrained_cfg(name)
    if trained is None:
        return
    if image_format != "RGB":
        yield warning(
            f"timm's {name} was trained on RGB, INPUT.FORMAT is {image_format}",
            "set INPUT.FORMAT RGB, and MODEL.PIXEL_MEAN and MODEL.PIXEL_STD in that order",
        )
    for key, unit in (("PIXEL_MEAN", trained.mean), ("PIXEL_STD", trained.std)):
        ours, theirs = np.array(node[key]), 255 * np.array(unit)
        same_order = ours if image_format == "RGB" else ours[::-1]
        if np.abs(same_order / theirs - 1).max() > MAX_COLOUR_DIFFERENCE:
            yield warning(
                f"MODEL.{key} is {node[key]}, timm's {name} was trained with "
                f"{theirs.round(1).tolist()} (RGB)",
                f"set MODEL.{key} {theirs.round(3).tolist()}",
            )
