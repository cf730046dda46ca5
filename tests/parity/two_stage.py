"""Mask R-CNN in MMDetection's layout against fixtures; what its relatives share with it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor

from .base import ParityBase
from .fixtures import Fixture

STATED = {
    "arrays": "abs 2e-3 + rel 1e-3",
    "proposal_boxes": "99 % of the rows need a partner within 0.05 px",
    "det_scores": 0.001,
    "det_boxes": 0.05,
    "masks": "at most 0.5 % of an instance's pixels may differ",
    "losses": "rel 1e-3",
}
_MAP_STEPS = {"p2": 4, "p3": 2, "p4": 1, "p5": 1, "p6": 1}
# So many anchors are sampled that every labelled one takes part.
_ALL_ANCHORS = 10**6


class TwoStageParity(ParityBase):
    """One fixture; each `check_*` is a stage, in the order of computation."""

    # stage -> an array without which a fixture leaves it out; "": every fixture has it
    needs: ClassVar[dict[str, str]] = {
        "checkpoint": "",
        "maps": "p2",
        "region_proposal_maps": "rpn_cls_p2",
        "proposals": "proposal_boxes",
        "box_head": "fixed_cls_logits",
        "mask_head": "mask_logits",
        "detections": "det_boxes",
        "masks": "det_masks",
        "region_proposal_losses": "loss.loss_rpn_cls_p2",
        "head_losses": "loss.loss_cls",
    }
    stated = STATED
    unused = ("num_batches_tracked",)
    preprocess = "preprocess_image"

    @classmethod
    def list_stages(cls, fixture: Fixture) -> list[str]:
        """The stages that a fixture has arrays for."""
        names = fixture.array_names
        return [stage for stage, array in cls.needs.items() if not array or array in names]

    @property
    def heads(self) -> Any:
        return self.model.roi_heads

    @property
    def image_size(self) -> tuple[int, int]:
        return self.source["height"], self.source["width"]

    @property
    def output_size(self) -> tuple[int, int]:
        return self.source["output_height"], self.source["output_width"]

    def check_maps(self) -> None:
        self._check_map("net_input", self.images.tensor[0, :, ::8, ::8])
        for level, step in _MAP_STEPS.items():
            self._check_map(level, self.features[level][0, ::16, ::step, ::step])

    def check_region_proposal_maps(self) -> None:
        generator = self.model.proposal_generator
        with torch.no_grad():
            maps = generator.rpn_head([self.features[name] for name in generator.in_features])
        for level, logits, deltas in zip(generator.in_features, *maps, strict=True):
            step = 4 if level == "p2" else 1
            self._check_map(f"rpn_cls_{level}", logits[0, :, ::step, ::step])
            self._check_map(f"rpn_reg_{level}", deltas[0, :, ::step, ::step])

    def check_proposals(self) -> None:
        with torch.no_grad():
            (found,), _ = self.model.proposal_generator(self.images, self.features, None)
        boxes, expected = found.proposal_boxes.tensor.numpy(), self.arrays["proposal_boxes"]
        assert len(boxes) == len(expected)
        distance = np.abs(boxes[:, None] - expected[None]).max(axis=2).min(axis=0)
        assert (distance <= 0.05).mean() >= 0.99
        self._check_map("proposal_scores", found.objectness_logits.sigmoid())

    def check_box_head(self) -> None:
        with torch.no_grad():
            features = self.heads.box_pooler(self.pyramid, self._list_boxes("fixed_rois"))
            logits, deltas = self.heads.box_predictor(self.heads.box_head(features))
        self._check_map("fixed_cls_logits", logits)
        self._check_map("fixed_deltas", deltas)

    def check_mask_head(self) -> None:
        with torch.no_grad():
            features = self.heads.mask_pooler(self.pyramid, self._list_boxes("mask_rois"))
            logits = self.heads.mask_head.layers(features)
        self._check_map("mask_logits", logits[:, ::16])

    def check_detections(self) -> None:
        self._check_detections(self.found, "")
        scale = self.output_size[0] / self.image_size[0]
        if "det_boxes_input" not in self.arrays:
            return
        inputs = self.arrays["det_boxes_input"] * scale
        np.testing.assert_allclose(inputs, self.arrays["det_boxes"], rtol=0, atol=0.05)

    def check_masks(self) -> None:
        self._check_masks(self.found, "det_masks")

    def check_region_proposal_losses(self) -> None:
        model = self._build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", _ALL_ANCHORS).train()
        targets = [self.ground_truth]
        with EventStorage(), torch.no_grad():
            _, losses = model.proposal_generator(self.images, self.features, targets)
        for ours, theirs in (("loss_rpn_cls", "loss_rpn_cls"), ("loss_rpn_loc", "loss_rpn_bbox")):
            parts = [self.arrays[f"loss.{theirs}_{level}"] for level in _MAP_STEPS]
            np.testing.assert_allclose(losses[ours].item(), np.sum(parts), rtol=1e-3)

    def check_head_losses(self) -> None:
        losses, _ = self._train()
        names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_mask": "loss_mask"}
        for ours, theirs in names.items():
            self._check_relative(f"loss.{theirs}", losses[ours])

    @property
    def pyramid(self) -> list[Tensor]:
        return [self.features[name] for name in self.heads.box_in_features]

    @cached_property
    def found(self) -> Instances:
        return self._detect(self.model)

    @cached_property
    def ground_truth(self) -> Instances:
        masks = self.fixture.unpack_masks("gt_masks", *self.image_size)
        boxes, classes = self.arrays["gt_boxes"], self.arrays["gt_classes"]
        return self._make_instances(self.image_size, boxes, classes, masks)

    def _train(self) -> tuple[dict[str, Tensor], EventStorage]:
        """Losses of the ROI heads on the stored proposals, and what they logged."""
        model = self._build().train()
        records = [{**self.batch[0], "instances": self.ground_truth}]
        if "gt_sem_seg" in self.arrays:
            records[0]["sem_seg"] = torch.from_numpy(self.arrays["gt_sem_seg"]).long()
        proposals = Instances(self.image_size)
        proposals.proposal_boxes = Boxes(torch.from_numpy(self.arrays["train_proposals"]))
        with EventStorage() as storage, torch.no_grad():
            images = model.preprocess_image(records)
            _, losses = model.roi_heads(images, self.features, [proposals], [self.ground_truth])
        return losses, storage

    def _list_boxes(self, name: str) -> list[Boxes]:
        return [Boxes(torch.from_numpy(self.arrays[name]))]

    def _check_detections(self, found: Instances, prefix: str) -> None:
        scores = self.arrays[f"{prefix}det_scores"]
        assert len(found) == len(scores)
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-3)
        partner = self._pair_detections(found, prefix)
        assert len(set(partner)) == len(partner)
        classes, boxes = found.pred_classes[partner], found.pred_boxes.tensor[partner]
        np.testing.assert_array_equal(classes, self.arrays[f"{prefix}det_classes"])
        np.testing.assert_allclose(boxes, self.arrays[f"{prefix}det_boxes"], rtol=0, atol=0.05)

    def _check_masks(self, found: Instances, name: str, prefix: str = "") -> None:
        expected = self.fixture.unpack_masks(prefix + name, *self.output_size)
        masks = found.pred_masks[self._pair_detections(found, prefix)].numpy()
        different = (masks != expected).sum(axis=(1, 2))
        assert (different <= 0.005 * expected.sum(axis=(1, 2))).all(), different

    def _pair_detections(self, found: Instances, prefix: str) -> list[int]:
        """For each stored detection ours: near-equal scores may have changed places."""
        boxes = Boxes(torch.from_numpy(self.arrays[f"{prefix}det_boxes"]))
        classes = torch.from_numpy(self.arrays[f"{prefix}det_classes"])
        same = found.pred_classes == classes[:, None]
        return (pairwise_iou(boxes, found.pred_boxes) * same).argmax(dim=1).tolist()

    def _make_cfg(self) -> Any:
        """The shipped config; where the fixture's differs, the fixture's."""
        theirs = self.fixture.spec["config"]
        cfg = super()._make_cfg()
        official = theirs.get("official_test_score_thr", cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
        assert official == cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = theirs.get(self.threshold, official)
        return cfg

    threshold = "test_score_thr"
