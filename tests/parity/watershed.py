"""Deep watershed against arrays of the official code: networks, targets, losses, cut."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor

from instancezoo import model_zoo
from instancezoo.checkpoint import convert_state_dict
from instancezoo.watershed.cut import cut_levels
from instancezoo.watershed.losses import direction_loss, energy_loss
from instancezoo.watershed.targets import DepthMaps, find_levels, measure_depths

from .fixtures import Fixture, seeded_weights

STATED = {"cut_ids": "exact", "direction": 1e-3, "logits": 2e-3, "losses": 1e-4}
# The fixture's classes from 1 on, by our numbers, which are Cityscapes' in Detectron2
NAMES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
THEIRS = ("person", "rider", "motorcycle", "bicycle", "car", "truck", "bus", "train")
UNCLEAR = 1e-3  # difference of the two best logits below which the level is not compared
TARGETS = 1e-5  # single precision


class WatershedParity:
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "checkpoint",
        "settings",
        "input",
        "raw_directions",
        "directions",
        "logits",
        "levels",
        "targets",
        "bins",
        "losses",
        "cut",
    )

    def __init__(self, fixture: Fixture) -> None:
        fixture.check_stated(STATED)
        self.fixture, self.arrays = fixture, fixture.arrays
        self.tolerance, self.config = fixture.spec["tolerance"], fixture.spec["config"]
        self.state = fixture.make_state()
        self.converted = convert_state_dict(self.state)
        overrides = ["MODEL.DEVICE", "cpu"]
        self.cfg = model_zoo.get_config(self.converted.layout.config, overrides)
        self.model: Any = build_model(self.cfg).eval()
        self.model.load_state_dict(self.converted.state, strict=True)

    def check_checkpoint(self) -> None:
        converted = self.converted
        assert len(converted.used) == len(self.state) == 70
        assert not converted.unused and not converted.unknown
        assert converted.state.keys() == self.model.state_dict().keys()

    def check_settings(self) -> None:
        cut, codes = self.model.cut, self.model.head.class_channels.table.flatten().tolist()
        for number, name in enumerate(NAMES):
            assert cut.levels[number] == self.config["cut"][name]
            assert cut.min_sizes[number] == self.config["min_size"][name]
            assert codes[number] == self.fixture.spec["input"]["codes"][name]
        assert codes[-1] == -128
        assert [NAMES[number] for number in cut.paint_order] == self.config["paint_order"]
        assert cut.hole_area == self.config["hole_area"]
        settings = self.model.training_settings
        assert [*map(str, settings.edges), "inf"] == [*map(str, self.config["edges"])]
        assert list(settings.level_weights) == self.config["class_scale"]

    def check_input(self) -> None:
        """The words of the fixture, by hand."""
        seed = self.fixture.spec["seed"]
        image = seeded_weights.seeded_image(*self.size, seed=seed)
        theirs = self.arrays["classes"]
        mean = np.array([123.68, 116.779, 103.939], np.float32)[:, None, None]
        codes = [-128, *(self.fixture.spec["input"]["codes"][name] for name in THEIRS)]
        expected = np.concatenate([(image - mean) * (theirs > 0), np.array(codes)[theirs][None]])
        inputs = self.model.head.class_channels(self.images.tensor, self.classes)
        np.testing.assert_allclose(inputs[0].numpy(), expected, rtol=1e-6, atol=1e-4)

    def check_raw_directions(self) -> None:
        inputs = self.model.head.class_channels(self.images.tensor, self.classes)
        with torch.no_grad():
            raw = self.model.head.direction_net.find_raw(inputs)[0].numpy()
        size = np.abs(self.arrays["fuse"]).max()
        limit = self.tolerance["direction"]
        np.testing.assert_allclose(raw, self.arrays["fuse"], rtol=limit, atol=limit * size)

    def check_directions(self) -> None:
        self._check("direction", self.maps.directions[0], self.tolerance["direction"])

    def check_logits(self) -> None:
        found = self.maps.level_logits[0, :, ::2, ::2]
        self._check("logits", found, self.tolerance["logits"])

    def check_levels(self) -> None:
        clear = self.arrays["level_margin"] > UNCLEAR
        clear |= self.arrays["classes"] == 0
        found = self.maps.level_logits[0].argmax(dim=0).numpy()
        np.testing.assert_array_equal(found[clear], self.arrays["level_pred"][clear])

    def check_targets(self) -> None:
        self._check("depth_gt", self.targets.depths[0], TARGETS)
        self._check("dir_gt", self.targets.directions[0], TARGETS)
        self._check("weight_gt", self.targets.weights[0], TARGETS)
        self.fixture.check_exact("level_gt", self.targets.levels[0])

    def check_bins(self) -> None:
        found = find_levels(torch.from_numpy(self.arrays["bin_in"]), self.settings.edges)
        self.fixture.check_exact("bin_out", found)

    def check_losses(self) -> None:
        is_thing, targets = self.model.head.find_things(self.classes), self.targets
        loss = direction_loss(self.maps.directions, targets.directions, is_thing, targets.weights)
        self._check_loss("loss_direction", loss)
        weights = self.settings.level_weights
        logits = self.maps.level_logits
        loss = energy_loss(logits, targets.levels, is_thing, targets.weights, weights)
        self._check_loss("loss_energy", loss)

    def check_cut(self) -> None:
        levels = torch.from_numpy(self.arrays["cut_level"]).long()
        painted, owners = cut_levels(levels, self._read_classes("cut_class"), self.model.cut)
        found, counts = [0], dict.fromkeys(THEIRS, 0)
        for number in owners.tolist():
            name = NAMES[number]
            counts[name] += 1
            found.append(1000 * (THEIRS.index(name) + 1) + counts[name])
        self.fixture.check_exact("cut_ids", torch.tensor(found)[painted])

    @property
    def settings(self) -> Any:
        return self.model.training_settings

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.arrays["classes"].shape
        return height, width

    @cached_property
    def classes(self) -> Tensor:
        return self._read_classes("classes")[None]

    @cached_property
    def record(self) -> dict[str, Any]:
        """The model's input with a map of Cityscapes' numbers."""
        image = seeded_weights.seeded_image(*self.size, seed=self.fixture.spec["seed"])
        labels = torch.tensor([*self.cfg.MODEL.DWT.SEMANTIC_LABELS, 0])
        return {"image": torch.from_numpy(image), "sem_seg": labels[self.classes[0]]}

    @cached_property
    def images(self) -> ImageList:
        return self.model.preprocess([self.record])

    @cached_property
    def maps(self) -> Any:
        with torch.no_grad():
            _, maps = self.model._run([self.record])
        return maps

    @cached_property
    def targets(self) -> DepthMaps:
        ids = torch.from_numpy(self.arrays["labels"]).long()[None]
        min_area = self.config["min_instance_area"]
        return measure_depths(ids, edges=self.settings.edges, min_area=min_area)

    def _read_classes(self, name: str) -> Tensor:
        """A map of theirs, 0 for the background -> ours, the background last."""
        ours = [len(NAMES), *(NAMES.index(name) for name in THEIRS)]
        return torch.tensor(ours)[torch.from_numpy(self.arrays[name]).long()]

    def _check(self, name: str, got: Tensor, limit: float) -> None:
        np.testing.assert_allclose(got.numpy(), self.arrays[name], rtol=0, atol=limit, err_msg=name)

    def _check_loss(self, name: str, got: Tensor) -> None:
        expected = self.arrays[name].item()
        limit = self.tolerance["losses"]
        np.testing.assert_allclose(got.item(), expected, rtol=limit, err_msg=name)
