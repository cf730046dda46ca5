"""Any timm feature extractor under Detectron2's FPN.

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor, nn

from instancezoo.errors import ZooError, first_line, suggest
from instancezoo.modeling.fpn import build_fpn

from .timm_weights import HUB, import_timm, load_timm_weights, squash_name

STRIDES = (2, 4, 8, 16, 32)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the network MODEL.TIMM.NAME with an FPN and a max-pooled last level.

    Args:
        cfg: reads MODEL.TIMM, MODEL.FPN and MODEL.BACKBONE.FREEZE_AT.
        input_shape: its `channels` are the network's input channels.

    Returns:
        FPN with outputs p2, p3, ... and one more level at twice the largest stride.

    Raises:
        ZooError: see `TimmBackbone`.
    """
    bottom_up = build_timm_bottom_up(cfg, input_shape)
    top_block = LastLevelMaxPool()
    largest_stride = bottom_up.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride
    top_block.in_feature = f"p{int(math.log2(largest_stride))}"
    return build_fpn(cfg, bottom_up, top_block)


def build_timm_bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network of `build_timm_fpn_backbone`, without an FPN."""
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        out_features=list(cfg.MODEL.FPN.IN_FEATURES),
        weights=cfg.MODEL.TIMM.WEIGHTS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels or 3,
    )


class TimmBackbone(Backbone):
    """A timm feature extractor with Detectron2's output names: res2 .. res5 by stride 4 .. 32.

    Where the network has a map of stride 2, its name is res1.

    Layers that no requested output needs are left out. Norm layers are timm's.

    Args:
        name: timm model name.
        out_features: any of res1, res2, res3, res4, res5, shallow first; None for all there are.
        weights: "" random, "hub" timm's own, "package:NAME", or a file.
        freeze_at: 0 trains all; 1 freezes the stem; k >= 2 also everything up to `res{k}`.
            Frozen batch norms keep their running statistics.
        in_channels: channels of the input image.

    Raises:
        ZooError: unknown name, outputs that the network lacks, or weights that do not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: list[str] | None,
        weights: str = "",
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.net, self._feature_index = _create_extractor(
            name, out_features, in_chans=in_channels, pretrained=weights == HUB
        )
        info: Any = self.net.feature_info  # timm's lists of channels, strides, layer names
        channels, strides = info.channels(), info.reduction()
        self._out_features = list(self._feature_index)
        self._out_feature_channels = {f: channels[i] for f, i in self._feature_index.items()}
        self._out_feature_strides = {f: strides[i] for f, i in self._feature_index.items()}
        # Swin and similar networks return (N, H, W, C).
        self._channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        if weights not in ("", HUB):
            load_timm_weights(self.net, name, weights)
        self._frozen = _find_frozen_modules(self.net, freeze_at)
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to `{"res2": (N, C2, H/4, W/4), ...}`."""
        maps = self.net(images)
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return {feature: maps[index] for feature, index in self._feature_index.items()}

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switch to training or evaluation; frozen layers stay in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self


def _create_extractor(
    name: str, out_features: list[str] | None, **kwargs: Any
) -> tuple[nn.Module, dict[str, int]]:
    # timm lists a network's maps only once it is built; a second build then leaves out
    # what follows the last map in use: those parameters would never have a gradient.
    whole = _create_model(name, in_chans=kwargs["in_chans"], pretrained=False)
    info: Any = whole.feature_info
    strides = info.reduction()
    positions = {f"res{int(math.log2(s))}": i for i, s in enumerate(strides) if s in STRIDES}
    out_features = sorted(positions) if out_features is None else out_features
    missing = [feature for feature in out_features if feature not in positions]
    if missing:
        raise ZooError(
            f"timm model '{name}' has no {', '.join(missing)}: its maps have strides {strides}, "
            f"that is {', '.join(positions) or 'none of res1 .. res5'}. "
            "Change MODEL.FPN.IN_FEATURES or MODEL.TIMM.NAME."
        )
    wanted = sorted(positions[feature] for feature in out_features)
    net = _create_model(name, out_indices=[info.out_indices[i] for i in wanted], **kwargs)
    return net, {feature: wanted.index(positions[feature]) for feature in out_features}


def _create_model(name: str, **kwargs: Any) -> nn.Module:
    timm = import_timm()
    if ":" not in name and not timm.is_model(name):  # timm resolves hf-hub:...
        hint = suggest(name, timm.list_models(), cutoff=0.4, most=3)
        raise ZooError(f"MODEL.TIMM.NAME: timm {timm.__version__} has no '{name}'{hint}")
    try:
        return timm.create_model(name, features_only=True, **kwargs)
    except Exception as error:  # timm and the hub's client raise nearly anything
        reason = first_line(error)
        if kwargs["pretrained"]:
            raise ZooError(
                f"weights of timm model '{name}' cannot be downloaded from its hub: {reason}. "
                "MODEL.TIMM.WEIGHTS also takes the path of a file"
            ) from error
        raise ZooError(f"timm model '{name}' gives no feature maps: {reason}") from error


def _find_frozen_modules(net: nn.Module, freeze_at: int) -> list[nn.Module]:
    if freeze_at <= 0:
        return []
    modules = list(net.named_modules())
    names = [squash_name(module_name) for module_name, _ in modules]
    end = _count_modules_through(net, names, stride=2**freeze_at)
    # A container that also holds trainable layers (such as the root) is not frozen itself.
    later = names[end:]
    return [
        module
        for name, (_, module) in zip(names[:end], modules, strict=False)
        if name and not any(other.startswith(f"{name}.") for other in later)
    ]


def _count_modules_through(net: nn.Module, names: list[str], stride: int) -> int:
    info: Any = net.feature_info
    strides, taps = info.reduction(), [squash_name(tap) for tap in info.module_name()]
    if stride < strides[0]:
        return min(_positions(names, taps[0]))  # the stem: all that comes before the first map
    reached = [tap for tap, s in zip(taps, strides, strict=True) if s <= stride]
    return max(_positions(names, reached[-1])) + 1


def _positions(names: list[str], tap: str) -> list[int]:
    # FeatureGetterNet keeps the whole network under `model`.
    for prefix in (tap, f"model.{tap}"):
        found = [i for i, n in enumerate(names) if n == prefix or n.startswith(f"{prefix}.")]
        if found:
            return found
    raise ZooError(f"layer '{tap}' is not part of the network; set MODEL.BACKBONE.FREEZE_AT to 0")
