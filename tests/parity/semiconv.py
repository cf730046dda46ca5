"""Semi-convolutional embeddings against the fixture of the formulas, in double precision.

No weights were ever published: there is no checkpoint, and each stage starts from stored arrays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from instancezoo.layers.clustering import cluster_k_means, group_greedily
from instancezoo.layers.double import find_double_device
from instancezoo.layers.semiconv import (
    add_coordinates,
    colouring_loss,
    find_radius,
    find_seeds,
    kernel_loss,
    measure_exponents,
    refine_mask_logits,
)
from instancezoo.semiconv.head import Coordinates, SemiConvHead

from .fixtures import Fixture

STATED = {"float64": 1e-9, "float32": 1e-4, "labels": "exact in float64"}
LEVELS = {0: 8, 1: 16}  # number of a stored level -> its stride
# Arrays that the fixture stores in single precision
SINGLE = torch.finfo(torch.float32).eps


class SemiConvParity:
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "network",
        "coordinates",
        "colouring_loss",
        "kernels",
        "greedy",
        "k_means",
        "seeds",
        "similarities",
        "region_losses",
        "region_gradients",
    )

    def __init__(self, fixture: Fixture) -> None:
        fixture.check_stated(STATED)
        self.fixture, self.arrays = fixture, fixture.arrays
        self.config = fixture.spec["config"]
        self.device = find_double_device(torch.device("cpu"))

    def check_network(self) -> None:
        head = SemiConvHead(
            in_channels=256,
            hidden_channels=256,
            embed_dim=self.config["D"],
            strides=list(LEVELS.values()),
            coordinates=Coordinates(mode="image", unit=self.config["coord_unit"]),
        ).to(self.device, torch.double)
        state = self.fixture.make_state()
        head.load_state_dict({n.removeprefix("semiconv_head."): t for n, t in state.items()})
        maps = [self._read(f"head_in_{level}")[None] for level in LEVELS]
        with torch.no_grad():
            embeddings = head(maps)
            for level, (psi, features) in enumerate(zip(embeddings, maps, strict=True)):
                self._check(f"head_psi_{level}", psi[0])
                self._check(f"head_phi_{level}", head.embed(head.hidden(features).relu())[0])

    def check_coordinates(self) -> None:
        for mode in ("image", "index"):
            self._check(f"psi_{mode}", self._embed(self._read("phi")[None], mode)[0])

    def check_colouring_loss(self) -> None:
        y, x = self.labels.nonzero(as_tuple=True)
        owners = self.labels[y, x] - 1
        assert owners.bincount().min() == 1  # an object of one pixel, at distance 0
        for mode in ("image", "index"):
            phi = self._read("phi")[None].requires_grad_()
            colours = self._embed(phi, mode)[0, :, y, x].T
            loss = colouring_loss(colours, owners, int(owners.max()) + 1, reduction="sum")
            self._check(f"loss_{mode}", loss)
            (gradient,) = torch.autograd.grad(loss, phi)
            self._check(f"grad_{mode}", gradient[0], SINGLE)

    def check_kernels(self) -> None:
        psi = self._read("psi_image").flatten(1)
        differences = psi[:, self.arrays["pair_u"]] - psi[:, self.arrays["pair_v"]]
        for kernel, sigma in (("laplacian", self.config["colouring_sigma"]), ("gaussian", 1.0)):
            log_sigma = self._wrap(sigma).log()
            exponents = measure_exponents(differences, log_sigma, dim=0, kernel=kernel)
            self._check(f"kernel_{kernel}", (-exponents).exp())

    def check_greedy(self) -> None:
        settings = self.config["greedy"]
        scores = self._read("fg_score").flatten()
        pixels = (scores >= settings["t_fg"]).nonzero().squeeze(1)
        found = group_greedily(
            self._read("psi_image").flatten(1)[:, pixels],
            scores[pixels],
            radius=find_radius(self.config["colouring_sigma"], settings["t_member"], "laplacian"),
            seed_thresh=settings["t_seed"],
            num_shifts=settings["n_shift"],
            min_size=settings["min_size"],
            max_clusters=100,
            max_misses=len(pixels),
        )
        labels = torch.zeros_like(self.labels).flatten()
        labels[pixels] = found.labels
        width = self.labels.shape[1]
        seeds = torch.stack([pixels[found.seeds] // width, pixels[found.seeds] % width], dim=1)
        self.fixture.check_exact("greedy_labels", labels.view_as(self.labels))
        self.fixture.check_exact("greedy_seeds", seeds)
        self.fixture.check_exact("greedy_sizes", labels.bincount()[1:])
        self._check("greedy_centres", found.centres)

    def check_k_means(self) -> None:
        pixels = self.labels.flatten().nonzero().squeeze(1)
        psi = self._read("psi_image").flatten(1)[:, pixels]
        found = cluster_k_means(psi, self._read("kmeans_init"))
        self.fixture.check_exact("kmeans_assign", found.labels - 1)
        self._check("kmeans_centres", found.centres)

    def check_seeds(self) -> None:
        for seed in ("soft", "hard"):
            found = find_seeds(self._logits(), self._read("roi_psi"), seed=seed)
            self._check(f"roi_seed_{seed}", found)

    def check_similarities(self) -> None:
        for seed in ("soft", "hard"):
            refined, exponents = self._refine(self._read("roi_psi"), self._log_sigma(), seed)
            self._check(f"roi_kernel_{seed}", (-exponents).exp(), SINGLE)
            self._check(f"roi_prob_{seed}", refined.sigmoid(), SINGLE)

    def check_region_losses(self) -> None:
        for seed in ("soft", "hard"):
            losses = self._losses(self._read("roi_psi"), self._log_sigma(), seed)
            for name, loss in zip(("mask", "kernel"), losses, strict=True):
                self._check(f"roi_loss_{name}_{seed}", loss)

    def check_region_gradients(self) -> None:
        psi, log_sigma = self._read("roi_psi").requires_grad_(), self._log_sigma().requires_grad_()
        losses = self._losses(psi, log_sigma, "soft")
        gradients = [torch.autograd.grad(x, (psi, log_sigma), retain_graph=True) for x in losses]
        chosen = [by_psi.flatten()[self.arrays["roi_grad_where"]] for by_psi, _ in gradients]
        self._check("roi_grad_psi", torch.stack(chosen, dim=1))
        self._check("roi_grad_log_sigma", torch.stack([by_sigma for _, by_sigma in gradients]))

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.arrays["labels"]).long()

    def _embed(self, phi: Tensor, mode: str) -> Tensor:
        stride, unit = self.config["colouring_stride"], self.config["coord_unit"]
        return add_coordinates(phi, stride=stride, unit=unit, mode=mode)

    def _losses(self, psi: Tensor, log_sigma: Tensor, seed: str) -> tuple[Tensor, Tensor]:
        side = self.config["roi_size"]
        targets = torch.from_numpy(self.fixture.unpack_masks("roi_gt", side, side))
        refined, exponents = self._refine(psi, log_sigma, seed)
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
        return cross_entropy(refined, targets.to(refined)), kernel_loss(exponents, targets).mean()

    def _refine(self, psi: Tensor, log_sigma: Tensor, seed: str) -> tuple[Tensor, Tensor]:
        return refine_mask_logits(self._logits(), psi, log_sigma, seed=seed, kernel="laplacian")

    def _logits(self) -> Tensor:
        """Logits of each region's class."""
        classes = self.arrays["roi_classes"]
        return self._read("roi_logits")[np.arange(len(classes)), classes]

    def _log_sigma(self) -> Tensor:
        return self._read("roi_log_sigma")

    def _read(self, name: str) -> Tensor:
        return self._wrap(self.arrays[name])

    def _wrap(self, values: object) -> Tensor:
        return torch.as_tensor(values).to(self.device, torch.double)

    def _check(self, name: str, got: Tensor, relative: float = 0.0) -> None:
        assert got.dtype == torch.double
        np.testing.assert_allclose(
            got.detach().numpy(),
            self.arrays[name],
            rtol=relative,
            atol=self.fixture.spec["tolerance"]["float64"],
            err_msg=name,
        )
