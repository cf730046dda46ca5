"""HTC and Cascade Mask R-CNN against the fixtures of the official code."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from instancezoo.checkpoint import convert_state_dict
from instancezoo.htc.roi_heads import merge_scores

from .fixtures import Fixture
from .two_stage import TwoStageParity

_NUM_STAGES = 3
_LAST = ("MODEL.HTC.MASK_MERGE", "last")
_WITHOUT_BRANCH = "nosem_"
_SEMANTIC = "roi_head.semantic_head."


class HTCParity(TwoStageParity):
    """HTC and Cascade Mask R-CNN."""

    needs: ClassVar[dict[str, str]] = {
        "checkpoint": "",
        "maps": "p2",
        "region_proposal_maps": "rpn_cls_p2",
        "proposals": "proposal_boxes",
        "semantic_maps": "semantic_logits",
        "region_features": "box_roi_feat_backbone",
        "box_stages": "fixed_cls_logits_stage0",
        "cascade": "cascade_boxes_after_stage0",
        "mask_stages": "mask_logits_stage0",
        "detections": "det_boxes",
        "mask_probs": "det_mask_prob_avg",
        "masks": "det_masks_avg",
        "last_masks": "det_masks_last",
        "region_proposal_losses": "loss.loss_rpn_cls_p2",
        "semantic_loss": "loss.loss_semantic_seg",
        "stage_losses": "loss.s0.loss_cls",
        "accuracies": "loss.s0.acc",
        "checkpoint_without_branch": "nosem_det_boxes",
        "detections_without_branch": "nosem_det_boxes",
        "masks_without_branch": "nosem_det_masks_avg",
        "losses_without_branch": "nosem_loss.s0.loss_cls",
    }

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
        if "box_roi_feat_semantic" in self.arrays:
            self._check_map("box_roi_feat_semantic", (both - pyramid)[:, ::32])
        if "mask_roi_feat" in self.arrays:
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
                all_logits = self.heads.predict_stages(features, classes, range(_NUM_STAGES))
                assert len(all_logits) == _NUM_STAGES
                for stage, logits in enumerate(all_logits):
                    parts[stage].append(logits[:, 0])
        for stage, logits in parts.items():
            self._check_map(f"mask_logits_stage{stage}", torch.stack(logits, dim=1))

    def check_mask_probs(self) -> None:
        boxes = torch.from_numpy(self.arrays["det_boxes_input"])
        classes = torch.from_numpy(self.arrays["det_classes"])
        for merge, model in (("avg", self.model), ("last", self._build(*_LAST))):
            name = f"det_mask_prob_{merge}"
            if name not in self.arrays:
                continue
            given = Instances(self.image_size, pred_boxes=Boxes(boxes), pred_classes=classes)
            with torch.no_grad():
                features = model.backbone(self.images.tensor)
                (found,) = model.roi_heads.forward_with_given_boxes(features, [given])
            self._check_map(name, found.pred_masks[: len(self.arrays[name]), 0])

    def check_masks(self) -> None:
        self._check_masks(self.found, "det_masks_avg")

    def check_last_masks(self) -> None:
        self._check_masks(self._detect(self._build(*_LAST)), "det_masks_last")

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
        self._check_masks(other.found, "det_masks_avg", _WITHOUT_BRANCH)
        last = other._detect(other._build(*_LAST))
        self._check_masks(last, "det_masks_last", _WITHOUT_BRANCH)

    def check_losses_without_branch(self) -> None:
        assert "loss_semantic" not in self.without_branch.losses
        self._check_losses(self.without_branch.losses, _WITHOUT_BRANCH)

    @cached_property
    def maps(self) -> Any:
        with torch.no_grad():
            return self.heads.make_maps(self.features)

    @cached_property
    def storage(self) -> EventStorage:
        return self._train()[1]

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self._train()[0]

    @cached_property
    def without_branch(self) -> Any:
        return _WithoutBranch(self.fixture)

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

    def _make_cfg(self) -> Any:
        theirs, cfg = self.fixture.spec["config"], super()._make_cfg()
        weights, thresholds = theirs.get("stage_loss_weights"), theirs.get("stage_iou")
        assert weights in (None, list(cfg.MODEL.HTC.STAGE_LOSS_WEIGHTS))
        assert thresholds in (None, list(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS))
        return cfg


class _WithoutBranch(HTCParity):
    """The same weights without those of the semantic branch."""

    threshold = "nosem_test_score_thr"

    def __init__(self, fixture: Fixture) -> None:
        super().__init__(fixture)
        self.state = {name: x for name, x in self.state.items() if not name.startswith(_SEMANTIC)}
        self.converted = convert_state_dict(self.state)
        self.cfg = self._make_cfg()
        self.model = self._build()
