"""SOLO, Decoupled SOLO and SOLOv2 against the fixtures of the official code."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from instancezoo.modeling.levels import level_offsets
from instancezoo.solo.decode import compute_cell_probs, rank_candidates, suppress
from instancezoo.solo.masks import predict_masks
from instancezoo.solo.targets import CellTargets, reduce_masks

from .base import ParityBase
from .fixtures import MASK_PIXELS, SCORES, Fixture

KEY = {"SOLO": "SOLO", "DecoupledSOLO": "SOLO", "SOLOv2": "SOLOV2"}


class GridParity(ParityBase):
    """One fixture of the family; each `check_*` is a stage, in the order of computation."""

    stages = ("checkpoint", "maps", "targets", "losses", "candidates", "nms", "detections")
    stated = {"intermediate": "2e-4", "scores": "1e-4", "losses": "1e-4", "masks": "0.2 %"}
    overrides = ("MODEL.SOLO.KEEP_EMPTY_MASKS", True, "MODEL.SOLOV2.KEEP_EMPTY_MASKS", True)
    unused = ("num_batches_tracked",)

    def __init__(self, fixture: Fixture) -> None:
        super().__init__(fixture)
        self.method = self.cfg.MODEL.META_ARCHITECTURE
        self.node = self.cfg.MODEL[KEY[self.method]]
        self._check_config()

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.source["image_size"])

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(self.source["original_size"])

    def check_maps(self) -> None:
        check = self.fixture.check_map
        check("input_sub8", self.images.tensor[0, :, ::8, ::8])
        for level, step in (("p2", 4), ("p3", 2), ("p4", 1), ("p5", 1), ("p6", 1)):
            check(f"fpn_{level}_first8", self.features[level][0, :8, ::step, ::step])
        for level, logits in enumerate(self.outputs.cls_logits):
            check(f"cate_logits_{level}_sub", logits[0, ::5, ::3, ::3])
        getattr(self, f"_check_maps_of_{self.method}")()

    def check_targets(self) -> None:
        offsets = level_offsets(self.node.NUM_GRIDS)
        for level, side in enumerate(self.node.NUM_GRIDS):
            classes = self.targets.classes[0, offsets[level] : offsets[level + 1]]
            if self._background_is_zero():
                classes = torch.where(classes == self.node.NUM_CLASSES, 0, classes + 1)
            self.fixture.check_exact(f"target_cate_{level}", classes.view(side, side))
            cells, masks = self._rows_of_level(level)
            if f"target_order_{level}" in self.arrays:
                self.fixture.check_exact(f"target_order_{level}", cells)
            width = self.arrays[f"target_masks_{level}_shape"][2]
            expected = self.fixture.unpack(f"target_masks_{level}_packed", width)
            np.testing.assert_array_equal(masks.numpy(), expected, err_msg=f"masks of {level}")

    def check_losses(self) -> None:
        losses = self.model.losses(self.outputs, self.assigned)
        assert set(losses) == {"loss_ins", "loss_cate"}
        self.fixture.check_loss("loss_ins", losses["loss_ins"])
        self.fixture.check_loss("loss_cate", losses["loss_cate"])

    def check_candidates(self) -> None:
        found = (self.probs > self.node.SCORE_THR).nonzero()
        self.fixture.check_exact("candidate_cells", found)
        self.fixture.check_scores("candidate_scores", self.probs[found[:, 0], found[:, 1]])

    def check_nms(self) -> None:
        ranked = self.ranked
        self.fixture.check_exact("nms_labels", ranked.classes)
        self.fixture.check_scores("nms_scores_before", ranked.scores)
        self.fixture.check_scores("nms_scores_after", suppress(ranked, self.model.decode_settings))
        pixels = self.outputs_size[0] * self.outputs_size[1]
        areas = self.arrays["nms_mask_areas"]
        assert np.abs(ranked.areas.numpy() - areas).max(initial=0) <= MASK_PIXELS * pixels

    def check_detections(self) -> None:
        self._compare_detections(self._detect(self.model), self.output_size[1])

    @cached_property
    def outputs(self) -> Any:
        with torch.no_grad():
            return self.model.head([self.features[name] for name in self.model.in_features])

    @cached_property
    def outputs_size(self) -> tuple[int, int]:
        return tuple(side // 4 for side in self.images.tensor.shape[2:])

    @cached_property
    def probs(self) -> Tensor:
        return compute_cell_probs(self.outputs.cls_logits)[0]

    @cached_property
    def ranked(self) -> Any:
        with torch.no_grad():
            return rank_candidates(
                self.probs,
                self.model.cell_strides,
                self.outputs.masks,
                0,
                self.model.decode_settings,
            )

    @cached_property
    def ground_truth(self) -> Instances:
        # The official SOLO pads masks before it assigns; AdelaiDet does not.
        rows, padded = self.arrays["gt_masks_packed"].shape[1], tuple(self.source["padded_size"])
        size = padded if rows == padded[0] else self.image_size
        masks = self.fixture.unpack("gt_masks_packed", size[1])
        return self._make_instances(size, self.arrays["gt_boxes"], self.arrays["gt_classes"], masks)

    @cached_property
    def assigned(self) -> Any:
        return self.model.assign(self.outputs, self.images, [self.ground_truth])

    @property
    def targets(self) -> CellTargets:
        return self.assigned.cells

    def _background_is_zero(self) -> bool:
        return ": 0 is background" in self.fixture.spec["label_convention"]

    def _rows_of_level(self, level: int) -> tuple[Tensor, Tensor]:
        """Cells (R,) and masks (R, H, W) of a level, in the fixture's order."""
        rows = (self.targets.level == level).nonzero().squeeze(1)
        cells = self.targets.cell[rows] - level_offsets(self.node.NUM_GRIDS)[level]
        if self.model.grid.one_object_per_cell:
            cells, order = cells.sort()
            rows = rows[order]
        map_height = self.arrays[f"target_masks_{level}_shape"][1]
        stride = self.images.tensor.shape[2] // int(map_height)
        masks = reduce_masks(self.assigned.objects, stride)
        return cells, masks[self.targets.instance[rows]]

    def _check_maps_of_SOLO(self) -> None:
        for level, side in enumerate(self.node.NUM_GRIDS):
            masks, cells = self.outputs.masks, torch.arange(0, side * side, 29)
            logits = predict_masks(masks.features[level], masks.convs[level], cells)
            self.fixture.check_map(f"ins_logits_{level}_sub", logits[0, :, ::4, ::4])

    def _check_maps_of_DecoupledSOLO(self) -> None:
        for level in range(len(self.node.NUM_GRIDS)):
            for axis in "xy":
                logits = getattr(self.outputs.masks, f"{axis}_logits")[level]
                self.fixture.check_map(f"ins_{axis}_logits_{level}_sub", logits[0, ::5, ::4, ::4])

    def _check_maps_of_SOLOv2(self) -> None:
        masks, offsets = self.outputs.masks, level_offsets(self.node.NUM_GRIDS)
        for level, side in enumerate(self.node.NUM_GRIDS):
            kernels = masks.kernels[:, offsets[level] : offsets[level + 1]]  # (N, S * S, D)
            kernels = kernels.transpose(1, 2).unflatten(2, (side, side))
            self.fixture.check_map(f"kernel_{level}_sub", kernels[0, ::8, ::3, ::3])
        self.fixture.check_map("mask_feat_sub", masks.mask_feature[0, ::8, ::4, ::4])

    def _compare_detections(self, found: Instances, width: int) -> None:
        scores, classes = self.arrays["det_scores"], self.arrays["det_classes"]
        masks = self.fixture.unpack("det_masks_packed", width)
        assert len(found) == len(scores)
        self.fixture.check_scores("det_scores", found.scores)
        got_masks, got_classes = found.pred_masks.numpy(), found.pred_classes.numpy()
        boxes, expected_boxes = found.pred_boxes.tensor.numpy(), self.arrays["det_boxes_from_masks"]
        free = set(range(len(scores)))
        for index in range(len(scores)):
            # Detections with nearly the same score may change places.
            near = [
                i
                for i in free
                if abs(found.scores[i] - scores[index]) <= SCORES
                and got_classes[i] == classes[index]
            ]
            differences = {i: (got_masks[i] != masks[index]).mean() for i in near}
            assert differences, f"detection {index} has no counterpart"
            best = min(differences, key=lambda i: differences[i])
            assert differences[best] <= MASK_PIXELS, f"mask {index}"
            if not differences[best]:
                np.testing.assert_array_equal(boxes[best], expected_boxes[index])
            free.remove(best)

    def _check_config(self) -> None:
        """The shipped config says what the fixture's config says."""
        theirs = self.fixture.spec["config"]
        if "MODEL.SOLOV2" in theirs:
            node = theirs["MODEL.SOLOV2"]
            for key in ("NUM_GRIDS", "FPN_SCALE_RANGES", "SIGMA", "NUM_CLASSES", "NMS_SIGMA"):
                assert self.node[key] == node[key], key
            return
        head = theirs["model"]["bbox_head"]
        assert list(self.node.NUM_GRIDS) == head["num_grids"]
        assert list(self.node.FPN_SCALE_RANGES) == head["scale_ranges"]
        assert head["num_classes"] - 1 == self.node.NUM_CLASSES
        assert head["stacked_convs"] == self.node.NUM_INSTANCE_CONVS
