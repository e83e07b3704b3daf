"""A config whose places mean the same in every process: workers and trials run in other folders, and a run is opened
from anywhere."""

from __future__ import annotations

from typing import Any

from orchestrator.config import Config, parse
from orchestrator.storage import files

ALWAYS = ("uri", "root", "cache")
# a path, or a name that a library knows
IF_THERE = ("pretrained", "checkpoint", "metadata", "language_model")


def absolute_places(config: Config) -> Config:
    """The config with local paths made absolute."""
    return parse(_absolute(config.model_dump()))


def _absolute(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        return {name: _absolute(value, name) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_absolute(value, key) for value in node]
    if isinstance(node, str) and (key in ALWAYS or (key in IF_THERE and files.is_path(node))):
        return files.absolute(node)
    return node
