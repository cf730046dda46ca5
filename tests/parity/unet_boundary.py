"""Boundary U-Net against the fixture of the published recipe and of the formulas.

No weights belong to it: there is no checkpoint, and each stage starts from stored arrays.
"""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_codec
import torch
from torch import Tensor

from instancezoo.evaluation import GroundTruth
from instancezoo.evaluation.bowl_score import DSB_THRESHOLDS, count_matches, score_image
from instancezoo.layers.double import find_double_device
from instancezoo.layers.owners import average_by_owner
from instancezoo.modeling.object_maps import ObjectMaps
from instancezoo.unet_boundary.grouping import (
    GroupingSettings,
    find_seeds,
    group_pixels,
    grow_seeds,
    quantise,
)
from instancezoo.unet_boundary.head import BoundaryMaps
from instancezoo.unet_boundary.losses import (
    VARIANTS,
    average,
    boundary_losses,
    measure_dice,
)
from instancezoo.unet_boundary.targets import (
    BORDER,
    INTERIOR,
    BoundaryTargets,
    classify_pixels,
    make_targets,
    weigh_pixels,
)

from .fixtures import Fixture

STATED = {"float64": 1e-9, "float32": 1e-4, "labels": "exact"}
# Arrays that the fixture stores in single precision
SINGLE = torch.finfo(torch.float32).eps
# Of the U-Net paper's weight map, as the fixture says
WEIGHT, SIGMA = 10.0, 5.0


