"""The configuration reference: every key of `conf/` is in it, with its meaning, unit and default."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.section import Positive

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS / "extensions"))

import config_reference  # noqa: E402 an extension of Sphinx, outside the package
from config_reference import Setting, all_groups, type_text  # noqa: E402

SETTINGS = [setting for group in all_groups() for setting in group.settings]
# values that are one setting, whatever keys they hold
WHOLE = ("model.config", "sweep.space", "evaluation.tasks")


def keys_of(node: Any, path: str = "") -> Iterator[str]:
    """The keys of a composed configuration."""
    if not isinstance(node, dict) or path in WHOLE:
        yield path
        return
    for name, below in node.items():
        yield from keys_of(below, f"{path}.{name}".lstrip("."))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_key_has_a_meaning_and_every_number_a_unit(setting: Setting) -> None:
    assert setting.meaning.endswith("."), "write a string below the field in orchestrator/config"
    if re.search(r"\b(integers?|numbers?)\b", setting.type):
        assert setting.states_unit, 'end the string with "Unit: ...", or with "Unit: none."'


@pytest.mark.parametrize("source", ["webdataset", "parquet", "table", "demo"])
def test_every_key_of_conf_is_described(source: str) -> None:
    described = {re.sub(rf"^source={source}\b", "source", setting.key) for setting in SETTINGS}
    missing = set(keys_of(config_reference._composed(f"source={source}"))) - described
    assert not missing


def test_defaults_are_those_of_conf_before_those_of_the_classes() -> None:
    defaults = {setting.key: setting.default for setting in SETTINGS}
    assert defaults["training.warmup_steps"] == "`2000`", "conf/ says 2000, the class 0"
    assert defaults["source=table.uri"] == "required"
    assert defaults["selection.wfpp.t"] == "`1e-07`"
    assert defaults["embedding.clip.max_bad_pairs"] == "`0.1`", "in the class alone"
    assert not next(one for one in SETTINGS if one.key == "embedding.clip.max_bad_pairs").composed


def test_types_are_said_in_words() -> None:
    assert type_text(Positive | None) == "integer > 0, or null"
    assert type_text(tuple[float, float]) == "list of 2 numbers"
    assert type_text(str | tuple[str, ...] | None) == "string or list of strings, or null"


def test_every_group_has_a_page() -> None:
    pages = "".join(page.read_text() for page in (DOCS / "reference").rglob("*.md"))
    written = set(re.findall(r"^<!-- generated: configuration (\w+) -->$", pages, re.MULTILINE))
    assert written == {group.page for group in all_groups()}
