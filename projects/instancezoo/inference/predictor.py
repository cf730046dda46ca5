"""One image in, `Instances` out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from instancezoo.checkpoint.checkpointer import ZooCheckpointer, use_average
from instancezoo.checkpoint.classes import UNKNOWN, ClassList
from instancezoo.data.transforms import build_resize, make_model_input, to_tensor
from instancezoo.errors import ZooError
from instancezoo.modeling.masks import select_rows

from .confidence import apply_confidence
from .test_time_augmentation import ModelWithTTA


class ImagePredictor:
    """A model with its weights, its input size and a score threshold.

    Unlike `DefaultPredictor` it loads any known checkpoint and returns only confident instances, on
    the CPU. With TEST.AUG.ENABLED it looks at several copies of each image, see `ModelWithTTA`.

    Args:
        cfg: a full config; MODEL.WEIGHTS names the weights. With MODEL.EMA.ENABLED the file's
            averaged weights are used, if it holds any.
        confidence: smallest score to keep, in [0, 1]; None keeps the config's thresholds.
        classes: that the weights must have been trained on, if the file names its classes.

    Raises:
        ZooError: no weights, or weights that do not fit the model or the classes.
    """

    def __init__(
        self, cfg: Any, confidence: float | None = 0.0, *, classes: ClassList = UNKNOWN
    ) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise ZooError("no weights to predict with: set --weights FILE or MODEL.WEIGHTS")
        cfg = cfg.clone()
        cfg.defrost()
        # The checkpoint includes the backbone, so the backbone's own weights need not exist.
        cfg.MODEL.TIMM.WEIGHTS = ""
        is_augmented = cfg.TEST.AUG.ENABLED
        if confidence is not None:
            # The models' own thresholds: no masks are computed for instances that would be dropped.
            # Copies keep theirs: their merged scores count.
            apply_confidence(cfg, confidence, may_raise=not is_augmented)
        self.image_format: str = cfg.INPUT.FORMAT
        self.confidence = confidence
        self.model = build_model(cfg).eval()
        checkpointer = ZooCheckpointer(
            self.model,
            allow_partial=cfg.MODEL.WEIGHTS_ALLOW_PARTIAL,
            allow_non_finite=cfg.MODEL.WEIGHTS_ALLOW_NON_FINITE,
            classes=classes,
        )
        rest = checkpointer.load(cfg.MODEL.WEIGHTS)
        if cfg.MODEL.EMA.ENABLED:  # the weights that were evaluated
            use_average(self.model, rest, allow_non_finite=cfg.MODEL.WEIGHTS_ALLOW_NON_FINITE)
        if is_augmented:
            self.model = ModelWithTTA(cfg, self.model)
        self._resize = build_resize(cfg, is_train=False)

    def __call__(self, image: np.ndarray) -> Instances:
        """Predict on one image.

        Args:
            image: (H, W, C) as the config's `ImageReader` reads it.

        Returns:
            Instances on the CPU in the frame of `image` with scores of at least `confidence`;
            `pred_masks` in the form MODEL.MASK_OUTPUT.
        """
        if isinstance(self.model, ModelWithTTA):  # which resizes it itself
            record = {"image": to_tensor(image)}
        else:
            record = make_model_input(image, self._resize)
        with torch.no_grad():
            outputs = self.model([record])
        instances = outputs[0]["instances"].to("cpu")
        return instances if self.confidence is None else keep_confident(instances, self.confidence)


def keep_confident(instances: Instances, confidence: float) -> Instances:
    """Keep instances with a score of at least `confidence`; masks as a tensor or RLE dicts."""
    kept = (instances.scores >= confidence).nonzero().flatten()
    fields = {name: select_rows(value, kept) for name, value in instances.get_fields().items()}
    return Instances(instances.image_size, **fields)