class BoundaryUNetParity:
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "target",
        "target_literal",
        "network_targets",
        "cross_entropy",
        "dice",
        "loss_a",
        "loss_b",
        "weight_map",
        "loss_weighted",
        "quantised",
        "seeds",
        "watershed",
        "instances",
        "scores",
        "dsb_score",
    )

    def __init__(self, fixture: Fixture) -> None:
        fixture.check_stated(STATED)
        self.fixture, self.arrays = fixture, fixture.arrays
        config = fixture.spec["config"]
        assert (
            config["connectivity"] == 8 and "connectivity 1, watershed_line" in config["watershed"]
        )
        self.settings = GroupingSettings(
            seed_thresh=config["t_seed"],
            mask_thresh=config["t_mask"],
            min_size=config["min_size"],
            draw_line=True,
        )
        self.device = find_double_device(torch.device("cpu"))

    def check_target(self) -> None:
        self._check_boundary("target", classify_pixels(self.ids))

    def check_target_literal(self) -> None:
        self._check_boundary("target_literal", classify_pixels(self.ids, contacts=False))

    def check_network_targets(self) -> None:
        """The same from what the model paints, in a batch of another image and a padding."""
        ids = torch.cat([self.ids, self.ids.flip(2)])
        classes = torch.where(ids > 0, 0, 1)
        targets = make_targets(
            ObjectMaps(ids, classes, (1, 1)), contacts=True, weight=None, sigma=1
        )
        self._check_boundary("target", targets.boundary[:1])
        assert targets.valid.all() and targets.weights is None

    def check_cross_entropy(self) -> None:
        targets = self._targets()
        values = torch.nn.functional.cross_entropy(
            self._logits(), targets.boundary, reduction="none"
        )
        self._check("ce", average(values, targets.valid))

    def check_dice(self) -> None:
        targets = self._targets()
        truth = torch.stack([targets.boundary == INTERIOR, targets.boundary == BORDER], dim=1)
        probs = self._logits().softmax(dim=1)[:, :2]
        for name, smooth in (("dice_1", 1.0), ("dice_1e-3", 1e-3)):
            self._check(name, measure_dice(probs, truth, targets.valid, smooth))

    def check_loss_a(self) -> None:
        self._check("loss_a", self._loss("A"))

    def check_loss_b(self) -> None:
        self._check("loss_b", self._loss("B"))

    def check_weight_map(self) -> None:
        self._check("weight_map", self._weights(torch.double)[0], SINGLE)
        single = self._weights(torch.float32)[0]
        np.testing.assert_allclose(single, self.arrays["weight_map"], rtol=1e-4, atol=1e-4)

    def check_loss_weighted(self) -> None:
        self._check("loss_weighted", self._loss("weighted", self._weights(torch.double)))

    def check_quantised(self) -> None:
        levels = quantise(self._logits().softmax(dim=1))[0].int()
        stored = torch.from_numpy(self.arrays["prob_u8"]).int()
        differs = levels != stored
        # A few pixels are within 1e-4 of a whole number.
        exact = 255 * self._logits().softmax(dim=1)[0]
        assert ((exact - exact.round()).abs()[differs] < 1e-4).all()
        assert ((levels - stored).abs() <= 1).all() and differs.float().mean() < 1e-3

    def check_seeds(self) -> None:
        self.fixture.check_exact("seeds", self._seeds())

    def check_watershed(self) -> None:
        found = grow_seeds(self._seeds(), self.arrays["prob_u8"][0], self.settings)
        self.fixture.check_exact("watershed", found)

    def check_instances(self) -> None:
        interior, border, _ = torch.from_numpy(self.arrays["prob_u8"])
        self.fixture.check_exact("instances", group_pixels(interior, border, None, self.settings))

    def check_scores(self) -> None:
        labels = torch.from_numpy(self.arrays["instances"]).long()
        maps = BoundaryMaps(self._logits(), None, None)
        probs = maps.logits.softmax(dim=1)[0, 0]
        self._check("scores", self._average(probs, labels))
        single = self._average(maps.predict_interior()[0][0], labels)
        np.testing.assert_allclose(single, self.arrays["scores"], atol=STATED["float32"])

    def check_dsb_score(self) -> None:
        records = [self._encode("labels"), self._encode("instances")]
        height, width = self.arrays["labels"].shape
        truth = GroundTruth.read(
            {
                "images": [{"id": 1, "height": height, "width": width}],
                "annotations": [{"id": i, **row} for i, row in enumerate(records[0])],
                "categories": [{"id": 1, "name": "nucleus"}],
            }
        )
        counts = count_matches(truth, 1, records[1])
        np.testing.assert_allclose(DSB_THRESHOLDS, np.arange(0.5, 0.96, 0.05))
        self._check("dsb_per_threshold", torch.from_numpy(score_image(counts)))
        self._check("dsb_score", torch.from_numpy(score_image(counts)).mean())

    @property
    def ids(self) -> Tensor:
        return torch.from_numpy(self.arrays["labels"]).long()[None]

    def _targets(self, weights: Tensor | None = None) -> BoundaryTargets:
        boundary = torch.from_numpy(self._unpack("target")).int().argmax(dim=0)[None]
        valid = torch.ones_like(boundary, dtype=torch.bool)
        return BoundaryTargets(boundary, self.ids, torch.zeros_like(boundary), valid, weights)

    def _loss(self, variant: str, weights: Tensor | None = None) -> Tensor:
        losses = boundary_losses(self._logits(), self._targets(weights), VARIANTS[variant])
        return sum(losses.values(), torch.zeros((), dtype=torch.double))

    def _weights(self, dtype: torch.dtype) -> Tensor:
        valid = torch.ones_like(self.ids, dtype=torch.bool)
        return weigh_pixels(self.ids, valid, WEIGHT, SIGMA, dtype)

    def _logits(self) -> Tensor:
        logits = torch.from_numpy(self.arrays["logits"])
        return logits.to(self.device, torch.double)[None]

    def _seeds(self) -> np.ndarray:
        interior, border, _ = torch.from_numpy(self.arrays["prob_u8"])
        return find_seeds(interior, border, self.settings.seed_thresh, self.settings.min_size)

    def _average(self, probs: Tensor, labels: Tensor) -> Tensor:
        inside = labels > 0
        return average_by_owner(probs[inside], labels[inside] - 1, int(labels.max()))

    def _encode(self, name: str) -> list[dict[str, object]]:
        """The objects of a map of labels as COCO annotations or results."""
        labels = self.arrays[name]
        masks = labels[..., None] == np.unique(labels[labels > 0])
        codes = mask_codec.encode(np.asfortranarray(masks.astype(np.uint8)))
        box = {"bbox": [0, 0, 1, 1], "category_id": 1, "image_id": 1, "score": 1.0}
        return [
            {**box, "segmentation": {**code, "counts": code["counts"].decode()}} for code in codes
        ]

    def _unpack(self, name: str) -> np.ndarray:
        """(3, H, W) bool that was stored as one row of bits."""
        height, width = self.arrays["labels"].shape
        return self.fixture.unpack_masks(name, height, width)[:3]

    def _check_boundary(self, name: str, got: Tensor) -> None:
        found = np.stack([got[0].numpy() == value for value in range(3)])
        np.testing.assert_array_equal(found, self._unpack(name), err_msg=name)

    def _check(self, name: str, got: Tensor, relative: float = 0.0) -> None:
        assert got.dtype == torch.double
        tolerance = self.fixture.spec["tolerance"]["float64"]
        np.testing.assert_allclose(
            got.detach().numpy(), self.arrays[name], rtol=relative, atol=tolerance, err_msg=name
        )
