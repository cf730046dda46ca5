"""PolarMask against the fixtures of the official code."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.borders import find_borders
from instancezoo.modeling.levels import flatten_levels

from .base import ParityBase

STATED = {
    "features, logits, raw": "abs 2e-3 + rel 1e-3",
    "scores": 0.0005,
    "boxes, polygons": "abs 0.05 px",
    "masks": "IoU >= 0.98",
    "losses": "rel 1e-3",
    "labels, pos, mass_centres": "exact",
    "pos_rays": "abs 1e-3",
    "pos_centerness": "abs 1e-5",
}
NUM_LEVELS = 5


class PolarMaskParity(ParityBase):
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "checkpoint",
        "config",
        "backbone",
        "pyramid",
        "head",
        "centers",
        "targets",
        "losses",
        "gradients",
        "detections",
        "polygon_boxes",
        "top_candidates",
        "masks",
    )
    stated = STATED
    overrides = ("INPUT.FIXED_SIZE", ())  # the images have another size than the published model's
    unused = ("num_batches_tracked",)
    num_images = 2

    def check_config(self) -> None:
        node, theirs = self.cfg.MODEL.POLARMASK, dict(self.fixture.spec["config"])
        assert "stride 2 in the first 1x1" in theirs.pop("backbone")
        assert self.cfg.MODEL.RESNETS.STRIDE_IN_1X1
        assert theirs.pop("neck").startswith("FPN on C3..C5, 256 ch")
        ours = {
            "num_classes": node.NUM_CLASSES,
            "rays": node.NUM_RAYS,
            "stacked_convs": node.NUM_CONVS,
            "feat_channels": self.cfg.MODEL.FPN.OUT_CHANNELS,
            "gn_groups": self.model.head.cls_tower[0].norm.num_groups,
            "strides": node.FPN_STRIDES,
            "regress_ranges": [list(limits) for limits in self.model.rules.points.size_ranges],
            "center_sample_radius": node.CENTER_RADIUS,
            "score_thr": node.SCORE_THRESH_TEST,
            "nms_iou": node.NMS_THRESH_TEST,
            "nms_pre": node.TOPK_CANDIDATES_TEST,
            "max_per_img": self.cfg.TEST.DETECTIONS_PER_IMAGE,
            "centerness_offset": node.CENTERNESS_OFFSET,
            "focal_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_gamma": node.FOCAL_LOSS_GAMMA,
        }
        assert ours == theirs
        pixels = self.cfg.MODEL.PIXEL_MEAN, self.cfg.MODEL.PIXEL_STD, self.cfg.INPUT.FORMAT
        assert pixels == (self.source["mean_bgr"], self.source["std"], "BGR")

    def check_backbone(self) -> None:
        assert list(self.images.tensor.shape[2:]) == self.source["pad_shape_hw"]
        bottom_up = self.model.backbone.bottom_up
        features = bottom_up.stem(self.images.tensor)
        for level, stage in enumerate(bottom_up.stages, start=2):
            features = stage(features)
            self._check_map(f"c{level}_s", features[0, ::16, ::2, ::2])

    def check_pyramid(self) -> None:
        for level, features in enumerate(self.pyramid, start=3):
            step = 2 if level < 5 else 1
            self._check_map(f"p{level}_s", features[0, ::8, ::step, ::step])

    def check_head(self) -> None:
        outputs, head = self.outputs, self.model.head
        branches = (
            ("box_raw", "scale_bbox", outputs.boxes, head.scales_bbox),
            ("ray_raw", "scale_mask", outputs.rays, head.scales_ray),
        )
        for level in range(NUM_LEVELS):
            self._check_map(f"cls_logits_{level}", outputs.cls_logits[level][0])
            self._check_map(f"ctr_logits_{level}", outputs.ctr_logits[level][0])
            for name, scale_name, distances, scales in branches:
                assert scales[level].scale.item() == self.arrays[scale_name][level]
                raw = distances[level][0].log() / scales[level].scale
                self._check_map(f"{name}_{level}", raw)

    def check_centers(self) -> None:
        for image in range(2):
            masks = self.ground_truth[image].gt_masks.tensor
            self.fixture.check_exact(f"gt{image}_mass_centres", find_borders(masks).centers)

    def check_targets(self) -> None:
        sizes = [logits.shape[2:].numel() for logits in self.outputs.cls_logits]
        assert sizes == self.arrays["points_per_level"].tolist()
        background = self.cfg.MODEL.POLARMASK.NUM_CLASSES
        for image in range(2):
            targets = self._assign(image, image + 1)
            classes = targets.classes[0]
            labels = torch.where(classes == background, 0, classes + 1)
            self.fixture.check_exact(f"gt{image}_labels", labels)
            self.fixture.check_exact(f"gt{image}_pos", targets.point)
            self._check_close(f"gt{image}_pos_boxes", targets.distances, 1e-3)
            self._check_close(f"gt{image}_pos_rays", targets.rays, 1e-3)
            self._check_close(f"gt{image}_pos_centerness", targets.centerness, 1e-5)

    def check_losses(self) -> None:
        for num_images in (1, 2):
            losses = self._compute_losses(num_images)
            assert set(losses) == {"loss_cls", "loss_bbox", "loss_mask", "loss_centerness"}
            for name, loss in losses.items():
                self._check_relative(f"b{num_images}_{name}", loss.detach())

    def check_gradients(self) -> None:
        outputs = self._slice_outputs(1)
        leaves = type(outputs)(*([t.clone().requires_grad_() for t in maps] for maps in outputs))
        losses = self.model.losses(leaves, self._assign(0, 1))
        sum(losses.values()).backward()
        for name, maps in zip(("cls", "ctr", "box", "ray"), leaves, strict=True):
            gradient = flatten_levels([leaf.grad for leaf in maps])
            self._check_relative(f"b1_gradnorm_{name}", gradient.norm())

    def check_detections(self) -> None:
        self._check_detections("det", self._detect(self.model))

    def check_polygon_boxes(self) -> None:
        model = self._build("MODEL.POLARMASK.NMS_BOX", "polygon")
        self._check_detections("maskbox", self._detect(model))

    def check_top_candidates(self) -> None:
        overrides = ("MODEL.POLARMASK.TOPK_CANDIDATES_TEST", 40, "TEST.DETECTIONS_PER_IMAGE", 6)
        self._check_detections("topk", self._detect(self._build(*overrides)))

    def check_masks(self) -> None:
        expected = self.fixture.unpack_masks("det_masks", *self.output_size)
        found = self._detect(self.model).pred_masks.numpy()
        for index, (mask, other) in enumerate(zip(found, expected, strict=True)):
            iou = (mask & other).sum() / max((mask | other).sum(), 1)
            assert iou >= 0.98, f"mask {index}: IoU {iou:.4f}"

    @cached_property
    def pyramid(self) -> list[Tensor]:
        return [self.features[name] for name in self.model.in_features]

    @cached_property
    def outputs(self) -> Any:
        with torch.no_grad():
            return self.model.head(self.pyramid)

    @cached_property
    def ground_truth(self) -> list[Instances]:
        found = []
        for image in range(2):
            # The fixture's corners are inclusive.
            boxes = self.arrays[f"gt{image}_boxes"] + np.float32([0, 0, 1, 1])
            classes = self.arrays[f"gt{image}_classes"]
            masks = self.fixture.unpack_masks(f"gt{image}_masks", *self.image_size)
            found.append(self._make_instances(self.image_size, boxes, classes, masks))
        return found

    def _slice_outputs(self, num_images: int) -> Any:
        return type(self.outputs)(*([m[:num_images] for m in maps] for maps in self.outputs))

    def _assign(self, start: int, stop: int) -> Any:
        outputs = self._slice_outputs(stop - start)
        return self.model.assign(outputs, self.images, self.ground_truth[start:stop])

    def _compute_losses(self, num_images: int) -> dict[str, Tensor]:
        return self.model.losses(self._slice_outputs(num_images), self._assign(0, num_images))

    def _check_detections(self, prefix: str, found: Instances) -> None:
        self.fixture.check_exact(f"{prefix}_classes", found.pred_classes)
        self._check_close(f"{prefix}_scores", found.scores, 5e-4)
        self._check_close(f"{prefix}_boxes", found.pred_boxes.tensor, 0.05)
        # The fixture's polygons are (M, 2, V).
        self._check_close(f"{prefix}_polygons", found.pred_polygons.transpose(1, 2), 0.05)
