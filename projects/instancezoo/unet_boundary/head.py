"""The head: 1x1 convolutions on the U-Net's map.

Legend: N images, C channels, K classes, H W map size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

# Channels of the boundary logits: softmax over three, or sigmoids of object and border.
SOFTMAX_CHANNELS, SIGMOID_CHANNELS = 3, 2


@dataclass(frozen=True)
class BoundaryMaps:
    """Outputs of `BoundaryHead`, all at the image's own size.

    Attributes:
        logits: (N, 3, H, W), interior, border, background, before a softmax; or (N, 2, H, W),
            object and border, before sigmoids.
        object_logits: (N, 1, H, W) of whole objects, before a sigmoid; None without.
        cls_logits: (N, K, H, W), before a softmax; None for one class.
    """

    logits: Tensor
    object_logits: Tensor | None
    cls_logits: Tensor | None

    def at(self, index: slice) -> BoundaryMaps:
        """The maps of some images."""
        parts = (self.logits, self.object_logits, self.cls_logits)
        logits, *others = (None if part is None else part[index] for part in parts)
        assert logits is not None
        return BoundaryMaps(logits, *others)

    def predict_interior(self) -> tuple[Tensor, Tensor]:
        """Probabilities of interior (whole object, of sigmoids) and border: (N, H, W) fp32 each."""
        logits = self.logits.float()
        is_sigmoid = logits.shape[1] == SIGMOID_CHANNELS
        probs = logits.sigmoid() if is_sigmoid else logits.softmax(dim=1)
        return probs[:, 0], probs[:, 1]

    def predict_objects(self) -> Tensor | None:
        """Probability of whole objects: (N, H, W) fp32; None without such an output."""
        if self.logits.shape[1] == SIGMOID_CHANNELS:
            return self.predict_interior()[0]
        return None if self.object_logits is None else self.object_logits[:, 0].float().sigmoid()


class BoundaryHead(nn.Module):
    """Boundary classes, and on demand whole objects and object classes, as 1x1 convolutions.

    Args:
        in_channels: of the U-Net's map.
        num_channels: of the boundary logits.
        num_classes: K; one class needs no output.
        with_objects: predict whole objects, too.
    """

    def __init__(
        self, in_channels: int, *, num_channels: int, num_classes: int, with_objects: bool
    ) -> None:
        super().__init__()
        # PyTorch's initialisation: from small weights, probabilities would take hundreds of steps
        # to leave the middle.
        self.boundary = nn.Conv2d(in_channels, num_channels, kernel_size=1)
        self.objects = nn.Conv2d(in_channels, 1, kernel_size=1) if with_objects else None
        self.classes = (
            nn.Conv2d(in_channels, num_classes, kernel_size=1) if num_classes > 1 else None
        )

    def forward(self, features: list[Tensor]) -> BoundaryMaps:
        """One map (N, C, H, W) -> the logits on it."""
        (features_,) = features
        return BoundaryMaps(
            self.boundary(features_),
            None if self.objects is None else self.objects(features_),
            None if self.classes is None else self.classes(features_),
        )
