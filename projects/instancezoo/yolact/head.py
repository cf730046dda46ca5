"""The network of YOLACT behind the pyramid.

Legend: N images, C channels, H W map size, P anchors of all levels, A anchors of a cell,
K classes, D prototypes, M masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instancezoo.modeling.levels import list_map_sizes


@dataclass(frozen=True)
class YOLACTOutputs:
    """What the head predicts; anchors of all levels follow each other, see `make_anchors`.

    Attributes:
        cls_logits: (N, P, K + 1), background first.
        deltas: (N, P, 4), encoded boxes, see `decode_boxes`.
        coefficients: (N, P, D) in (-1, 1).
        prototypes: (N, D, H, W), at least 0.
        semantic_logits: (N, K, H, W) on the finest level; None in inference.
        map_sizes: height and width of each level.
    """

    cls_logits: Tensor
    deltas: Tensor
    coefficients: Tensor
    prototypes: Tensor
    semantic_logits: Tensor | None
    map_sizes: list[tuple[int, int]]


class YOLACTHead(nn.Module):
    """Prototypes on the finest map, and predictions of all anchors (YOLACT, section 3).

    Args:
        tower: (N, C, H, W) -> (N, C', H, W), shared by the levels and the three predictions.
        cls_logits: (N, C', H, W) -> (N, A * (K + 1), H, W).
        bbox_pred: ... -> (N, A * 4, H, W).
        coefficients: ... -> (N, A * D, H, W).
        prototypes: finest map (N, C, H, W) -> (N, D, 2 * H, 2 * W).
        semantic: finest map -> (N, K, H, W); only training needs it (section 3.4).
        mask_iou: see `MaskIoUNet`; None for YOLACT.
        num_classes: K.
        num_prototypes: D.
    """

    def __init__(
        self,
        *,
        tower: nn.Module,
        cls_logits: nn.Module,
        bbox_pred: nn.Module,
        coefficients: nn.Module,
        prototypes: nn.Module,
        semantic: nn.Module,
        mask_iou: MaskIoUNet | None,
        num_classes: int,
        num_prototypes: int,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.cls_logits = cls_logits
        self.bbox_pred = bbox_pred
        self.coefficients = coefficients
        self.prototypes = prototypes
        self.semantic = semantic
        self.mask_iou = mask_iou
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes

    def forward(self, features: list[Tensor]) -> YOLACTOutputs:
        """Feature maps (N, C, H_l, W_l), the finest first -> `YOLACTOutputs`."""
        towers = [self.tower(feature) for feature in features]
        return YOLACTOutputs(
            cls_logits=_join_anchors(map(self.cls_logits, towers), self.num_classes + 1),
            deltas=_join_anchors(map(self.bbox_pred, towers), 4),
            coefficients=_join_anchors(map(self.coefficients, towers), self.num_prototypes).tanh(),
            prototypes=self.prototypes(features[0]).relu(),
            semantic_logits=self.semantic(features[0]) if self.training else None,
            map_sizes=list_map_sizes(features),
        )


def _join_anchors(maps: Iterable[Tensor], width: int) -> Tensor:
    """Maps (N, A * width, H_l, W_l), anchor by anchor -> (N, P, width)."""
    return torch.cat(
        [m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, width) for m in maps],  # (N, H*W*A, width)
        dim=1,
    )


class DoubleSize(nn.Module):
    """Bilinear resize to twice the height and width."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 * H, 2 * W)."""
        return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


class MaskIoUNet(nn.Module):
    """Predicts the IoU of each mask with its object, for every class (YOLACT++, section 6.1).

    Args:
        channels: of its 3x3 convolutions, which have stride 2 and no padding.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.smallest = 2 ** (len(channels) + 1) - 1  # side that leaves one cell
        layers: list[nn.Module] = []
        for width, following in zip((1, *channels), channels, strict=False):
            layers += [nn.Conv2d(width, following, 3, stride=2), nn.ReLU()]
        layers += [nn.Conv2d(channels[-1], num_classes, 1), nn.ReLU()]
        self.convs = nn.Sequential(*layers)

    def forward(self, mask_probs: Tensor) -> Tensor:
        """Cropped masks (M, 1, H, W) in [0, 1] -> IoU of each class (M, K), at least 0.

        Smaller maps than the convolutions need get a border of zeros, as outside the crop.
        """
        below, right = (max(0, self.smallest - side) for side in mask_probs.shape[2:])
        mask_probs = F.pad(mask_probs, (0, right, 0, below))
        ious: Tensor = self.convs(mask_probs).amax(dim=(2, 3))
        return ious


def build_head(
    channels: int,
    *,
    num_classes: int,
    num_anchors: int,
    num_prototypes: int,
    head_channels: int,
    proto_channels: int,
    mask_iou_channels: Sequence[int] = (),
) -> YOLACTHead:
    """Build the network behind the pyramid, weights Xavier uniform and biases 0.

    Args:
        channels: C of the pyramid.
        num_classes: K.
        num_anchors: A.
        num_prototypes: D.
        head_channels, proto_channels: channels before the predictions and the prototypes.
        mask_iou_channels: see `MaskIoUNet`; none for YOLACT.
    """
    head = YOLACTHead(
        tower=nn.Sequential(_conv3x3(channels, head_channels), nn.ReLU()),
        cls_logits=_conv3x3(head_channels, num_anchors * (num_classes + 1)),
        bbox_pred=_conv3x3(head_channels, num_anchors * 4),
        coefficients=_conv3x3(head_channels, num_anchors * num_prototypes),
        prototypes=_build_protonet(channels, proto_channels, num_prototypes),
        semantic=nn.Conv2d(channels, num_classes, 1),
        mask_iou=MaskIoUNet(mask_iou_channels, num_classes) if mask_iou_channels else None,
        num_classes=num_classes,
        num_prototypes=num_prototypes,
    )
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return head


def _build_protonet(in_channels: int, channels: int, num_prototypes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (in_channels, channels, channels):
        layers += [_conv3x3(width, channels), nn.ReLU()]
    layers += [DoubleSize(), _conv3x3(channels, channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, num_prototypes, 1))


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)
