"""Make the paths of a configuration absolute: workers and trials run in other folders, and a finished run may be opened
from any folder."""

from __future__ import annotations

from typing import Any

from orchestrator.config import Config, parse
from orchestrator.storage import files

ALWAYS = ("uri", "root", "cache")
# the value may be a path, or a name that a library knows
IF_THERE = ("pretrained", "checkpoint", "metadata", "language_model")


def absolute_places(config: Config) -> Config:
    """Return the configuration with absolute local paths."""
    return parse(_absolute(config.model_dump()))


def _absolute(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        return {name: _absolute(value, name) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_absolute(value, key) for value in node]
    if isinstance(node, str) and (key in ALWAYS or (key in IF_THERE and files.is_path(node))):
        return files.absolute(node)
    return node
