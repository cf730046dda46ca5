"""FCOS against the fixture of the official code."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .base import LOSSES, ParityBase

# What the fixture states, in numbers.
SCORES, BOXES, TARGETS = 5e-4, 0.05, 1e-5
STATED = {
    "features, logits, raw": "abs 2e-3 + rel 1e-3",
    "scores": SCORES,
    "boxes": "abs 0.05 px",
    "losses": "rel 1e-3",
    "labels, pos, pos_gt": "exact",
    "pos_reg, pos_ctr": "abs 1e-5",
}
# prefix in the fixture -> config of the variant
LOSS_VARIANTS = {
    "b1": [],
    "b1_iouq": ["MODEL.FCOS.BOX_QUALITY", "iou"],
    "b1_iou": ["MODEL.FCOS.LOC_LOSS_TYPE", "iou"],
    "b1_lin": ["MODEL.FCOS.LOC_LOSS_TYPE", "linear_iou"],
    "b1_nocs": ["MODEL.FCOS.CENTER_SAMPLE", False],
    "b1_mask": [],
    "b1_moving": ["MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg"],
    "b2": [],
    "b2e": [],
    "none": [],
}
DETECTION_VARIANTS = {
    "det": [],
    "thctr": ["MODEL.FCOS.THRESH_WITH_CTR", True],
    "topk": ["MODEL.FCOS.PRE_NMS_TOPK_TEST", 15, "MODEL.FCOS.POST_NMS_TOPK_TEST", 10],
}
NUM_LEVELS = 5


class FCOSParity(ParityBase):
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = ("checkpoint", "features", "head", "targets", "losses", "gradients", "detections")
    stated = STATED
    num_images = 2

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(self.source["out_shape_hw"])

    def check_features(self) -> None:
        with torch.no_grad():
            stages = self.model.backbone.bottom_up(self._backbone_call[0][:1])
        for level in (3, 4, 5):
            self._check_map(f"res{level}_s", stages[f"res{level}"][0, ::16, ::2, ::2])
        for level in range(3, 8):
            step = 2 if level < 5 else 1
            self._check_map(f"p{level}_s", self._features(1)[f"p{level}"][0, ::8, ::step, ::step])

    def check_head(self) -> None:
        generator, raw_boxes = self.model.proposal_generator, []
        # A raw box is what the convolution gives, before scale and ReLU.
        hook = generator.fcos_head.bbox_pred.register_forward_hook(
            lambda module, inputs, output: raw_boxes.append(output)
        )
        outputs = self._predict(generator, 1)
        hook.remove()
        assert len(raw_boxes) == len(outputs.cls_logits) == NUM_LEVELS
        for level, scale in enumerate(self.arrays["scales"]):
            self._check_map(f"cls_logits_{level}", outputs.cls_logits[level][0])
            self._check_map(f"ctr_logits_{level}", outputs.quality_logits[level][0])
            self._check_map(f"bbox_raw_{level}", raw_boxes[level][0])
            expected = (raw_boxes[level] * float(scale)).clamp(min=0)
            torch.testing.assert_close(outputs.distances[level], expected)

    def check_targets(self) -> None:
        for variant in ("b1", "b1_nocs", "b1_mask"):
            generator = self._build_generator(LOSS_VARIANTS[variant])
            outputs = self._predict(generator, 1)
            sizes = [logits[0, 0].numel() for logits in outputs.cls_logits]
            assert sizes == self.arrays["points_per_level"].tolist()
            targets = self._assign(generator, outputs, self._ground_truth(variant))
            self.fixture.check_exact(f"{variant}_labels", targets.classes[0])
            self.fixture.check_exact(f"{variant}_pos", targets.point)
            self.fixture.check_exact(f"{variant}_pos_gt", targets.instance)
            distances = targets.distances / targets.strides[:, None]
            self._check_close(f"{variant}_pos_reg", distances, TARGETS)
            self._check_close(f"{variant}_pos_ctr", targets.centerness, TARGETS)

    def check_losses(self) -> None:
        for variant, overrides in LOSS_VARIANTS.items():
            ground_truth = self._ground_truth(variant)
            generator = self._build_generator(overrides)
            outputs = self._predict(generator, len(ground_truth))
            losses = generator.losses(outputs, self._assign(generator, outputs, ground_truth))
            stored = {name for name in self.arrays if name.startswith(f"{variant}_loss_")}
            assert {f"{variant}_{name}" for name in losses} == stored
            for name, loss in losses.items():
                expected = self.arrays[f"{variant}_{name}"].item()
                np.testing.assert_allclose(loss.item(), expected, rtol=LOSSES, err_msg=variant)

    def check_gradients(self) -> None:
        generator = self._build_generator([])
        outputs = self._predict(generator, 1)
        maps = {
            "cls": outputs.cls_logits,
            "reg": outputs.distances,
            "ctr": outputs.quality_logits,
        }
        for levels in maps.values():
            for level in levels:
                level.requires_grad_()
        targets = self._assign(generator, outputs, self._ground_truth("b1"))
        losses = generator.losses(outputs, targets)
        sum(losses.values()).backward()
        for name, levels in maps.items():
            norm = torch.cat([level.grad.flatten() for level in levels]).norm()
            expected = self.arrays[f"b1_gradnorm_{name}"].item()
            np.testing.assert_allclose(norm.item(), expected, rtol=LOSSES, err_msg=name)

    def check_detections(self) -> None:
        for variant, overrides in DETECTION_VARIANTS.items():
            self.model.proposal_generator = self._build_generator(overrides)
            found = self._detect(self.model)
            assert found.image_size == self.output_size and not found.has("pred_masks")
            self.fixture.check_exact(f"{variant}_classes", found.pred_classes)
            self.fixture.check_exact(f"{variant}_levels", found.fpn_levels)
            self.fixture.check_exact(f"{variant}_locations", found.locations)
            self._check_close(f"{variant}_scores", found.scores, SCORES)
            self._check_close(f"{variant}_boxes", found.pred_boxes.tensor, BOXES)

    def _build_generator(self, overrides: list[Any]) -> Any:
        cfg = self.cfg.clone()
        cfg.merge_from_list(overrides)
        generator = build_proposal_generator(cfg, self.model.backbone.output_shape()).eval()
        prefix = "proposal_generator."
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.converted.state.items()
            if name.startswith(prefix)
        }
        mismatch = generator.load_state_dict(state, strict=False)
        assert not mismatch.unexpected_keys
        # A number that training counts anew, of one variant
        assert mismatch.missing_keys in ([], ["moving_num_foreground"])
        return generator

    @property
    def features(self) -> dict[str, Tensor]:
        return self._backbone_call[1]

    @cached_property
    def _backbone_call(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Padded images and their features: Detectron2's `ProposalNetwork` makes both inside."""
        calls: list[tuple[Tensor, dict[str, Tensor]]] = []
        hook = self.model.backbone.register_forward_hook(
            lambda module, inputs, output: calls.append((inputs[0], output))
        )
        with torch.no_grad():
            self.model(self.batch)
        hook.remove()
        return calls[0]

    def _features(self, count: int) -> dict[str, Tensor]:
        return {name: maps[:count] for name, maps in self.features.items()}

    def _predict(self, generator: Any, count: int) -> Any:
        with torch.no_grad():
            return generator.predict(self._features(count))

    def _assign(self, generator: Any, outputs: Any, ground_truth: list[Instances]) -> Any:
        tensor = self._backbone_call[0][: len(ground_truth)]
        images = ImageList(tensor, [instances.image_size for instances in ground_truth])
        return generator.assign(outputs, images, ground_truth)

    def _ground_truth(self, variant: str) -> list[Instances]:
        batch = [self._instances(i) for i in range(2 if variant.startswith("b2") else 1)]
        if variant in ("b2e", "none"):
            batch[-1] = batch[-1][:0]
        if variant == "b1_mask":
            batch[0].gt_bitmasks_full = self._masks(0)
        return batch

    def _instances(self, index: int) -> Instances:
        instances = Instances(self.image_size)
        instances.gt_boxes = Boxes(torch.from_numpy(self.arrays[f"gt{index}_boxes"]))
        instances.gt_classes = torch.from_numpy(self.arrays[f"gt{index}_classes"])
        return instances

    def _masks(self, index: int) -> Tensor:
        height, width = self.image_size
        masks = torch.from_numpy(self.fixture.unpack_masks(f"gt{index}_masks", height, width))
        rows, columns = self.source["padded_hw"]
        return nn.functional.pad(masks, (0, columns - width, 0, rows - height))
