"""PANet against fixtures of the official code, with or without masks, with either box head."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor

from .base import MAP_ABSOLUTE, MAP_RELATIVE, ParityBase
from .fixtures import Fixture

STATED = {
    "arrays": "abs 2e-3 + rel 1e-3",
    "proposal_boxes": "99 % of the rows need a partner within 0.05 px",
    "det_scores": 0.001,
    "det_boxes": 0.05,
    "masks": "at most 0.5 % of an instance's box area may differ",
    "losses": "rel 1e-3",
}
# Every how manyth row and column of a map is stored.
_MAP_STEPS = {2: 4, 3: 2, 4: 1, 5: 1, 6: 1}
_RPN_STEPS = {2: 4, 3: 1, 4: 1, 5: 1, 6: 1}
_SIDE = 28
_PIXEL = torch.tensor([0.0, 0, 1, 1])  # from inclusive boxes, as stored, to ours


class PANetParity(ParityBase):
    """One fixture; each `check_*` is a stage, in the order of computation.

    A stage of the heads is checked if the fixture has its arrays.
    """

    stages = (
        "checkpoint",
        "maps",
        "proposal_maps",
        "proposals",
        "box_features",
        "boxes",
        "mask_features",
        "mask_logits",
        "detections",
        "masks",
        "mask_targets",
        "losses",
    )
    stated = STATED
    preprocess = "preprocess_image"

    def __init__(self, fixture: Fixture) -> None:
        if "det_masks" not in fixture.arrays:  # a model without masks states no tolerance of them
            self.stated = {name: value for name, value in STATED.items() if name != "masks"}
        super().__init__(fixture)
        self.heads = self.model.roi_heads

    @property
    def image_size(self) -> tuple[int, int]:
        return self.source["height"], self.source["width"]

    @property
    def output_size(self) -> tuple[int, int]:
        return self.source["output_height"], self.source["output_width"]

    def check_maps(self) -> None:
        self._check_map("net_input", self.images.tensor[0, :, ::8, ::8])
        for level, step in _MAP_STEPS.items():
            self._check_map(f"n{level}", self.features[f"p{level}"][0, ::16, ::step, ::step])

    def check_proposal_maps(self) -> None:
        maps = [self.features[f"p{level}"] for level in _RPN_STEPS]
        with torch.no_grad():
            logits, deltas = self.model.proposal_generator.rpn_head(maps)
        for index, (level, step) in enumerate(_RPN_STEPS.items()):
            self._check_map(f"rpn_cls_{level}", logits[index][0, :, ::step, ::step])
            self._check_map(f"rpn_reg_{level}", deltas[index][0, :, ::step, ::step])

    def check_proposals(self) -> None:
        if "proposal_boxes" not in self.arrays:
            return
        with torch.no_grad():
            (found,), _ = self.model.proposal_generator(self.images, self.features, None)
        assert found.image_size == self.image_size
        boxes, expected = found.proposal_boxes.tensor - _PIXEL, self.arrays["proposal_boxes"]
        assert len(boxes) == len(expected)
        distance = np.abs(boxes[:, None].numpy() - expected[None]).max(axis=2).min(axis=0)
        assert (distance <= 0.05).mean() >= 0.99

    def check_box_features(self) -> None:
        if "box_roi_feat" not in self.arrays:
            return
        expected = self.arrays["box_roi_feat"]
        pooled = self._pool(self.heads.box_pooler, "fixed_rois")
        self._check_map("box_roi_feat", torch.stack(pooled)[:, : expected.shape[1], ::32])
        with torch.no_grad():
            fused = self.heads.box_head[0](pooled)  # convolutions or fully connected layers
            features = self.heads.box_head(pooled)
        self._check_map("box_fused_feat", fused[: expected.shape[1], ::32])
        self._check_map("box_fc_feat", features[:, ::8])

    def check_boxes(self) -> None:
        if "cls_logits" not in self.arrays:
            return
        with torch.no_grad():
            pooled = self._pool(self.heads.box_pooler, "fixed_rois")
            logits, deltas = self.heads.box_predictor(self.heads.box_head(pooled))
        self._check_map("cls_logits", logits.roll(1, dims=1))  # theirs has the background first
        columns = torch.arange(0, deltas.shape[1] + 4, 3)
        classes = columns >= 4  # ours has no deltas of the background
        expected = self.arrays["bbox_deltas"][:, classes]
        self._check_part("bbox_deltas", deltas[:, columns[classes] - 4], expected)

    def check_mask_features(self) -> None:
        if "mask_fused_feat" not in self.arrays:
            return
        head = self.heads.mask_head
        with torch.no_grad():
            fused = head.fusion(self._pool(self.heads.mask_pooler, "mask_rois"))
            shared = head.shared(fused)
            upsampled = head.deconv(head.conv(shared)).relu()
            branch = head.fc_branch(shared)
        self._check_map("mask_fused_feat", fused[:, ::64])
        self._check_map("mask_fcn_feat", upsampled[:, ::64])
        self._check_map("mask_fc_branch", branch.flatten(1))

    def check_mask_logits(self) -> None:
        if "mask_logits" not in self.arrays:
            return
        with torch.no_grad():
            logits = self.heads.mask_head.layers(self._pool(self.heads.mask_pooler, "mask_rois"))
        # every 16th of 81 classes, the first of which is the background
        self._check_part("mask_logits", logits[:, 15::16], self.arrays["mask_logits"][:, 1:])

    def check_detections(self) -> None:
        if "det_boxes" not in self.arrays:
            return
        scores = self.arrays["det_scores"]
        assert len(self.found) == len(scores)
        partner = self._pair_detections()
        assert len(set(partner)) == len(partner)
        np.testing.assert_allclose(self.found.scores[partner], scores, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(
            self.found.pred_classes[partner] + 1, self.arrays["det_classes"]
        )
        boxes = self.found.pred_boxes.tensor[partner] - _PIXEL
        self._check_close("det_boxes", boxes, 0.05)

    def check_masks(self) -> None:
        if "det_masks" not in self.arrays:
            return
        probs = self.arrays["det_mask_prob"]
        with torch.no_grad():
            (raw,) = self.model.inference(self.batch, do_postprocess=False)
        placed = raw.pred_masks[torch.tensor(self._pair_detections())]
        self._check_map("det_mask_prob", placed.scores[: len(probs), 1:-1, 1:-1])
        expected = self.fixture.unpack_masks("det_masks", *self.output_size)
        masks = self.found.pred_masks[self._pair_detections()].numpy()
        areas = Boxes(self._read_boxes("det_boxes")).area().numpy()
        different = (masks != expected).sum(axis=(1, 2))
        assert (different <= 0.005 * areas).all(), (different / areas).max()

    def check_mask_targets(self) -> None:
        if "train_mask_targets" not in self.arrays:
            return
        foreground = self._select_foreground()
        inclusive = foreground.proposal_boxes.tensor - _PIXEL
        self._check_close("train_mask_rois", inclusive, 1e-3)
        targets = foreground.gt_masks.crop_and_resize(inclusive, _SIDE).numpy()
        expected = self.fixture.unpack_masks("train_mask_targets", _SIDE, _SIDE)
        np.testing.assert_array_equal(targets, expected)

    def check_losses(self) -> None:
        if "loss.loss_cls" not in self.arrays:
            return
        with EventStorage(), torch.no_grad():
            self.heads.train()
            losses = self.heads.compute_legacy_losses(self.images, self.features, [self.training])
            self.heads.eval()
        names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox"}
        if self.heads.mask_on:
            names["loss_mask"] = "loss_mask"
        assert losses.keys() == names.keys()
        for ours, theirs in names.items():
            self._check_relative(f"loss.{theirs}", losses[ours])

    @cached_property
    def found(self) -> Instances:
        return self._detect(self.model)

    @cached_property
    def training(self) -> Instances:
        """The regions that the official heads were trained on, with their ground truth."""
        scale = self.source["im_scale"]
        regions = Instances(self.image_size)
        regions.proposal_boxes = Boxes(self._read_boxes("train_rois"))
        gt_boxes = Boxes(torch.from_numpy(self.arrays["gt_boxes"]) * scale + _PIXEL)
        matched = pairwise_iou(gt_boxes, regions.proposal_boxes).argmax(dim=0)
        labels = torch.from_numpy(self.arrays["train_labels"]).long()
        classes = torch.from_numpy(self.arrays["gt_classes"])[matched]
        assert torch.equal(labels[labels > 0], classes[labels > 0])
        regions.gt_classes = torch.where(labels > 0, labels - 1, self.heads.num_classes)
        regions.gt_boxes = gt_boxes[matched]
        if not self.heads.mask_on:
            return regions
        polygons = PolygonMasks([[row * scale] for row in self.arrays["gt_polygons"]])
        # parity: that of the polygon whose own box has the highest IoU with the region
        bounds = Boxes(polygons.get_bounding_boxes().tensor + _PIXEL)
        regions.gt_masks = polygons[pairwise_iou(bounds, regions.proposal_boxes).argmax(dim=0)]
        return regions

    def _select_foreground(self) -> Instances:
        return self.training[self.training.gt_classes < self.heads.num_classes]

    def _pool(self, pooler: Any, name: str) -> list[Tensor]:
        maps = [self.features[level] for level in self.heads.in_features]
        return pooler(maps, [Boxes(self._read_boxes(name))])

    def _read_boxes(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name]) + _PIXEL

    def _check_part(self, name: str, got: Tensor, expected: np.ndarray) -> None:
        np.testing.assert_allclose(
            got, expected, rtol=MAP_RELATIVE, atol=MAP_ABSOLUTE, err_msg=name
        )

    def _pair_detections(self) -> list[int]:
        """For each stored detection ours: they are stored by class, not by score."""
        expected = Boxes(self._read_boxes("det_boxes"))
        classes = torch.from_numpy(self.arrays["det_classes"]) - 1
        same = self.found.pred_classes == classes[:, None]
        return (pairwise_iou(expected, self.found.pred_boxes) * same).argmax(dim=1).tolist()

    def _make_cfg(self) -> Any:
        """The shipped config; where the fixture's differs, the fixture's."""
        theirs, cfg = self.fixture.spec["config"], super()._make_cfg()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = theirs["num_classes"] - 1
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = theirs["test_score_thr"]
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = theirs["test_nms_iou"]
        cfg.TEST.DETECTIONS_PER_IMAGE = theirs["test_max_per_img"]
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = theirs["rpn_test"]["pre_nms_per_level"]
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = theirs["rpn_test"]["post_nms"]
        cfg.MODEL.RPN.NMS_THRESH = theirs["rpn_test"]["nms_iou"]
        return cfg
