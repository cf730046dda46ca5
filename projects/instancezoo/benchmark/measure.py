"""Builds a config's model and times its inference on an image in which it finds instances."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import nn

from instancezoo.checkpoint.checkpointer import ZooCheckpointer
from instancezoo.data.images import ImageReader
from instancezoo.data.transforms import build_resize, make_model_input
from instancezoo.testing import make_image

from .clock import StageClock
from .report import Report, Run
from .stages import time_stages
from .threshold import build_untrained

FORMS = ("rle", "bitmask")
RESIZE = "resize image"


def measure_config(
    cfg: Any,
    *,
    config_name: str = "",
    image_file: Path | None = None,
    size: tuple[int, int] = (800, 1333),
    num_detections: int = 100,
    repeats: int = 10,
    seed: int = 0,
) -> Report:
    """Time inference on one image, stage by stage.

    Args:
        cfg: a full config. If MODEL.WEIGHTS is empty, weights are random and the score threshold is
            set so that about `num_detections` instances are found. Their masks are noise: stages
            after the heads take longer than with trained weights.
        config_name: for the report.
        image_file: a picture; None for a random one.
        size: height and width of the random picture in pixels.
        num_detections: see `cfg`.
        repeats: number of repeats of each run; the runs take turns.
        seed: of random weights and picture.

    Raises:
        ZooError: the image or the weights cannot be used.
    """
    torch.manual_seed(seed)
    if image_file:
        image = ImageReader.from_config(cfg)(image_file)
    else:
        image = make_image(*size, seed, len(cfg.MODEL.PIXEL_MEAN)).permute(1, 2, 0).numpy()
        if image.shape[2] not in (1, 3):  # as `ImageReader` gives it
            image = image.astype(np.float32)
    resize = build_resize(cfg, is_train=False)
    model_input = make_model_input(image, resize)
    model, weights = _build(cfg, model_input, num_detections, seed)
    forms = FORMS if hasattr(model, "mask_output") else (cfg.MODEL.MASK_OUTPUT,)
    device = torch.device(cfg.MODEL.DEVICE)
    runs, num_found = _take_turns(_Caller(model, image, resize), forms, repeats, device)
    on_gpu = device.type == "cuda"
    return Report(
        config=config_name,
        device=torch.cuda.get_device_name(device)
        if on_gpu
        else f"{device}, {torch.get_num_threads()} threads",
        weights=weights,
        image_size=image.shape[:2],
        input_size=tuple(model_input["image"].shape[1:]),
        num_detections=num_found,
        repeats=repeats,
        runs=runs,
        peak_memory_mib=torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
    )


@dataclass
class _Caller:
    """From an image in memory to instances, as in `instancezoo predict`."""

    model: nn.Module
    image: np.ndarray
    resize: Any

    def resize_image(self) -> dict[str, Any]:
        """The model's input."""
        return make_model_input(self.image, self.resize)

    def __call__(self) -> int:
        """Number of instances found."""
        with torch.no_grad():
            return len(self.model([self.resize_image()])[0]["instances"])


def _build(
    cfg: Any, model_input: dict[str, Any], num_detections: int, seed: int
) -> tuple[nn.Module, str]:
    """The model, and a description of its weights."""
    if not cfg.MODEL.WEIGHTS:
        model, threshold = build_untrained(cfg, [model_input], num_detections)
        return model, f"random weights (seed {seed}), score threshold {threshold:.3g}"
    model = build_model(cfg).eval()
    partial = cfg.MODEL.WEIGHTS_ALLOW_PARTIAL
    ZooCheckpointer(model, allow_partial=partial).load(cfg.MODEL.WEIGHTS)
    return model, cfg.MODEL.WEIGHTS


def _take_turns(
    caller: _Caller, forms: Sequence[str], repeats: int, device: torch.device
) -> tuple[list[Run], int]:
    """A run for each form of masks, and the number of instances found."""
    totals: dict[str, list[float]] = {form: [] for form in forms}
    stages: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    found = 0
    for turn in range(1 + repeats):
        for form in forms:
            caller.model.mask_output = form  # type: ignore[assignment]
            whole, split = StageClock(device), StageClock(device)
            whole.enter("total")
            found = caller()
            whole.leave()
            with time_stages(split, caller.model, [(caller, "resize_image", RESIZE)]):
                caller()
            if turn:  # the first one warms up
                totals[form].append(whole.seconds["total"])
                stages[form].append(split.seconds)
    return [Run(f, 1e3 * statistics.median(totals[f]), _median(stages[f])) for f in forms], found


def _median(splits: list[dict[str, float]]) -> dict[str, float]:
    """Milliseconds of each stage that any call had."""
    names = dict.fromkeys(name for split in splits for name in split)
    return {n: 1e3 * statistics.median([split.get(n, 0.0) for split in splits]) for n in names}
