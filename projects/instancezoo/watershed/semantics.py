"""Where the class of each pixel comes from: a branch of the model, or maps of another one.

Legend: N images, K classes, H W size of the padded batch, h w size of a map, D channels of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.structures import ImageList
from torch import Tensor, nn

from instancezoo.errors import ZooError

_INITIAL_STD = 0.01


class Semantics(Protocol):
    """Classes of the pixels of a batch.

    Attributes:
        logits: (N, K + 1, h, w), the background last; None if there is nothing to learn.
    """

    logits: Tensor | None

    def find_classes(self) -> Tensor:
        """(N, H, W) long, K for background and padding."""

    def find_probs(self, index: int) -> Tensor:
        """(K + 1, height, width) of an image without its padding, the background last."""


@dataclass(frozen=True)
class PredictedSemantics:
    """Semantics of `SemanticBranch`.

    Attributes:
        logits: as in `Semantics`.
        stride: of the logits in pixels.
        images: the padded batch.
        foreground_thresh: least probability of all classes together of a thing's pixel.
    """

    logits: Tensor
    stride: int
    images: ImageList
    foreground_thresh: float

    def enlarge(self, index: slice = slice(None)) -> Tensor:
        """Logits of the padded batch's size, fp32."""
        some = self.logits[index].float()
        return F.interpolate(some, scale_factor=self.stride, mode="bilinear", align_corners=False)

    def find_probs(self, index: int) -> Tensor:
        height, width = self.images.image_sizes[index]
        return self.enlarge(slice(index, index + 1))[0, :, :height, :width].softmax(dim=0)

    @torch.no_grad()
    def find_classes(self) -> Tensor:
        num_classes = self.logits.shape[1] - 1
        classes = []
        for index in range(len(self.logits)):  # all classes at full size, one image at a time
            probs = self.find_probs(index)
            best = probs[:-1].argmax(dim=0)
            best = best.where(1 - probs[-1] >= self.foreground_thresh, num_classes)
            classes.append(best)
        return _pad(classes, self.images, num_classes)


@dataclass(frozen=True)
class GivenSemantics:
    """Semantics that another model found.

    Attributes:
        classes: N maps (height, width) long, K for the background.
        images: the padded batch.
        num_classes: K.
    """

    classes: list[Tensor]
    images: ImageList
    num_classes: int
    logits: None = None

    def find_probs(self, index: int) -> Tensor:
        numbers = torch.arange(self.num_classes + 1, device=self.classes[index].device)
        return (self.classes[index] == numbers[:, None, None]).float()

    def find_classes(self) -> Tensor:
        return _pad(self.classes, self.images, self.num_classes)


class SemanticBranch(nn.Module):
    """Panoptic FPN's semantic branch.

    Args:
        in_features: names of the maps, in the order in which they come.
        branch: gives K + 1 channels.
        foreground_thresh: see `PredictedSemantics`.
    """

    def __init__(
        self, *, in_features: Sequence[str], branch: SemSegFPNHead, foreground_thresh: float = 0.5
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.branch = branch
        # Detectron2's rule gives few classes large logits
        nn.init.normal_(branch.predictor.weight, std=_INITIAL_STD)
        nn.init.zeros_(branch.predictor.bias)
        self.foreground_thresh = foreground_thresh

    def forward(
        self, features: list[Tensor], images: ImageList, records: Sequence[dict[str, Any]]
    ) -> PredictedSemantics:
        """Maps (N, C, h, w) of the backbone -> semantics; `records` are not read."""
        by_name = dict(zip(self.in_features, features, strict=True))
        logits = self.branch.layers(by_name)
        stride = self.branch.common_stride
        return PredictedSemantics(logits, stride, images, self.foreground_thresh)


class SemanticFiles(nn.Module):
    """Takes the semantic map that the mapper read beside each image.

    Args:
        labels: value in the maps of each class; all others are background.
    """

    def __init__(self, *, labels: Sequence[int]) -> None:
        super().__init__()
        self.labels = list(labels)

    def forward(
        self, features: list[Tensor], images: ImageList, records: Sequence[dict[str, Any]]
    ) -> GivenSemantics:
        """Records with `sem_seg` (height, width) -> semantics; `features` are not read.

        Raises:
            ZooError: a record has no map, or one of another size.
        """
        device = images.tensor.device
        labels = torch.tensor(self.labels, device=device)[:, None, None]
        background = len(self.labels)
        classes = []
        for record, size in zip(records, images.image_sizes, strict=True):
            found = _read_map(record, (int(size[0]), int(size[1]))).to(device) == labels
            classes.append(found.int().argmax(dim=0).where(found.any(dim=0), background))
        return GivenSemantics(classes, images, background)


class ClassChannels(nn.Module):
    """What the direction network sees: the things' pixels of the image, and their classes.

    Args:
        num_classes: K.
        codes: K + 1 values of one channel, the background's last; empty for a learned embedding.
        dim: D, channels of a learned embedding.
    """

    table: Tensor

    def __init__(self, *, num_classes: int, codes: Sequence[float] = (), dim: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dim = 1 if codes else dim
        if codes:
            table = torch.tensor(codes, dtype=torch.float32)[:, None]
            self.register_buffer("table", table, persistent=False)
        else:
            self.table = nn.Parameter(torch.randn(num_classes + 1, dim))

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """Join image and classes.

        Args:
            images: (N, C, H, W), normalised.
            classes: (N, H, W) long, K for the background.

        Returns:
            (N, C + D, H, W)
        """
        is_thing = (classes < self.num_classes)[:, None]
        # parity: the background is not masked, and has the code of the first class.
        channels = F.embedding(classes, self.table).permute(0, 3, 1, 2)
        return torch.cat([images * is_thing, channels.to(images.dtype)], dim=1)


@BACKBONE_REGISTRY.register()
class ImageBackbone(Backbone):
    """No network: the image itself is the only map, "image", for models that need no features."""

    @configurable
    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {"channels": input_shape.channels}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> the same by name."""
        return {"image": images}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the image."""
        return {"image": ShapeSpec(channels=self.channels, stride=1)}


def _read_map(record: dict[str, Any], size: tuple[int, int]) -> Tensor:
    name = f"image '{record.get('file_name', '?')}'"
    if "sem_seg" not in record:
        raise ZooError(
            f"{name} has no semantic map, which MODEL.DWT.SEMANTICS 'maps' works on: name the "
            "folder of the maps in INPUT.SEMANTIC_MAPS (of DATASETS.TRAIN) and "
            "INPUT.SEMANTIC_MAPS_TEST, or each file in sem_seg_file_name of the data set's "
            "records. MODEL.DWT.SEMANTICS 'branch' needs none"
        )
    labels: Tensor = record["sem_seg"]
    if tuple(labels.shape) != size:
        raise ZooError(
            f"the semantic map of {name} is {labels.shape[1]} x {labels.shape[0]} pixels at the "
            f"network's input, but the image {size[1]} x {size[0]}: whatever resizes the image "
            "must do the same to the map; INPUT.FIXED_SIZE does not in inference"
        )
    return labels


def _pad(classes: Sequence[Tensor], images: ImageList, background: int) -> Tensor:
    """Maps of the images' sizes -> (N, H, W) of the padded batch."""
    padded = classes[0].new_full((len(classes), *images.tensor.shape[2:]), background)
    for row, found in zip(padded, classes, strict=True):
        row[: found.shape[0], : found.shape[1]] = found
    return padded
