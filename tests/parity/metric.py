"""Deep metric learning against the fixture of the formulas, in double precision.

No weights were ever published: there is no checkpoint, and each stage starts from stored arrays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from instancezoo.layers.clustering import cluster_mean_shift
from instancezoo.layers.double import find_double_device
from instancezoo.layers.metric import (
    choose_seeds,
    discriminative_terms,
    embedding_loss,
    find_limit,
    find_seed_masks,
    measure_best_ious,
    measure_similarity,
)
from instancezoo.layers.nms import greedy_mask_nms, pack_masks
from instancezoo.metric.losses import seed_loss
from instancezoo.metric.seeds import find_best_class, rate_pixels
from instancezoo.metric.targets import label_points

from .fixtures import Fixture

STATED = {"float64": 1e-9, "float32": 1e-4, "indices": "exact in float64", "masks": "2e-5"}
SCALES = (1, 3, 6)  # of the embedding, so that each term of the discriminative loss is active
# The discriminative loss's margins and weights, which the fixture states in words.
PULL_MARGIN, PUSH_MARGIN, WEIGHTS = 0.5, 1.5, (1, 1, 0.001)


class MetricParity:
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "similarity",
        "embedding_losses",
        "seed_targets",
        "seed_loss",
        "seeds",
        "masks",
        "masks_in_single_precision",
        "mask_nms",
        "discriminative_loss",
        "mean_shift",
    )

    def __init__(self, fixture: Fixture) -> None:
        fixture.check_stated(STATED)
        self.fixture, self.arrays = fixture, fixture.arrays
        self.config = fixture.spec["config"]
        self.device = find_double_device(torch.device("cpu"))

    def check_similarity(self) -> None:
        chosen = self.embeddings[:, self.points].T
        squares = (chosen[:, None] - chosen).square().sum(dim=2)
        self._check("similarity", measure_similarity(squares))

    def check_embedding_losses(self) -> None:
        owners = self.labels[self.points] - 1
        sizes = self.labels.bincount()[1:][owners]
        for pair_weight in ("sum", "product"):
            chosen = self.embeddings[:, self.points].T
            loss = embedding_loss(chosen, owners, sizes, pair_weight=pair_weight)
            # The paper's factor 1 / S on top of weights whose sum is 1.
            self._check(f"loss_embed_{pair_weight}", loss / len(chosen))

    def check_seed_targets(self) -> None:
        ious, objects = self._measure_ious()
        self._check("seed_iou", ious)
        targets = label_points(ious, objects, self._classes(), self.config["iou_pos"])
        self.fixture.check_exact("seed_target", targets)

    def check_seed_loss(self) -> None:
        targets = torch.from_numpy(self.arrays["seed_target"])
        logits = self._logits()[:, :, self.points]  # (T, C + 1, S)
        self._check("loss_seed", seed_loss(logits.movedim(2, 1), targets))

    def check_seeds(self) -> None:
        seediness = rate_pixels(self._logits())
        self._check("seediness", seediness.view(self.arrays["seediness"].shape))
        seeds = choose_seeds(
            self.embeddings,
            seediness,
            alpha=self.config["alpha"],
            max_seeds=self.config["max_seeds"],
            min_objective=self.config["stop_when_objective_below_log_of"],
        )
        self.fixture.check_exact("seeds", seeds.pixels)
        self._check("seed_objective", seeds.objectives)

    def check_masks(self) -> None:
        tau, classes, scores = find_best_class(self._logits()[:, :, self._seeds()])
        self.fixture.check_exact("seed_tau", tau)
        self.fixture.check_exact("seed_class", classes)
        self._check("seed_score", scores)
        masks = find_seed_masks(self.embeddings, self._seeds(), self._wrap(self.limits)[tau])
        np.testing.assert_array_equal(masks.view(-1, *self.size), self._masks())

    def check_masks_in_single_precision(self) -> None:
        limits = torch.tensor(self.limits)[torch.from_numpy(self.arrays["seed_tau"])]
        masks = find_seed_masks(self.embeddings.float(), self._seeds(), limits)
        exact = self.embeddings[:, self._seeds()].T[:, :, None] - self.embeddings
        similarity = measure_similarity(exact.square().sum(dim=1))
        taus = self._wrap(self.config["taus"])[torch.from_numpy(self.arrays["seed_tau"])]
        counted = (similarity - taus[:, None]).abs() >= float(STATED["masks"])
        expected = torch.from_numpy(self._masks()).flatten(1)
        assert counted.any() and ((masks == expected) | ~counted).all()

    def check_mask_nms(self) -> None:
        order = self._read("seed_score").argsort(descending=True, stable=True)
        packed = pack_masks(torch.from_numpy(self._masks())[order])
        kept = greedy_mask_nms(packed, torch.zeros_like(order), self.config["mask_nms"])
        self.fixture.check_exact("keep", order[kept])

    def check_discriminative_loss(self) -> None:
        inside = self.labels.nonzero().squeeze(1)
        owners = self.labels[inside] - 1
        for scale in SCALES:
            terms = discriminative_terms(
                scale * self.embeddings[:, inside].T,
                owners,
                torch.zeros_like(owners),
                pull_margin=PULL_MARGIN,
                push_margin=PUSH_MARGIN,
            )
            total = sum(weight * term for weight, term in zip(WEIGHTS, terms, strict=True))
            self._check(f"discriminative_x{scale}", torch.stack([*terms, total]))

    def check_mean_shift(self) -> None:
        inside = self.labels.nonzero().squeeze(1)
        found = cluster_mean_shift(
            self.embeddings[:, inside],
            bandwidth=self.config["meanshift_bandwidth"],
            min_size=1,
            max_clusters=len(inside),
            max_misses=1,
        )
        labels = torch.zeros_like(self.labels)
        labels[inside] = found.labels
        self.fixture.check_exact("meanshift_labels", labels.view(self.size))

    @property
    def size(self) -> tuple[int, ...]:
        return self.arrays["labels"].shape

    @property
    def embeddings(self) -> Tensor:
        return self._read("embedding").flatten(1)  # (D, P)

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.arrays["labels"]).long().flatten()  # (P,)

    @property
    def points(self) -> Tensor:
        return torch.from_numpy(self.arrays["points"])

    @property
    def limits(self) -> list[float]:
        return [find_limit(threshold) for threshold in self.config["taus"]]

    def _measure_ious(self) -> tuple[Tensor, Tensor]:
        return measure_best_ious(self.embeddings, self.points, self.labels, self.limits)

    def _classes(self) -> Tensor:
        return torch.from_numpy(self.arrays["classes"])

    def _logits(self) -> Tensor:
        return self._read("seed_logits").flatten(2)  # (T, C + 1, P)

    def _seeds(self) -> Tensor:
        return torch.from_numpy(self.arrays["seeds"])

    def _masks(self) -> np.ndarray:
        return self.fixture.unpack_masks("seed_masks", *self.size)

    def _read(self, name: str) -> Tensor:
        return self._wrap(self.arrays[name])

    def _wrap(self, values: object) -> Tensor:
        return torch.as_tensor(values).to(self.device, torch.double)

    def _check(self, name: str, got: Tensor) -> None:
        assert got.dtype == torch.double
        tolerance = self.fixture.spec["tolerance"]["float64"]
        np.testing.assert_allclose(
            got.detach().numpy(), self.arrays[name], rtol=0, atol=tolerance, err_msg=name
        )
