"""YOLACT and YOLACT++ against the fixtures of the official code."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.layers.fast_nms import cross_class_fast_nms
from instancezoo.modeling.input_size import stretch_image
from instancezoo.yolact.decode import find_candidates, suppress_duplicates
from instancezoo.yolact.targets import decode_boxes

from .base import ParityBase
from .fixtures import seeded_weights

STATED = {
    "feature maps, head outputs, soft masks": "abs 2e-3 + rel 1e-3",
    "scores": "abs 1e-3",
    "relative boxes": "abs 1e-3",
    "det_box": "within 1 pixel",
    "binary masks": "IoU >= 0.99 each (or at most 8 differing pixels)",
    "match_conf_t": "exact",
    "losses": "rel 1e-3",
    "grad_norms*": "rel 5e-3 (float32 without TF32)",
}
SCORES, BOXES, BOX_PIXELS, MASK_IOU, MASK_PIXELS, GRADIENTS = 1e-3, 1e-3, 1, 0.99, 8, 5e-3
# letter of a loss in the fixture -> ours
LOSS_NAMES = {
    "B": "loss_box",
    "C": "loss_cls",
    "M": "loss_mask",
    "S": "loss_semantic",
    "I": "loss_mask_iou",
}


class YOLACTParity(ParityBase):
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "checkpoint",
        "config",
        "input",
        "backbone",
        "pyramid",
        "anchors",
        "head",
        "prototypes",
        "fast_nms",
        "cross_class_nms",
        "soft_masks",
        "detections",
        "masks",
        "matching",
        "semantic",
        "mask_iou_targets",
        "losses",
        "gradients",
    )
    stated = STATED
    num_images = 2

    @property
    def image_size(self) -> tuple[int, int]:
        return self.source["height"], self.source["width"]

    output_size = image_size

    def _make_cfg(self) -> Any:
        cfg = super()._make_cfg()
        cfg.MODEL.YOLACT.FINAL_SCORE_THRESH = self.fixture.spec["score_threshold"]
        cfg.MODEL.YOLACT.TRUNCATE_BOXES = True
        return cfg

    def _make_image(self, index: int) -> Tensor:
        seed = (self.source["seed"], self.source["second_seed"])[index]
        bgr = seeded_weights.seeded_image(*self.image_size, seed=seed)
        return torch.from_numpy(bgr[::-1].copy())

    @property
    def is_plus(self) -> bool:
        return self.model.head.mask_iou is not None

    def check_config(self) -> None:
        theirs, node = self.fixture.spec["config"], self.cfg.MODEL.YOLACT
        ours = {
            "num_classes": node.NUM_CLASSES + 1,
            "max_iter": self.cfg.SOLVER.MAX_ITER,
            "max_num_detections": self.cfg.TEST.DETECTIONS_PER_IMAGE,
            "lr": self.cfg.SOLVER.BASE_LR,
            "momentum": self.cfg.SOLVER.MOMENTUM,
            "decay": self.cfg.SOLVER.WEIGHT_DECAY,
            "gamma": self.cfg.SOLVER.GAMMA,
            "lr_steps": list(self.cfg.SOLVER.STEPS),
            "lr_warmup_init": self.cfg.SOLVER.BASE_LR * self.cfg.SOLVER.WARMUP_FACTOR,
            "lr_warmup_until": self.cfg.SOLVER.WARMUP_ITERS,
            "conf_alpha": node.CLS_WEIGHT,
            "bbox_alpha": node.BOX_WEIGHT,
            "mask_alpha": node.MASK_WEIGHT,
            "semantic_segmentation_alpha": node.SEMANTIC_WEIGHT,
            "nms_top_k": node.NMS_TOP_K,
            "nms_conf_thresh": node.SCORE_THRESH_TEST,
            "nms_thresh": node.NMS_THRESH,
            "masks_to_train": node.MASKS_TO_TRAIN,
            "positive_iou_threshold": node.POS_IOU,
            "negative_iou_threshold": node.NEG_IOU,
            "ohem_negpos_ratio": node.NEG_POS_RATIO,
            "crowd_iou_threshold": node.CROWD_IOU,
            "mask_dim": node.NUM_PROTOTYPES,
            "max_size": self.cfg.INPUT.FIXED_SIZE[0],
        }
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-6, err_msg=name)

    def check_input(self) -> None:
        self._check_map("net_input_s25", self.images.tensor[0, :, ::25, ::25])

    def check_backbone(self) -> None:
        with torch.no_grad():
            stages = self.model.backbone.bottom_up(self.images.tensor[:1])
            stem_and_res2 = self._run_to_res2()
        self._check_map("c2", stem_and_res2[0, ::16, ::7, ::7])
        for level, channels, step in ((3, 32, 4), (4, 64, 2), (5, 128, 1)):
            got = stages[f"res{level}"][0, ::channels, ::step, ::step]
            self._check_map(f"c{level}", got)

    def _run_to_res2(self) -> Tensor:
        network = self.model.backbone.bottom_up
        return network.res2(network.stem(self.images.tensor[:1]))

    def check_pyramid(self) -> None:
        for level in range(3, 8):
            step = {3: 4, 4: 2}.get(level, 1)
            self._check_map(f"p{level}", self.features[f"p{level}"][0, ::16, ::step, ::step])

    def check_anchors(self) -> None:
        relative = self._anchors / torch.tensor(self.images.tensor.shape[2:]).flip(0).repeat(2)
        self._check_close("priors", relative[self._index], 1e-6)

    def check_head(self) -> None:
        self._check_map("loc_raw", self._outputs.deltas[0, self._index])
        self._check_map("conf_raw", self._outputs.cls_logits[0, self._index])
        coefficients = self.arrays["coef_raw"]
        got = self._outputs.coefficients[0, self._index]
        torch.testing.assert_close(got, torch.from_numpy(coefficients).tanh(), rtol=1e-3, atol=2e-3)

    def check_prototypes(self) -> None:
        with torch.no_grad():
            raw = self.model.head.prototypes(self.features["p3"][:1])
        self._check_map("proto_raw_s4", raw[0, :, ::4, ::4])
        torch.testing.assert_close(raw.relu(), self._outputs.prototypes[:1], rtol=1e-3, atol=2e-3)

    def check_fast_nms(self) -> None:
        rows, boxes, probs = self._candidates
        kept, classes, scores = suppress_duplicates(boxes, probs, self.model.decode_settings)
        assert len(scores) == len(self.arrays["fastnms_score_all"])
        self._check_close("fastnms_score_all", scores, SCORES)
        above = scores > self.cfg.MODEL.YOLACT.FINAL_SCORE_THRESH
        kept, classes, scores = kept[above], classes[above], scores[above]
        self._compare_detections("fastnms", rows[kept], boxes[kept], classes, scores)

    def check_cross_class_nms(self) -> None:
        rows, boxes, probs = self._candidates
        node = self.cfg.MODEL.YOLACT
        kept, classes, scores = cross_class_fast_nms(
            boxes, probs, iou_threshold=node.NMS_THRESH, top_k=node.NMS_TOP_K
        )
        chosen = scores > node.FINAL_SCORE_THRESH
        kept, classes, scores = kept[chosen], classes[chosen], scores[chosen]
        self._compare_detections("crossnms", rows[kept], boxes[kept], classes, scores)

    def check_soft_masks(self) -> None:
        found = self._decoded
        scores = found.pred_masks.cropped_scores()[:, 0, ::3, ::3]
        order = self._match(found.scores, found.pred_classes, "fastnms")
        self._check_map("det_softmask_s3", scores[order])

    def check_detections(self) -> None:
        found = self._detect(self.model)
        order = self._match(found.scores, found.pred_classes, "det")
        self.fixture.check_exact("det_class", found.pred_classes[order])
        boxes = found.pred_boxes.tensor[order]
        height, width = self.image_size
        # Ours are clipped on all sides, theirs on one side each.
        expected = self.arrays["det_box"].clip(0, [width, height, width, height])
        np.testing.assert_allclose(boxes, expected, atol=BOX_PIXELS)
        self._check_close("det_score", found.scores[order], SCORES)
        assert found.has("mask_scores") == self.is_plus
        if self.is_plus:
            self._check_close("det_mask_score", found.mask_scores[order], SCORES)
            decoded = self._decoded
            with torch.no_grad():
                ious = self.model.head.mask_iou(decoded.pred_masks.cropped_scores())
            self._check_map("det_maskiou_all_classes", ious[order])

    def check_masks(self) -> None:
        found = self._detect(self.model)
        order = self._match(found.scores, found.pred_classes, "det")
        expected = torch.from_numpy(self.fixture.unpack("det_mask_bits", self.image_size[1]))
        got = found.pred_masks[order]
        assert got.shape == expected.shape
        shared, either = (got & expected).sum((1, 2)), (got | expected).sum((1, 2))
        differing = (got ^ expected).sum((1, 2))
        assert ((shared / either.clamp(min=1) >= MASK_IOU) | (differing <= MASK_PIXELS)).all()

    def check_matching(self) -> None:
        targets = self._targets
        self.fixture.check_exact("match_conf_t", targets.labels)
        self.fixture.check_exact("match_pos_gt_index", targets.instance)
        np.testing.assert_allclose(
            targets.deltas, self.arrays["match_pos_loc_t"], rtol=1e-3, atol=1e-3
        )

    def check_semantic(self) -> None:
        assert self._train_outputs.semantic_logits is not None
        self._check_map("segm_raw", self._train_outputs.semantic_logits[0, ::4, ::6, ::6])

    def check_mask_iou_targets(self) -> None:
        if not self.is_plus:
            return
        with torch.no_grad():
            images = self.model.predict_positive_masks(self._train_outputs, self._targets)
        images = [image.drop_small(self.cfg.MODEL.YOLACT.MASKIOU.MIN_AREA) for image in images]
        self._check_close("maskiou_t", torch.cat([x.measure_ious() for x in images]), SCORES)
        self.fixture.check_exact("maskiou_label", torch.cat([x.classes for x in images]))

    def check_losses(self) -> None:
        losses = self.model.losses(self._train_outputs, self._targets)
        assert set(losses) == {LOSS_NAMES[x] for x in "BCMSI" if f"loss_{x}" in self.arrays}
        for letter, name in LOSS_NAMES.items():
            if name in losses:
                self._check_relative(f"loss_{letter}", losses[name].detach())
        self._check_relative("loss_total", sum(losses.values()).detach())  # type: ignore[union-attr]

    def check_gradients(self) -> None:
        self._compare_gradients("grad_norms", "grad_names", list(LOSS_NAMES.values()))
        if self.is_plus:
            self._compare_gradients("grad_norms_loss_I", "grad_names_loss_I", ["loss_mask_iou"])

    def _compare_gradients(self, norms: str, names: str, chosen: list[str]) -> None:
        self.model.zero_grad()
        losses = self.model.losses(self._run_for_training(), self._targets)
        total = torch.stack([losses[name] for name in chosen if name in losses]).sum()
        total.backward()
        ours = dict(self.model.named_parameters())
        layout = self.converted.layout
        for published, expected in zip(self.fixture.spec[names], self.arrays[norms], strict=True):
            name, _ = layout.find_row(published)
            found = ours[name].grad.norm().item()
            np.testing.assert_allclose(found, expected, rtol=GRADIENTS, err_msg=published)

    def _match(self, scores: Tensor, classes: Tensor, prefix: str) -> Tensor:
        """Our index of each stored detection: by class, then by the nearest score."""
        expected_scores = torch.from_numpy(self.arrays[f"{prefix}_score"])
        expected_classes = torch.from_numpy(self.arrays[f"{prefix}_class"]).long()
        assert len(scores) == len(expected_scores), (len(scores), len(expected_scores))
        distance = (scores[None] - expected_scores[:, None]).abs()
        distance[classes[None] != expected_classes[:, None]] = np.inf
        order = distance.argmin(dim=1)
        assert len(order.unique()) == len(order) and distance.isfinite().any(dim=1).all()
        return order

    def _compare_detections(
        self, prefix: str, rows: Tensor, boxes: Tensor, classes: Tensor, scores: Tensor
    ) -> None:
        """Compare with stored detections, whose boxes are relative to the network input."""
        order = self._match(scores, classes, prefix)
        size = torch.tensor(self.images.tensor.shape[2:]).flip(0).repeat(2)
        self._check_close(f"{prefix}_score", scores[order], SCORES)
        self._check_close(f"{prefix}_box", boxes[order] / size, BOXES)
        if prefix == "fastnms":
            self._check_map("fastnms_coef", self._outputs.coefficients[0, rows[order]])

    @property
    def _index(self) -> Tensor:
        return torch.from_numpy(self.arrays["prior_index"]).long()

    @cached_property
    def _anchors(self) -> Tensor:
        return self.model._make_anchors(self._outputs, self.images)

    @cached_property
    def images(self) -> Any:
        size, antialias = self.model.input_size, self.model.input_antialias
        batch = [stretch_image(image, size, antialias) for image in self.batch]
        return self.model.preprocess(batch)

    @cached_property
    def _outputs(self) -> Any:
        features = [self.features[name] for name in self.model.in_features]
        with torch.no_grad():
            return self.model.head(features)

    @cached_property
    def _candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, boxes and class probabilities of the first image."""
        threshold = self.model.decode_settings.candidate_thresh
        rows, probs = find_candidates(self._outputs.cls_logits[0], threshold)
        assert len(rows) == self.fixture.spec["margins"]["anchors_over_005"]
        return rows, decode_boxes(self._outputs.deltas[0, rows], self._anchors[rows]), probs

    @cached_property
    def _decoded(self) -> Instances:
        with torch.no_grad():
            return self.model.decode(self._outputs, self.images)[0]

    def _run_for_training(self) -> Any:
        """Outputs in training mode, with norms and the backbone in inference mode."""
        features = self.model.backbone(self.images.tensor)
        self.model.head.train()
        outputs = self.model.head([features[name] for name in self.model.in_features])
        self.model.head.eval()
        return outputs

    @cached_property
    def _train_outputs(self) -> Any:
        with torch.no_grad():
            return self._run_for_training()

    @cached_property
    def _targets(self) -> Any:
        ground_truth = [self._make_ground_truth(index) for index in range(2)]
        return self.model.assign(self._train_outputs, self.images, ground_truth)

    def _make_ground_truth(self, index: int) -> Instances:
        height, width = self.cfg.INPUT.FIXED_SIZE
        boxes = self.arrays[f"gt{index}_box"] * np.float32([width, height, width, height])
        labels = self.arrays[f"gt{index}_label"].astype(np.int64)
        masks = self.fixture.unpack(f"gt{index}_mask_bits", width)
        instances = self._make_instances((height, width), boxes, labels.clip(min=0), masks)
        instances.gt_is_crowd = torch.from_numpy(labels < 0)
        assert instances.gt_is_crowd.sum() == self.arrays["gt_num_crowds"][index]
        return instances
