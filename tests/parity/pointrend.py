"""PointRend against the fixtures of the official code."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor

from instancezoo.layers.points import make_grid_points, place_points, subdivide
from instancezoo.pointrend.mask_head import Regions
from instancezoo.pointrend.targets import sample_labels

from .base import ParityBase
from .fixtures import Fixture

STATED = {
    "arrays": "abs 2e-3 + rel 1e-3",
    "proposal_boxes": "99 % of the rows need a partner within 0.05 px",
    "train_points, train_point_*": "99 %",
    "det_scores": 0.001,
    "det_boxes": 0.05,
    "uncertain_index": "at least 97 %",
    "mask_logits_*": "at least 98 % of the entries within abs 5e-3 + rel 1e-3",
    "masks": "at most 0.5 % of an instance's box area may differ",
    "losses": "rel 1e-3",
}
_MAP_STEPS = {"p2": 4, "p3": 2, "p4": 1, "p5": 1, "p6": 1}
_STORED_SIDE = 56


class PointRendParity(ParityBase):
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "checkpoint",
        "maps",
        "proposals",
        "region_features",
        "coarse_masks",
        "first_grid",
        "subdivision",
        "detections",
        "masks",
        "training_points",
        "labels",
        "point_logits",
        "losses",
    )
    stated = STATED
    preprocess = "preprocess_image"

    def __init__(self, fixture: Fixture) -> None:
        super().__init__(fixture)
        self.head = self.model.roi_heads.mask_head

    @property
    def image_size(self) -> tuple[int, int]:
        return self.source["height"], self.source["width"]

    @property
    def output_size(self) -> tuple[int, int]:
        return self.source["output_height"], self.source["output_width"]

    def check_checkpoint(self) -> None:
        super().check_checkpoint()
        published = "mask_coarse_head" in "".join(self.state)
        assert published == (self.fixture.spec["config"]["key_layout"] == "published 2020")

    def check_maps(self) -> None:
        self._check_map("net_input", self.images.tensor[0, :, ::8, ::8])
        for level, step in _MAP_STEPS.items():
            self._check_map(level, self.features[level][0, ::16, ::step, ::step])

    def check_proposals(self) -> None:
        (found,) = self.proposals
        boxes, expected = found.proposal_boxes.tensor.numpy(), self.arrays["proposal_boxes"]
        assert len(boxes) == len(expected)
        distance = np.abs(boxes[:, None] - expected[None]).max(axis=2).min(axis=0)
        assert (distance <= 0.05).mean() >= 0.99
        self._check_map("proposal_logits", found.objectness_logits)

    def check_region_features(self) -> None:
        expected = self.arrays["roi_feat"]
        side = expected.shape[2]
        grid = make_grid_points(side).expand(len(self.regions), -1, -1)
        points = place_points(grid, self.regions.boxes)
        features = self._sample("coarse_features", points).transpose(1, 2)
        features = features.unflatten(2, (side, side))
        self._check_map("roi_feat", features[: len(expected), ::32])

    def check_coarse_masks(self) -> None:
        self._check_map("coarse_logits", self.coarse[: len(self.arrays["coarse_logits"]), ::8])

    def check_first_grid(self) -> None:
        points = make_grid_points(self.head.subdivision.first_side)
        points = points.expand(len(self.regions), -1, -1)
        fine = self._sample("point_features", place_points(points, self.regions.boxes))
        count = len(self.arrays["point_fine_features"])
        self._check_map("point_fine_features", fine[:count, :, ::32].transpose(1, 2))
        name = f"point_logits_{self.head.subdivision.first_side}"
        classes = range(0, self.head.point_head.predictor.out_channels, 10)
        logits = [self._evaluate(points, torch.full_like(self.regions.classes, c)) for c in classes]
        self._check_map(name, torch.stack(logits, dim=1)[: len(self.arrays[name])])

    def check_subdivision(self) -> None:
        plan = self.head.subdivision
        points = make_grid_points(plan.first_side).expand(len(self.regions), -1, -1)
        side = plan.first_side
        logits = self._evaluate(points, self.regions.classes).unflatten(1, (side, side))
        chosen: list[Tensor] = []

        def evaluate(points: Tensor) -> Tensor:
            assert points.shape[1] == plan.num_points  # only the selected points, ever
            columns, rows = (points * side).long().unbind(dim=2)
            chosen.append(rows * side + columns)
            return self._evaluate(points, self.regions.classes)

        for _ in range(plan.num_steps):
            side *= 2
            logits = subdivide(logits, 1, plan.num_points, evaluate)
            self._check_cells(f"uncertain_index_{side}", chosen[-1])
            name = f"mask_logits_{side}"
            step = side // _STORED_SIDE
            self._check_map(name, logits[: len(self.arrays[name]), ::step, ::step], 5e-3, 0.98)
        last = self.arrays[f"det_mask_prob_{side}"]
        self._check_map(
            f"det_mask_prob_{side}", logits[: len(last), ::4, ::4].sigmoid(), 2e-3, 0.98
        )

    def check_detections(self) -> None:
        scores = self.arrays["det_scores"]
        assert len(self.found) == len(scores)
        np.testing.assert_allclose(self.found.scores, scores, rtol=0, atol=1e-3)
        partner = self._pair_detections()
        np.testing.assert_array_equal(self.found.pred_classes[partner], self.arrays["det_classes"])
        np.testing.assert_allclose(
            self.found.pred_boxes.tensor[partner], self.arrays["det_boxes"], rtol=0, atol=0.05
        )

    def check_masks(self) -> None:
        expected = self.fixture.unpack_masks("det_masks", *self.output_size)
        masks = self.found.pred_masks[self._pair_detections()].numpy()
        areas = Boxes(torch.from_numpy(self.arrays["det_boxes"])).area().numpy()
        different = (masks != expected).sum(axis=(1, 2))
        assert (different <= 0.005 * areas).all(), (different / areas).max()

    def check_training_points(self) -> None:
        name = "train_coarse_logits_gt_class"
        regions, coarse = self.training_regions, self.training_coarse
        rows = torch.arange(len(regions))
        self._check_map(name, coarse[rows, regions.classes])
        points = self.head.choose_points(coarse, regions.classes, *self.uniform_points)
        self._check_map("train_points", points, share=0.99)
        counts = self.head.training_points
        assert counts.num_candidates == self.uniform_points[0].shape[1]
        assert counts.num_fresh == self.uniform_points[1].shape[1]
        targets = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, 7) for x in self.training]
        np.testing.assert_array_equal(torch.cat(targets), self.arrays["train_mask_target_7"])

    def check_labels(self) -> None:
        masks, points = [x.gt_masks.tensor for x in self.training], self.training_points
        labels = sample_labels(masks, torch.arange(len(points)), points)
        self._check_map("train_point_labels", labels, share=0.99)

    def check_point_logits(self) -> None:
        with torch.no_grad():
            logits = self.head.predict_points(
                self.head.make_sampler(self.features, self.head.point_features),
                self.training_regions,
                self.training_coarse,
                torch.from_numpy(self.arrays["train_points"]),
            )
        self._check_map("train_point_logits_gt_class", logits, share=0.99)

    def check_losses(self) -> None:
        with EventStorage():
            losses = self.head.losses(self.features, self.training, *self.uniform_points)
        for name in ("loss_mask", "loss_mask_point"):
            self._check_relative(f"loss.{name}", losses[name])

    @cached_property
    def proposals(self) -> list[Instances]:
        with torch.no_grad():
            return self.model.proposal_generator(self.images, self.features, None)[0]

    @cached_property
    def regions(self) -> Regions:
        boxes = torch.from_numpy(self.arrays["det_boxes_input"])
        classes = torch.from_numpy(self.arrays["det_classes"])
        return Regions(boxes, torch.zeros_like(classes), classes)

    @cached_property
    def coarse(self) -> Tensor:
        return self._predict_coarse(self.regions)

    @cached_property
    def found(self) -> Instances:
        return self._detect(self.model)

    @cached_property
    def training(self) -> list[Instances]:
        """The foreground proposals that the official mask head was trained on."""
        matched = self.arrays["train_matched_gt"]
        masks = torch.from_numpy(self.fixture.unpack_masks("gt_masks", *self.image_size))
        instances = Instances(self.image_size)
        instances.proposal_boxes = Boxes(torch.from_numpy(self.arrays["train_proposals"]))
        instances.gt_classes = torch.from_numpy(self.arrays["gt_classes"][matched])
        instances.gt_masks = BitMasks(masks[matched])
        return [instances]

    @cached_property
    def training_regions(self) -> Regions:
        return Regions.collect(self.training, training=True)

    @cached_property
    def training_coarse(self) -> Tensor:
        return self._predict_coarse(self.training_regions)

    @property
    def training_points(self) -> Tensor:
        points = torch.from_numpy(self.arrays["train_points"])
        return place_points(points, self.training_regions.boxes)

    @property
    def uniform_points(self) -> tuple[Tensor, Tensor]:
        names = ("train_point_candidates", "train_point_rest")
        candidates, fresh = (torch.from_numpy(self.arrays[name]) for name in names)
        return candidates, fresh

    def _predict_coarse(self, regions: Regions) -> Tensor:
        sampler = self.head.make_sampler(self.features, self.head.coarse_features)
        with torch.no_grad():
            return self.head.predict_coarse(sampler, regions)

    def _sample(self, names: str, points: Tensor) -> Tensor:
        sampler = self.head.make_sampler(self.features, getattr(self.head, names))
        return sampler(self.regions.owners, points)

    def _evaluate(self, points: Tensor, classes: Tensor) -> Tensor:
        sampler = self.head.make_sampler(self.features, self.head.point_features)
        regions = Regions(self.regions.boxes, self.regions.owners, classes)
        with torch.no_grad():
            return self.head.predict_points(sampler, regions, self.coarse, points)

    def _pair_detections(self) -> list[int]:
        """For each stored detection ours: near-equal scores may have changed places."""
        boxes = Boxes(torch.from_numpy(self.arrays["det_boxes"]))
        same = self.found.pred_classes == torch.from_numpy(self.arrays["det_classes"])[:, None]
        return (pairwise_iou(boxes, self.found.pred_boxes) * same).argmax(dim=1).tolist()

    def _check_cells(self, name: str, cells: Tensor) -> None:
        for row, expected in enumerate(self.arrays[name]):
            common = np.intersect1d(cells[row].numpy(), expected)
            assert len(common) >= 0.97 * len(expected), f"{name}, detection {row}"

    def _make_cfg(self) -> Any:
        """The shipped config; where the fixture's differs, the fixture's."""
        theirs = self.fixture.spec["config"]
        cfg = super()._make_cfg()
        coarse, point = theirs["coarse"], theirs["point"]
        head, points = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.POINT_HEAD
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = points.NUM_CLASSES = theirs["num_classes"]
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = theirs["test_score_thr"]
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = theirs["test_nms_iou"]
        cfg.TEST.DETECTIONS_PER_IMAGE = theirs["test_topk"]
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = theirs["rpn_test"]["pre_nms_per_level"]
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = theirs["rpn_test"]["post_nms"]
        cfg.MODEL.RPN.NMS_THRESH = theirs["rpn_test"]["nms_iou"]
        head.IN_FEATURES, points.IN_FEATURES = coarse["in_features"], point["in_features"]
        head.POOLER_RESOLUTION, head.CONV_DIM = coarse["pool"], coarse["conv"]
        head.NUM_FC, head.FC_DIM = len(coarse["fc"]), coarse["fc"][0]
        head.OUTPUT_SIDE_RESOLUTION = coarse["side"]
        points.NUM_FC, points.FC_DIM = len(point["fc"]), point["fc"][0]
        points.COARSE_PRED_EACH_LAYER = point["coarse_pred_each_layer"]
        points.CLS_AGNOSTIC_MASK = point.get("cls_agnostic_mask", False)
        points.TRAIN_NUM_POINTS = point["train_points"]
        points.OVERSAMPLE_RATIO = point["oversample"]
        points.IMPORTANCE_SAMPLE_RATIO = point["importance"]
        points.SUBDIVISION_STEPS = point["subdivision_steps"]
        points.SUBDIVISION_NUM_POINTS = point["subdivision_points"]
        return cfg
