"""The shipped configs by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instancezoo.config import CfgNode, get_cfg
from instancezoo.errors import ConfigError, suggest

_PACKAGE = Path(__file__).resolve().parent
_BASE = "base"


def get_config_file(name: str) -> str:
    """Return the path of a shipped config.

    Args:
        name: `<method>/<config>`, with or without `.yaml`.

    Raises:
        ConfigError: no such config; the message suggests the nearest name.
    """
    wanted = name.removesuffix(".yaml")
    path = _config_folder() / f"{wanted}.yaml"
    if not path.is_file():
        hint = suggest(wanted, list_configs(), cutoff=0.3)
        raise ConfigError(f"config '{name}' does not exist{hint}")
    return str(path)


def get_config(name: str, overrides: list[Any] | None = None) -> CfgNode:
    """Read a shipped config.

    Args:
        name: as in `get_config_file`.
        overrides: `[KEY, VALUE, ...]`, merged last.
    """
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(name))
    cfg.merge_from_list(overrides or [])
    return cfg


def list_configs() -> list[str]:
    """List the names of all shipped configs, `<method>/<config>`, sorted."""
    folder = _config_folder()
    files = (path.relative_to(folder) for path in folder.glob("*/*.yaml"))
    return sorted(file.with_suffix("").as_posix() for file in files if file.parts[0] != _BASE)


def _config_folder() -> Path:
    # A wheel holds a copy inside the package; a checkout has the folder beside `projects`.
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent.parent / "configs"
