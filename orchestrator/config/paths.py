"""Make the paths of a configuration absolute, because workers and trials run in other folders, and a finished run may
be opened from any folder."""

from __future__ import annotations

from typing import Any

from orchestrator.config import Config, parse
from orchestrator.storage import files
from orchestrator.storage.uri_lists import SEPARATOR, split_uri

# settings with these names always hold paths or URIs
PATH_KEYS = ("uri", "root", "cache")
# settings with these names hold a path or a name that a library knows; it is a path if such a file or folder exists
PATH_OR_NAME_KEYS = ("pretrained", "checkpoint", "metadata", "language_model")


def absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute local paths."""
    return parse(_absolute(config.model_dump()))


def _absolute(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        return {name: _absolute(value, name) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_absolute(value, key) for value in node]
    if isinstance(node, str) and (key in PATH_KEYS or (key in PATH_OR_NAME_KEYS and files.is_path(node))):
        return SEPARATOR.join(map(files.absolute, split_uri(node)))
    return node
