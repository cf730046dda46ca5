"""What a checkpoint says about its model: config and classes.

Files that training writes hold "cfg" (the whole config as YAML), "class_names" and "category_ids".
`instancezoo convert` keeps them, and adds "method" and "config", the name of a shipped config, for
published files. In a `.safetensors` file they stand in the header, as texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager

from .classes import UNKNOWN, ClassList
from .convert import find_layout
from .reader import CheckpointError, is_ours, read_checkpoint, read_facts
from .rename import Layout


@dataclass(frozen=True)
class Description:
    """What is known of a checkpoint beside its tensors; empty where it is not known.

    Attributes:
        config_text: the whole config of the training, as YAML.
        config_name: the shipped config whose model it fills; for a backbone a base fragment.
        classes: that it was trained on.
        is_backbone: True if it holds only a backbone.
    """

    config_text: str = ""
    config_name: str = ""
    classes: ClassList = UNKNOWN
    is_backbone: bool = False


def describe_checkpoint(checkpoint: Mapping[str, Any], layout: Layout | None = None) -> Description:
    """Describe a checkpoint that was read.

    Args:
        checkpoint: as from `read_checkpoint`; with a layout, its "model" is not converted yet.
        layout: of a published file.

    Raises:
        CheckpointError: InstanceZoo wrote the file, but its entries have other types.
    """
    if layout is not None:
        return Description(
            config_name=layout.config,
            classes=layout.find_classes(checkpoint["model"]),
            is_backbone=layout.fills == "backbone",
        )
    if not is_ours(checkpoint):  # other programs mean other things by these names
        return Description()
    facts = read_facts(checkpoint)
    return Description(
        config_text=str(facts.get("cfg", "")),
        config_name=str(facts.get("config", "")),
        classes=ClassList.from_facts(facts),
        is_backbone=facts.get("method") == "backbone",
    )


def read_description(path: str) -> Description:
    """Describe a checkpoint file, ours or published.

    Args:
        path: a path or an address, as in MODEL.WEIGHTS.

    Raises:
        CheckpointError: the file cannot be fetched or read.
    """
    without_query = urlparse(path)._replace(query="").geturl()
    checkpoint = read_checkpoint(fetch_checkpoint(without_query))
    layout = None if is_ours(checkpoint) else find_layout(checkpoint["model"])
    try:
        return describe_checkpoint(checkpoint, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def fetch_checkpoint(path: str) -> str:
    """Return the local path of a file or an address. Raises `CheckpointError`."""
    try:
        return str(PathManager.get_local_path(path))
    except CheckpointError:
        raise
    except Exception as error:  # downloads fail in many ways
        raise CheckpointError(
            f"{path} cannot be fetched: {error}. Check the path (MODEL.WEIGHTS) and the network"
        ) from error
