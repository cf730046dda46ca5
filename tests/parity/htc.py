"""HTC against the fixtures of the official code."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor

from instancezoo.checkpoint import convert_state_dict
from instancezoo.htc.roi_heads import merge_scores

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
_NUM_STAGES = 3
_WITHOUT_BRANCH = "nosem_"
_SEMANTIC = "roi_head.semantic_head."
# So many anchors are sampled that every labelled one takes part.
_ALL_ANCHORS = 10**6


class HTCParity(ParityBase):
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "checkpoint",
        "maps",
        "region_proposal_maps",
        "proposals",
        "semantic_maps",
        "region_features",
        "box_stages",
        "cascade",
        "mask_stages",
        "detections",
        "mask_probs",
        "masks",
        "region_proposal_losses",
        "semantic_loss",
        "stage_losses",
        "accuracies",
        "checkpoint_without_branch",
        "detections_without_branch",
        "masks_without_branch",
        "losses_without_branch",
    )
    stated = STATED
    unused = ("num_batches_tracked",)
    preprocess = "preprocess_image"

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

    def check_semantic_maps(self) -> None:
        self._check_map("semantic_logits", self.maps[1][0, ::16])
        self._check_map("semantic_feat", self.maps[0].semantic[0, ::16])

    def check_region_features(self) -> None:
        boxes = self._list_boxes("fixed_rois")
        with torch.no_grad():
            pyramid = self.heads.box_pooler(self.maps[0].pyramid, boxes)
            both = self.heads.pool_boxes(self.maps[0], boxes)
            masks = self.heads.pool_masks(self.maps[0], self._list_boxes("mask_rois"))
        self._check_map("box_roi_feat_backbone", pyramid[:, ::32])
        self._check_map("box_roi_feat_semantic", (both - pyramid)[:, ::32])
        self._check_map("mask_roi_feat", masks[:, ::64])

    def check_box_stages(self) -> None:
        for stage in range(_NUM_STAGES):
            logits, deltas = self._run_stage(self._list_boxes("fixed_rois"), stage)
            self._check_map(f"fixed_cls_logits_stage{stage}", logits)
            self._check_map(f"fixed_deltas_stage{stage}", deltas)

    def check_cascade(self) -> None:
        boxes, all_logits = self._list_boxes("fixed_rois"), []
        for stage in range(_NUM_STAGES):
            predictions = self._run_stage(boxes, stage)
            regions = self._make_regions(boxes[0])
            decoded = self.heads.box_predictor[stage].predict_boxes(predictions, [regions])
            boxes = [Boxes(decoded[0])]
            boxes[0].clip(self.image_size)
            all_logits.append(predictions[0])
            self._check_close(f"cascade_boxes_after_stage{stage}", boxes[0].tensor, 0.05)
        logits = torch.stack(all_logits)
        self._check_map("cascade_mean_logits", logits.mean(dim=0))
        expected = torch.from_numpy(self.arrays["cascade_mean_logits"]).softmax(dim=1)
        torch.testing.assert_close(merge_scores(logits, "logits"), expected, rtol=0, atol=1e-3)

    def check_mask_stages(self) -> None:
        parts: dict[int, list[Tensor]] = {stage: [] for stage in range(_NUM_STAGES)}
        with torch.no_grad():
            features = self.heads.pool_masks(self.maps[0], self._list_boxes("mask_rois"))
            for label in range(self.arrays["mask_logits_stage0"].shape[1]):
                classes = torch.full((len(features),), 16 * label)
                all_logits = self.heads.predict_stages(features, classes, _NUM_STAGES - 1)
                assert len(all_logits) == _NUM_STAGES
                for stage, logits in enumerate(all_logits):
                    parts[stage].append(logits[:, 0])
        for stage, logits in parts.items():
            self._check_map(f"mask_logits_stage{stage}", torch.stack(logits, dim=1))

    def check_detections(self) -> None:
        self._check_detections(self.found, "")
        scale = self.output_size[0] / self.image_size[0]
        inputs = self.arrays["det_boxes_input"] * scale
        np.testing.assert_allclose(inputs, self.arrays["det_boxes"], rtol=0, atol=0.05)

    def check_mask_probs(self) -> None:
        boxes = torch.from_numpy(self.arrays["det_boxes_input"])
        classes = torch.from_numpy(self.arrays["det_classes"])
        for merge, model in (("avg", self.model), ("last", self._build(*_merge("last")))):
            given = Instances(self.image_size, pred_boxes=Boxes(boxes), pred_classes=classes)
            with torch.no_grad():
                features = model.backbone(self.images.tensor)
                (found,) = model.roi_heads.forward_with_given_boxes(features, [given])
            name = f"det_mask_prob_{merge}"
            self._check_map(name, found.pred_masks[: len(self.arrays[name]), 0])

    def check_masks(self) -> None:
        self._check_masks(self.found, "", "avg")
        self._check_masks(self._detect(self._build(*_merge("last"))), "", "last")

    def check_region_proposal_losses(self) -> None:
        model = self._build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", _ALL_ANCHORS).train()
        targets = [self.ground_truth]
        with EventStorage(), torch.no_grad():
            _, losses = model.proposal_generator(self.images, self.features, targets)
        for ours, theirs in (("loss_rpn_cls", "loss_rpn_cls"), ("loss_rpn_loc", "loss_rpn_bbox")):
            parts = [self.arrays[f"loss.{theirs}_{level}"] for level in _MAP_STEPS]
            np.testing.assert_allclose(losses[ours].item(), np.sum(parts), rtol=1e-3)

    def check_semantic_loss(self) -> None:
        self._check_relative("loss.loss_semantic_seg", self.losses["loss_semantic"])

    def check_stage_losses(self) -> None:
        self._check_losses(self.losses, "")

    def check_accuracies(self) -> None:
        for stage in range(_NUM_STAGES):
            expected = self.arrays[f"loss.s{stage}.acc"].item()
            name = f"stage{stage}/fast_rcnn/cls_accuracy"
            found = self.storage.histories()[name].latest()
            np.testing.assert_allclose(100 * found, expected, rtol=1e-3, atol=1e-9)

    def check_checkpoint_without_branch(self) -> None:
        assert self.without_branch.converted.layout != self.converted.layout
        self.without_branch.check_checkpoint()

    def check_detections_without_branch(self) -> None:
        self._check_detections(self.without_branch.found, _WITHOUT_BRANCH)

    def check_masks_without_branch(self) -> None:
        other = self.without_branch
        self._check_masks(other.found, _WITHOUT_BRANCH, "avg")
        self._check_masks(other._detect(other._build(*_merge("last"))), _WITHOUT_BRANCH, "last")

    def check_losses_without_branch(self) -> None:
        assert "loss_semantic" not in self.without_branch.losses
        self._check_losses(self.without_branch.losses, _WITHOUT_BRANCH)

    @cached_property
    def maps(self) -> Any:
        with torch.no_grad():
            return self.heads.make_maps(self.features)

    @cached_property
    def found(self) -> Instances:
        return self._detect(self.model)

    @cached_property
    def ground_truth(self) -> Instances:
        masks = self.fixture.unpack_masks("gt_masks", *self.image_size)
        boxes, classes = self.arrays["gt_boxes"], self.arrays["gt_classes"]
        return self._make_instances(self.image_size, boxes, classes, masks)

    @cached_property
    def storage(self) -> EventStorage:
        return self._train()[1]

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self._train()[0]

    @cached_property
    def without_branch(self) -> Any:
        return _WithoutBranch(self.fixture)

    def _train(self) -> tuple[dict[str, Tensor], EventStorage]:
        """Losses of the ROI heads on the stored proposals, and what they logged."""
        model = self._build().train()
        labels = torch.from_numpy(self.arrays["gt_sem_seg"]).long()
        records = [{**self.batch[0], "instances": self.ground_truth, "sem_seg": labels}]
        proposals = Instances(self.image_size)
        proposals.proposal_boxes = Boxes(torch.from_numpy(self.arrays["train_proposals"]))
        with EventStorage() as storage, torch.no_grad():
            images = model.preprocess_image(records)
            _, losses = model.roi_heads(images, self.features, [proposals], [self.ground_truth])
        return losses, storage

    def _list_boxes(self, name: str) -> list[Boxes]:
        return [Boxes(torch.from_numpy(self.arrays[name]))]

    def _make_regions(self, boxes: Boxes) -> Instances:
        return Instances(self.image_size, proposal_boxes=boxes)

    def _run_stage(self, boxes: list[Boxes], stage: int) -> Any:
        with torch.no_grad():
            features = self.heads.pool_boxes(self.maps[0], boxes)
            return self.heads.box_predictor[stage](self.heads.box_head[stage](features))

    def _check_losses(self, losses: dict[str, Tensor], prefix: str) -> None:
        names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_mask": "loss_mask"}
        for stage in range(_NUM_STAGES):
            for ours, theirs in names.items():
                got = losses[f"{ours}_stage{stage}"]
                self._check_relative(f"{prefix}loss.s{stage}.{theirs}", got)

    def _check_detections(self, found: Instances, prefix: str) -> None:
        scores = self.arrays[f"{prefix}det_scores"]
        assert len(found) == len(scores)
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-3)
        partner = self._pair_detections(found, prefix)
        assert len(set(partner)) == len(partner)
        classes, boxes = found.pred_classes[partner], found.pred_boxes.tensor[partner]
        np.testing.assert_array_equal(classes, self.arrays[f"{prefix}det_classes"])
        np.testing.assert_allclose(boxes, self.arrays[f"{prefix}det_boxes"], rtol=0, atol=0.05)

    def _check_masks(self, found: Instances, prefix: str, merge: str) -> None:
        expected = self.fixture.unpack_masks(f"{prefix}det_masks_{merge}", *self.output_size)
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
        assert theirs["official_test_score_thr"] == cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        assert tuple(cfg.MODEL.HTC.STAGE_LOSS_WEIGHTS) == tuple(theirs["stage_loss_weights"])
        assert list(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS) == theirs["stage_iou"]
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = theirs[self.threshold]
        return cfg

    threshold = "test_score_thr"


class _WithoutBranch(HTCParity):
    """The same weights without those of the semantic branch."""

    threshold = "nosem_test_score_thr"

    def __init__(self, fixture: Fixture) -> None:
        super().__init__(fixture)
        self.state = {name: x for name, x in self.state.items() if not name.startswith(_SEMANTIC)}
        self.converted = convert_state_dict(self.state)
        self.cfg = self._make_cfg()
        self.model = self._build()


def _merge(how: str) -> tuple[str, str]:
    return "MODEL.HTC.MASK_MERGE", how
