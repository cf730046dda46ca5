"""Rows and signatures that checkpoints of MMDetection and its forks share."""

from __future__ import annotations

from dataclasses import dataclass, field

from .layouts import COUNTERS, resnet_rows
from .rename import Row

UNUSED = (COUNTERS,)

_BLOCK, _OURS = "backbone.layer{s}.{b}", "backbone.bottom_up.res{s+1}.{b}"
# The offsets' name depends on MMDetection's version.
_DCN = "backbone.layer2.0.conv2**offset.weight"
_BOTTLENECK = "backbone.layer1.0.conv3.weight"
_3RD_BLOCK, _7TH_BLOCK = "backbone.layer1.2.conv1.weight", "backbone.layer3.6.conv1.weight"
_WIDTH = "backbone.layer1.0.conv1.weight"


@dataclass(frozen=True)
class Signature:
    """What distinguishes one network from its relatives, see `Layout`."""

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def __add__(self, other: Signature) -> Signature:
        shapes = {**self.shapes, **other.shapes}
        return Signature(self.must + other.must, self.must_not + other.must_not, shapes)


BACKBONES = {
    "R_18": Signature(must_not=(_BOTTLENECK, _3RD_BLOCK)),
    "R_34": Signature((_3RD_BLOCK,), (_BOTTLENECK,)),
    "R_50": Signature((_BOTTLENECK,), (_7TH_BLOCK, _DCN)),
    "R_50_DCN": Signature((_BOTTLENECK, _DCN), (_7TH_BLOCK,)),
    "R_101": Signature((_7TH_BLOCK,), (_DCN,), {_WIDTH: (64, None, None, None)}),
    "R_101_DCN": Signature((_7TH_BLOCK, _DCN), (), {_WIDTH: (64, None, None, None)}),
    "X_101_64x4d": Signature((_7TH_BLOCK,), (_DCN,), {_WIDTH: (256, None, None, None)}),
    "X_101_64x4d_DCN": Signature((_7TH_BLOCK, _DCN), (), {_WIDTH: (256, None, None, None)}),
}


def pyramid_rows(finest_level: int) -> tuple[Row, ...]:
    """Make the rows of a ResNet, with or without deformable convolutions, and of its FPN.

    Args:
        finest_level: number of the FPN's finest map, 2 for p2.
    """
    return (
        (f"{_BLOCK}.conv2.conv_offset.*", f"{_OURS}.conv2.offset.*"),
        (f"{_BLOCK}.conv2_offset.*", f"{_OURS}.conv2.offset.*"),
        *resnet_rows("backbone."),
        ("neck.lateral_convs.{n}.conv.*", f"backbone.fpn_lateral{{n+{finest_level}}}.*"),
        ("neck.fpn_convs.{n}.conv.*", f"backbone.fpn_output{{n+{finest_level}}}.*"),
    )


def conv_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Make the rows of a plain or deformable convolution with its group norm."""
    return (
        (f"{theirs}.conv.conv_offset.*", f"{ours}.offset.*"),
        (f"{theirs}.conv.weight", f"{ours}.weight"),
        (f"{theirs}.gn.*", f"{ours}.norm.*"),
    )
