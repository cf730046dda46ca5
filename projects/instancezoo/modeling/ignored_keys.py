"""Keys of other projects' config files that change nothing here.

A method lists them in one table, its `IGNORED_KEYS`, so that such files load unchanged. A value
that asks for other behaviour is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from instancezoo.errors import ConfigError


class IgnoredKey(NamedTuple):
    """One entry of an `IGNORED_KEYS` table.

    Attributes:
        default: value in `get_cfg()`; always accepted.
        reason: why no other value is accepted, for the error; "" accepts every value.
    """

    default: Any
    reason: str = ""


def add_ignored_keys(node: CfgNode, table: Mapping[str, IgnoredKey]) -> None:
    """Add the keys of a table to a method's node, in place.

    Args:
        node: with the groups that keys with a dot name.
        table: key below `node`, such as "LOSS.FOCAL_USE_SIGMOID" -> entry.
    """
    for key, entry in table.items():
        group, leaf = _find_group(node, key)
        group[leaf] = copy.deepcopy(entry.default)  # a list may be changed in place


def check_ignored_keys(
    section: str,
    node: CfgNode,
    table: Mapping[str, IgnoredKey],
    followed: Mapping[str, Any] | None = None,
) -> None:
    """Refuse values of ignored keys that the model would not follow.

    Args:
        section: path of `node`, for the error.
        node: with the keys of `table`.
        table: as in `add_ignored_keys`.
        followed: key -> the value that follows from other keys, accepted as well as the default.

    Raises:
        ConfigError: with the key, its value and the one that it must have.
    """
    for key, entry in table.items():
        group, leaf = _find_group(node, key)
        only = (followed or {}).get(key, entry.default)
        if entry.reason and group[leaf] not in (entry.default, only):
            raise ConfigError(
                f"{section}.{key} is {group[leaf]!r}; it can only be {only!r}: {entry.reason}"
            )


def _find_group(node: CfgNode, key: str) -> tuple[CfgNode, str]:
    *groups, leaf = key.split(".")
    return reduce(getattr, groups, node), leaf
