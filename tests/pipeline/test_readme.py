"""The commands of the README are ones that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from orchestrator.cli import NEED_NO_SOURCE, VERBS, compose_config, for_hydra

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^    (?:.*\S.*\n)", re.MULTILINE)


def commands() -> list[list[str]]:
    """The words after `python -m orchestrator`, or a job's `-- orchestrator`, of every indented command."""
    lines = "".join(BLOCK.findall(README.read_text())).replace("\\\n", " ").splitlines()
    found = [re.split(r"(?:python -m|--) orchestrator ", line, maxsplit=1)[1:] for line in lines]
    return [shlex.split(words[0], comments=True) for words in found if words]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_it_is_taken(words: list[str]) -> None:
    verb, *overrides = words
    assert verb in VERBS
    if any(override.startswith("+exp=") for override in overrides) or verb in NEED_NO_SOURCE:
        compose_config(for_hydra(overrides), needs_source=verb not in NEED_NO_SOURCE)
