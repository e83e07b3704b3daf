"""Nested settings as one level of dotted keys, as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values by dotted key, `{"a": {"b": 1}}` as `{"a.b": 1}`. An empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= flattened(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return flat
