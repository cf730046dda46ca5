"""Deep watershed transform (Bai and Urtasun, arXiv 1611.08303).

Legend: N images, K classes, B energy levels, M segments, H W size of the padded batch, h w size of
an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.owners import average_by_owner
from instancezoo.modeling.grouping import BottomUpSegmenter, ClassifiedSegments, Segments
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps, semantic_loss

from .build import read_arguments
from .cut import CutSettings, cut_levels
from .head import WatershedHead, WatershedMaps
from .losses import direction_loss, energy_loss
from .networks import scale_to_unit
from .semantics import PredictedSemantics
from .targets import DepthMaps, measure_depths


@dataclass(frozen=True)
class TrainingSettings:
    """What is trained, and on what; keys of MODEL.DWT of the same meaning.

    Attributes:
        losses: of "sem_seg", "direction", "energy".
        weights: of the losses, by these names.
        gt_semantics_iters: iterations in which the direction network gets true classes, -1 for all.
        gt_directions_iters: iterations in which the energy network gets true directions, -1 for
            all.
        edges: distances in pixels above which each of B levels starts.
        level_weights: B factors of the energy loss.
        min_area: pixels of the smallest object that is learned from.
    """

    losses: tuple[str, ...]
    weights: dict[str, float]
    gt_semantics_iters: int
    gt_directions_iters: int
    edges: tuple[float, ...]
    level_weights: tuple[float, ...]
    min_area: int


@dataclass(frozen=True)
class WatershedTargets:
    """Painted objects of a batch, and what the networks learn of them."""

    objects: ObjectMaps
    depths: DepthMaps


@META_ARCH_REGISTRY.register()
class DeepWatershed(BottomUpSegmenter[WatershedMaps, WatershedTargets]):
    """Finds the energy of each pixel, high inside objects, and cuts at one level.

    Args:
        training_settings: what is trained. What no loss reaches is frozen.
        cut: how levels become objects.
        kwargs: those of `BottomUpSegmenter`.
    """

    head: WatershedHead

    @configurable
    def __init__(
        self,
        *,
        training_settings: TrainingSettings,
        cut: CutSettings,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.training_settings = training_settings
        self.cut = cut
        for part in self._find_unused():
            part.requires_grad_(False)
        self.train()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = read_arguments(cfg, super().from_config(cfg))
        node = cfg.MODEL.DWT
        return {
            **arguments,
            "training_settings": TrainingSettings(
                losses=tuple(node.LOSSES),
                weights={
                    "sem_seg": node.SEM_SEG_LOSS_WEIGHT,
                    "direction": node.DIRECTION_LOSS_WEIGHT,
                    "energy": node.ENERGY_LOSS_WEIGHT,
                },
                gt_semantics_iters=node.GT_SEMANTICS_ITERS,
                gt_directions_iters=node.GT_DIRECTIONS_ITERS,
                edges=tuple(node.EDGES),
                level_weights=tuple(node.LEVEL_WEIGHTS),
                min_area=node.MIN_INSTANCE_AREA,
            ),
        }

    def _find_unused(self) -> list[nn.Module]:
        """Parts that no loss reaches."""
        settings, head = self.training_settings, self.head
        learns_directions = "direction" in settings.losses or (
            "energy" in settings.losses and settings.gt_directions_iters >= 0
        )
        unused: list[nn.Module] = []
        if "sem_seg" not in settings.losses:
            unused += [self.backbone, head.semantics]
        if not learns_directions:
            unused += [head.class_channels, head.direction_net]
        if "energy" not in settings.losses:
            unused.append(head.energy_net)
        return unused

    def train(self, mode: bool = True) -> DeepWatershed:
        """Switch training on or off; frozen parts keep the statistics of their norms."""
        super().train(mode)
        for part in self._find_unused():
            part.eval()
        return self

    def _run(self, batched_inputs: list[dict[str, Any]]) -> tuple[ImageList, WatershedMaps]:
        images = self.preprocess(batched_inputs)
        features = self.backbone(images.tensor)
        outputs = self.head([features[name] for name in self.in_features], images, batched_inputs)
        return images, outputs

    def assign(
        self, outputs: WatershedMaps, images: ImageList, ground_truth: list[Instances]
    ) -> WatershedTargets:
        """Objects and their depths on the padded batch; crowds and padding are ignored."""
        objects = self.paint(images, ground_truth)
        settings = self.training_settings
        depths = measure_depths(
            objects.ids,
            edges=settings.edges,
            min_area=settings.min_area,
            sizes=images.image_sizes,
        )
        return WatershedTargets(objects, depths)

    def losses(self, outputs: WatershedMaps, targets: WatershedTargets) -> dict[str, Tensor]:
        """`loss_sem_seg`, `loss_direction` and `loss_energy`, those that are trained."""
        settings, depths = self.training_settings, targets.depths
        losses: dict[str, Tensor] = {}
        if "sem_seg" in settings.losses:
            losses["sem_seg"] = self._compare_classes(outputs, targets.objects.classes)
        classes = self._choose_classes(outputs, targets.objects.classes)
        is_thing = self.head.find_things(classes)
        uses_truth = self._is_early(settings.gt_directions_iters)
        directions = None
        if "direction" in settings.losses or not uses_truth:
            directions = self.head.find_directions(outputs.images, classes)
        if "direction" in settings.losses and directions is not None:
            losses["direction"] = direction_loss(
                directions, depths.directions, is_thing, depths.weights
            )
        if "energy" in settings.losses:
            if directions is None or uses_truth:
                directions = scale_to_unit(depths.directions) * is_thing[:, None]
            losses["energy"] = energy_loss(
                self.head.energy_net(directions, is_thing),
                depths.levels,
                is_thing,
                depths.weights,
                settings.level_weights,
            )
        zero = zero_of_parameters(self)  # of what is frozen, too: it has no gradient
        return {
            f"loss_{name}": settings.weights[name] * loss + zero for name, loss in losses.items()
        }

    def _compare_classes(self, outputs: WatershedMaps, classes: Tensor) -> Tensor:
        assert isinstance(outputs.semantics, PredictedSemantics)  # see `check_dwt_config`
        return semantic_loss(outputs.semantics.enlarge(), classes)

    def _choose_classes(self, outputs: WatershedMaps, truth: Tensor) -> Tensor:
        """Classes (N, H, W) that the direction network gets; `truth` has K and `IGNORED`."""
        if self._is_early(self.training_settings.gt_semantics_iters):
            return truth.where(truth != IGNORED, self.num_classes)
        return outputs.semantics.find_classes()

    def _is_early(self, num_iters: int) -> bool:
        """Return True in the first iterations, for -1 in all."""
        if num_iters < 0:
            return True
        return has_event_storage() and get_event_storage().iter < num_iters

    def predict_classes(self, maps: WatershedMaps, index: int, grid: tuple[int, int]) -> Tensor:
        """Probabilities of the semantics, (K + 1, h, w)."""
        return maps.semantics.find_probs(index)

    def group(self, maps: WatershedMaps, index: int, grid: tuple[int, int]) -> ClassifiedSegments:
        """Cut the energy levels of an image."""
        height, width = grid
        assert maps.level_logits is not None and maps.classes is not None  # in inference
        levels = maps.level_logits[index, :, :height, :width].argmax(dim=0)
        classes = maps.classes[index, :height, :width]
        painted, owners = cut_levels(levels, classes, self.cut)
        # Those that are painted over completely have no pixel.
        present, labels = torch.cat([painted.new_zeros(1), painted.flatten()]).unique(
            return_inverse=True
        )
        labels = labels[1:].view(grid)
        cells = labels.flatten().nonzero().squeeze(1)
        confidences = torch.ones(len(present) - 1, device=labels.device)
        numbers = labels.flatten()[cells] - 1
        return ClassifiedSegments(numbers, cells, grid, confidences, owners[present[1:] - 1])

    def describe(
        self, maps: WatershedMaps, index: int, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        """The classes that were cut, and their mean probabilities."""
        assert isinstance(segments, ClassifiedSegments)
        probs = self.predict_classes(maps, index, segments.grid).flatten(1)
        at_cells = probs[segments.classes[segments.owners], segments.cells]
        return segments.classes, average_by_owner(at_cells, segments.owners, len(segments))
