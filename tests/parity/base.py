"""What parity checks share: the fixture, our model with its weights, its images, comparisons."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from instancezoo import model_zoo
from instancezoo.checkpoint import convert_state_dict

from .fixtures import Fixture, seeded_weights

# The tolerance of intermediate maps that most fixtures state: "abs 2e-3 + rel 1e-3".
MAP_ABSOLUTE, MAP_RELATIVE, LOSSES = 2e-3, 1e-3, 1e-3


class ParityBase:
    """One fixture; a subclass adds one `check_*` per stage, in the order of computation.

    The published weights go through the converter into the model of the config that their layout
    names.
    """

    stages: ClassVar[tuple[str, ...]]
    # Tolerances that the fixture must state: see `Fixture.check_stated`
    stated: ClassVar[dict[str, Any]]
    # Config values in which the fixture differs from the shipped config
    overrides: ClassVar[tuple[Any, ...]] = ()
    # Endings of the published names that the model has no use for
    unused: ClassVar[tuple[str, ...]] = ()
    # Images have the fixture's image_seed, image_seed + 1, ...
    num_images: ClassVar[int] = 1
    preprocess: ClassVar[str] = "preprocess"

    def __init__(self, fixture: Fixture) -> None:
        fixture.check_stated(self.stated)
        self.fixture, self.arrays, self.source = fixture, fixture.arrays, fixture.spec["input"]
        self.state = fixture.make_state()
        self.converted = convert_state_dict(self.state)
        self.cfg = self._make_cfg()
        self.model = self._build()

    def check_checkpoint(self) -> None:
        converted = self.converted
        assert not converted.unknown
        assert len(converted.used) + len(converted.unused) == len(self.state)
        assert all(name.endswith(self.unused) for name in converted.unused)
        assert converted.state.keys() == self.model.state_dict().keys()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the network's input before padding."""
        return tuple(self.source["img_shape_hw"])

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the final masks."""
        return tuple(self.source["ori_shape_hw"])

    @cached_property
    def batch(self) -> list[dict[str, Any]]:
        """The model's input, without ground truth."""
        height, width = self.output_size
        images = [self._make_image(index) for index in range(self.num_images)]
        return [{"image": image, "height": height, "width": width} for image in images]

    @cached_property
    def images(self) -> Any:
        return getattr(self.model, self.preprocess)(self.batch)

    @cached_property
    def features(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.model.backbone(self.images.tensor)

    def _make_cfg(self) -> Any:
        overrides = ["MODEL.DEVICE", "cpu", *self.overrides]
        return model_zoo.get_config(self.converted.layout.config, overrides)

    def _build(self, *overrides: Any) -> Any:
        """The model with the fixture's weights, in inference mode."""
        cfg = self.cfg.clone()
        cfg.merge_from_list(list(overrides))
        model = build_model(cfg).eval()
        model.load_state_dict(self.converted.state, strict=True)
        return model

    def _make_image(self, index: int) -> Tensor:
        """(3, H, W), float32 in [0, 255], in the channel order of the config."""
        seed = self.source["image_seed"] + index
        image = seeded_weights.seeded_image(*self.image_size, seed=seed)  # BGR
        return torch.from_numpy(image if self.cfg.INPUT.FORMAT == "BGR" else image[::-1].copy())

    def _detect(self, model: Any) -> Instances:
        """Final detections in the first image."""
        with torch.no_grad():
            return model(self.batch[:1])[0]["instances"]

    def _make_instances(
        self, size: tuple[int, int], boxes: np.ndarray, classes: np.ndarray, masks: np.ndarray
    ) -> Instances:
        """Ground truth of one image."""
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.from_numpy(classes)
        instances.gt_masks = BitMasks(torch.from_numpy(masks))
        return instances

    def _check_map(
        self, name: str, got: Tensor, atol: float = MAP_ABSOLUTE, share: float = 1.0
    ) -> None:
        """Compare with a stored map; at least `share` of the entries must agree."""
        expected, found = self.arrays[name], got.detach().numpy()
        assert found.shape == expected.shape, (name, found.shape, expected.shape)
        close = np.isclose(found, expected, rtol=MAP_RELATIVE, atol=atol)
        worst = np.abs(found - expected).max(initial=0)
        assert close.mean() >= share, f"{name}: {close.mean():.4f} agree, worst {worst:.3g}"

    def _check_close(self, name: str, got: Tensor, limit: float) -> None:
        np.testing.assert_allclose(got.numpy(), self.arrays[name], rtol=0, atol=limit, err_msg=name)

    def _check_relative(self, name: str, got: Tensor) -> None:
        expected = self.arrays[name].item()
        np.testing.assert_allclose(got.item(), expected, rtol=LOSSES, err_msg=name)
