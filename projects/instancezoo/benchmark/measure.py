"""Builds a config's model, gives it an image in which it finds something, and times it."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import nn

from instancezoo.checkpoint.checkpointer import ZooCheckpointer
from instancezoo.data.images import read_image
from instancezoo.data.transforms import build_resize, make_model_input
from instancezoo.testing import make_image

from .clock import StageClock, synchronize
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
        cfg: a full config. If MODEL.WEIGHTS is empty, weights are drawn, and score thresholds are
            set so that about `num_detections` instances are found. Their masks are noise: stages
            behind the heads take longer than with trained weights.
        config_name: for the report.
        image_file: a picture; None draws one.
        size: height and width of the drawn picture in pixels.
        num_detections: see `cfg`.
        repeats: of each run; the runs take turns.
        seed: of weights and picture.

    Raises:
        ZooError: the image or the weights cannot be used.
    """
    torch.manual_seed(seed)
    if image_file:
        image = read_image(image_file, cfg.INPUT.FORMAT)
    else:
        image = make_image(*size, seed).permute(1, 2, 0).numpy()
    caller = _Caller(image, build_resize(cfg, is_train=False))
    caller.model, weights = _build(cfg, caller, num_detections, seed)
    device = torch.device(cfg.MODEL.DEVICE)
    runs, num_found = _take_turns(caller, cfg.MODEL.MASK_OUTPUT, repeats, device)
    on_gpu = device.type == "cuda"
    return Report(
        config=config_name,
        device=torch.cuda.get_device_name(device)
        if on_gpu
        else f"{device}, {torch.get_num_threads()} threads",
        weights=weights,
        image_size=image.shape[:2],
        input_size=tuple(caller.resize_image()["image"].shape[1:]),
        num_detections=num_found,
        repeats=repeats,
        runs=runs,
        peak_memory_mib=torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
    )


class _Caller:
    """From an image in memory to instances, as `instancezoo predict` goes."""

    model: nn.Module

    def __init__(self, image: np.ndarray, resize: Any) -> None:
        self.image = image
        self.resize = resize

    def resize_image(self) -> dict[str, Any]:
        """The model's input."""
        return make_model_input(self.image, self.resize)

    def __call__(self) -> int:
        """Number of instances found."""
        with torch.no_grad():
            return len(self.model([self.resize_image()])[0]["instances"])


def _build(cfg: Any, caller: _Caller, num_detections: int, seed: int) -> tuple[nn.Module, str]:
    """The model, and what its weights are."""
    if not cfg.MODEL.WEIGHTS:
        model, threshold = build_untrained(cfg, [caller.resize_image()], num_detections)
        return model, f"random weights (seed {seed}), score threshold {threshold:.3g}"
    model = build_model(cfg).eval()
    partial = cfg.MODEL.WEIGHTS_ALLOW_PARTIAL
    ZooCheckpointer(model, allow_partial=partial).load(cfg.MODEL.WEIGHTS)
    return model, cfg.MODEL.WEIGHTS


def _take_turns(
    caller: _Caller, mask_output: str, repeats: int, device: torch.device
) -> tuple[list[Run], int]:
    """Runs for each form of masks, and the number of instances found."""
    forms = FORMS if hasattr(caller.model, "mask_output") else (mask_output,)
    totals: dict[str, list[float]] = {form: [] for form in forms}
    stages: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    found = 0
    for turn in range(1 + repeats):
        for form in forms:
            caller.model.mask_output = form  # type: ignore[assignment]
            synchronize(device)
            start = time.perf_counter()
            found = caller()
            synchronize(device)
            total = time.perf_counter() - start
            split = _split(caller, device)
            if turn:  # the first one warms up
                totals[form].append(total)
                stages[form].append(split)
    return [Run(f, 1e3 * statistics.median(totals[f]), _median(stages[f])) for f in forms], found


def _split(caller: _Caller, device: torch.device) -> dict[str, float]:
    """Seconds of each stage of one call."""
    clock = StageClock(device)
    with time_stages(clock, caller.model, [(caller, "resize_image", RESIZE)]):
        caller()
    return clock.seconds


def _median(splits: list[dict[str, float]]) -> dict[str, float]:
    """Milliseconds of each stage that any call had."""
    names = dict.fromkeys(name for split in splits for name in split)
    return {n: 1e3 * statistics.median([split.get(n, 0.0) for split in splits]) for n in names}
