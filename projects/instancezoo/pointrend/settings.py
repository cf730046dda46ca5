"""Settings of training and inference that all uses of the point head share.

Legend: R regions, P points, S grid side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.config import CfgNode
from torch import Tensor

from instancezoo.layers.points import make_grid_points, plan_subdivision, subdivide

# (n,) long, which regions; (n, P, 2) points in their frames -> (n, P) logits
EvaluateRegions = Callable[[Tensor, Tensor], Tensor]
# Enough to keep a GPU busy; about 200 MB at 784 points each.
_REGIONS_AT_ONCE = 64


@dataclass(frozen=True)
class TrainingPoints:
    """Numbers of points in each region (section 3.1).

    Attributes:
        num_candidates: kN random points.
        num_uncertain: beta * N, the most uncertain candidates, which are trained on.
        num_fresh: (1 - beta) * N further random points, for coverage.
    """

    num_candidates: int
    num_uncertain: int
    num_fresh: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TrainingPoints:
        """Read `MODEL.POINT_HEAD`."""
        node = cfg.MODEL.POINT_HEAD
        count = node.TRAIN_NUM_POINTS
        num_uncertain = int(node.IMPORTANCE_SAMPLE_RATIO * count)
        return cls(int(node.OVERSAMPLE_RATIO * count), num_uncertain, count - num_uncertain)

    def sample(self, num_regions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Sample uniform points, (R, candidates, 2) and (R, fresh, 2), in [0, 1)."""
        candidates = torch.rand(num_regions, self.num_candidates, 2, device=device)
        return candidates, torch.rand(num_regions, self.num_fresh, 2, device=device)


@dataclass(frozen=True)
class SubdivisionSettings:
    """How masks are refined (section 3.2).

    Attributes:
        first_side: side of the grid whose cells are all evaluated.
        num_steps: number of doublings after it.
        num_points: cells that are evaluated anew after each.
    """

    first_side: int
    num_steps: int
    num_points: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SubdivisionSettings:
        """Read `MODEL.POINT_HEAD` and the side of the coarse mask."""
        node, side = cfg.MODEL.POINT_HEAD, cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        num_points = node.SUBDIVISION_NUM_POINTS
        return cls(*plan_subdivision(side, node.SUBDIVISION_STEPS, num_points), num_points)

    def render(self, evaluate: EvaluateRegions, num_regions: int, device: torch.device) -> Tensor:
        """Evaluate a regular grid in every region and refine it, some regions at a time.

        Args:
            evaluate: gives the logits (n, P) of points in the frames of n regions.
            num_regions: R.
            device: of the points.

        Returns:
            (R, S, S) logits. Without regions S is the first side, as in the official code.
        """
        side = self.first_side
        if not num_regions:
            return torch.zeros((0, side, side), device=device)
        grid, parts = make_grid_points(side, device), []
        for rows in torch.arange(num_regions, device=device).split(_REGIONS_AT_ONCE):
            evaluate_rows = partial(evaluate, rows)
            logits = evaluate_rows(grid.expand(len(rows), -1, -1)).unflatten(1, (side, side))
            parts.append(subdivide(logits, self.num_steps, self.num_points, evaluate_rows))
        return torch.cat(parts)
