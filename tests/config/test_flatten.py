"""Nested settings as dotted keys."""

from __future__ import annotations

from orchestrator.config.flatten import flattened


def test_nested_settings_get_dotted_keys_in_their_order() -> None:
    settings = {"b": {"y": [1, 2], "x": {"d": None}}, "e": {}, "a": "text"}
    assert flattened(settings) == {"b.y": [1, 2], "b.x.d": None, "e": {}, "a": "text"}
    assert list(flattened(settings)) == ["b.y", "b.x.d", "e", "a"]
