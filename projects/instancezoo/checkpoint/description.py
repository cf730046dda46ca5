"""What a checkpoint says about its model: config and classes.

Files that training writes hold "cfg" (the whole config as YAML), "class_names" and "category_ids".
`instancezoo convert` keeps them, and adds "method" and "config", the name of a shipped config, for
published files. In a `.safetensors` file they stand in the header, as texts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager

from instancezoo.errors import first_line

from .classes import UNKNOWN, ClassList
from .convert import find_layout
from .reader import CheckpointError, is_ours, read_checkpoint, read_facts
from .rename import Layout

_MAX_TEXT = 200_000  # characters; a config has about 20,000


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
        config_text=_read_text(facts, "cfg"),
        config_name=_read_text(facts, "config"),
        classes=ClassList.from_facts(facts),
        is_backbone=facts.get("method") == "backbone",
    )


def _read_text(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name, "")
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise CheckpointError(
            f"its '{name}' is not a text of up to {_MAX_TEXT} characters. Save or convert the file "
            "again"
        )
    return value


def read_description(path: str) -> Description:
    """Describe a checkpoint file, ours or published.

    Args:
        path: a path or an address, as in MODEL.WEIGHTS.

    Raises:
        CheckpointError: the file cannot be fetched or read.
    """
    checkpoint = read_checkpoint(fetch_checkpoint(remove_query(path)))
    try:
        layout = None if is_ours(checkpoint) else find_layout(checkpoint["model"])
        return describe_checkpoint(checkpoint, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def remove_query(path: str) -> str:
    """Remove `?matching_heuristics=True` from a path or address."""
    try:
        return urlparse(path)._replace(query="").geturl()
    except ValueError as error:
        raise CheckpointError(f"{path} is no address: {error}. Check MODEL.WEIGHTS") from None


def fetch_checkpoint(path: str) -> str:
    """Return the local path of a file or an address. Raises `CheckpointError`."""
    try:
        local = str(PathManager.get_local_path(path))
    except CheckpointError:
        raise
    except Exception as error:  # downloads fail in many ways
        raise CheckpointError(
            f"{path} cannot be fetched: {first_line(error)}. Check MODEL.WEIGHTS and the network, "
            "or name a downloaded file"
        ) from error
    if "://" in local and not os.path.exists(local):  # Detectron2 takes it for a path
        raise CheckpointError(
            f"{path} is no address that can be fetched. Use a path, or https://, detectron2://, "
            "catalog:// or published:// (MODEL.WEIGHTS)"
        )
    return local
