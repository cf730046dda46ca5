"""Networks of SOLO (section 3.2) and Decoupled SOLO (section 3.4), and how a config builds them.

Legend: N images, C channels, H W map size of a level, L levels, S grid side, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from instancezoo.layers.coords import append_coordinates
from instancezoo.modeling.towers import build_prediction, build_tower

from .config import DCN_VERSIONS
from .masks import DecoupledMasks, GridOutputs, SOLOMasks, resize_map


class CategoryBranch(nn.Module):
    """Category of each cell.

    Args:
        tower: convolutions in sequence.
        predict: last convolution, to K channels.
        num_grids: L grid sides.
        resize_before: index of the tower's convolution before which maps are resized to S x S.
    """

    def __init__(
        self,
        *,
        tower: nn.Sequential,
        predict: nn.Module,
        num_grids: Sequence[int],
        resize_before: int = 0,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.predict = predict
        self.num_grids = list(num_grids)
        self.resize_before = resize_before

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """L re-arranged levels (N, C, H, W) -> L logits (N, K, S, S)."""
        logits = []
        for features, side in zip(levels, self.num_grids, strict=True):
            features = self.tower[: self.resize_before](features)
            features = resize_map(features, (side, side))
            logits.append(self.predict(self.tower[self.resize_before :](features)))
        return logits


class SOLOHead(nn.Module):
    """A category per cell, and a mask channel per cell.

    Args:
        cate_branch: see `CategoryBranch`.
        mask_tower: takes features with both coordinates.
        mask_predict: L 1x1 convolutions to S * S channels.
    """

    def __init__(
        self, *, cate_branch: CategoryBranch, mask_tower: nn.Module, mask_predict: nn.ModuleList
    ) -> None:
        super().__init__()
        self.cate_branch = cate_branch
        self.mask_tower = mask_tower
        self.mask_predict = mask_predict

    def forward(self, pyramid: list[Tensor]) -> GridOutputs:
        """Feature maps p2 .. p6, each (N, C, H, W)."""
        levels = rearrange_levels(pyramid)
        features = [double_map(self.mask_tower(append_coordinates(level))) for level in levels]
        masks = SOLOMasks(features, self.mask_predict, self.cate_branch.num_grids)
        return GridOutputs(self.cate_branch(levels), masks)


class DecoupledSOLOHead(nn.Module):
    """A category per cell, a mask channel per grid column, and one per grid row.

    Args:
        cate_branch: see `CategoryBranch`.
        mask_towers: one for x and one for y, each with its own coordinate; or a single tower with
            both coordinates that feeds both (light models).
        predict_x, predict_y: L 3x3 convolutions to S channels each.
    """

    def __init__(
        self,
        *,
        cate_branch: CategoryBranch,
        mask_towers: nn.ModuleDict,
        predict_x: nn.ModuleList,
        predict_y: nn.ModuleList,
    ) -> None:
        super().__init__()
        self.cate_branch = cate_branch
        self.mask_towers = mask_towers
        self.predict_x = predict_x
        self.predict_y = predict_y

    def forward(self, pyramid: list[Tensor]) -> GridOutputs:
        """Feature maps p2 .. p6, each (N, C, H, W)."""
        levels = rearrange_levels(pyramid)
        x_logits, y_logits = [], []
        for index, level in enumerate(levels):
            features = [
                double_map(tower(append_coordinates(level, axes)))
                for axes, tower in self.mask_towers.items()
            ]
            x_logits.append(self.predict_x[index](features[0]))
            y_logits.append(self.predict_y[index](features[-1]))
        return GridOutputs(self.cate_branch(levels), DecoupledMasks(x_logits, y_logits))


def rearrange_levels(pyramid: list[Tensor]) -> list[Tensor]:
    """Halve the finest level, and bring the coarsest to the size of the one before.

    Args:
        pyramid: L tensors (N, C, H, W) of strides 4, 8, 16, 32, 64.

    Returns:
        L tensors of strides 8, 8, 16, 32, 32.
    """
    height, width = pyramid[0].shape[2:]
    halved = resize_map(pyramid[0], (height // 2, width // 2))
    return [halved, *pyramid[1:-1], resize_map(pyramid[-1], pyramid[-2].shape[2:])]


def rearrange_strides(names: Sequence[str], shapes: dict[str, ShapeSpec]) -> list[int]:
    """Strides of the re-arranged levels of a pyramid of named backbone outputs."""
    strides = [int(shapes[name].stride) for name in names]
    return [2 * strides[0], *strides[1:-1], strides[-2]]


def double_map(features: Tensor) -> Tensor:
    """Bilinear enlargement by two of (N, C, H, W)."""
    height, width = features.shape[2:]
    return resize_map(features, (2 * height, 2 * width))


def build_solo_head(cfg: CfgNode) -> SOLOHead:
    """SOLO's head from `cfg.MODEL.SOLO`."""
    node, in_channels = cfg.MODEL.SOLO, cfg.MODEL.FPN.OUT_CHANNELS
    predict = nn.ModuleList(
        build_prediction(node.INSTANCE_CHANNELS, side * side, kernel_size=1, prior=node.PRIOR_PROB)
        for side in node.NUM_GRIDS
    )
    return SOLOHead(
        cate_branch=_build_category_branch(node, in_channels),
        mask_tower=build_grid_tower(node, in_channels + 2),
        mask_predict=predict,
    )


def build_decoupled_head(cfg: CfgNode) -> DecoupledSOLOHead:
    """Decoupled SOLO's head from `cfg.MODEL.SOLO`."""
    node, in_channels = cfg.MODEL.SOLO, cfg.MODEL.FPN.OUT_CHANNELS
    axes = ["xy"] if node.SHARED_MASK_TOWER else ["x", "y"]
    towers = {name: build_grid_tower(node, in_channels + len(name)) for name in axes}
    predict_x, predict_y = (
        nn.ModuleList(
            build_prediction(node.INSTANCE_CHANNELS, side, prior=node.PRIOR_PROB)
            for side in node.NUM_GRIDS
        )
        for _ in "xy"
    )
    return DecoupledSOLOHead(
        cate_branch=_build_category_branch(node, in_channels),
        mask_towers=nn.ModuleDict(towers),
        predict_x=predict_x,
        predict_y=predict_y,
    )


def build_grid_tower(node: CfgNode, in_channels: int) -> nn.Sequential:
    """A tower from a node with the keys of `add_grid_keys`."""
    return build_tower(
        in_channels,
        node.INSTANCE_CHANNELS,
        node.NUM_INSTANCE_CONVS,
        norm=node.NORM,
        deformable=DCN_VERSIONS[node.TYPE_DCN] if node.USE_DCN_IN_INSTANCE else "",
        deformable_last_only=node.DCN_LAST_CONV_ONLY,
    )


def _build_category_branch(node: CfgNode, in_channels: int) -> CategoryBranch:
    predict = build_prediction(node.INSTANCE_CHANNELS, node.NUM_CLASSES, prior=node.PRIOR_PROB)
    return CategoryBranch(
        tower=build_grid_tower(node, in_channels),
        predict=predict,
        num_grids=node.NUM_GRIDS,
        resize_before=node.CATE_DOWN_POS,
    )
