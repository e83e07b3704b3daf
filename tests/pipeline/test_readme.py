"""The commands of the README and of the documentation are ones that the program accepts; links of the README exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from orchestrator.cli import DEMOS, NEED_NO_SOURCE, VERBS, compose_config, for_hydra

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^):#]+)(?:#[^)]*)?\)")


def commands() -> list[list[str]]:
    """The words after `python -m orchestrator`, or a job's `-- orchestrator`, of every command in a bash block."""
    text = "".join(block for page in PAGES for block in BLOCK.findall(page.read_text()))
    found = [re.split(r"(?:python -m|--) orchestrator ", line, maxsplit=1)[1:] for line in joined(text)]
    unique = dict.fromkeys(words[0] for words in found if words)
    return [shlex.split(words, comments=True) for words in unique]


def joined(text: str) -> list[str]:
    """The lines of a shell script, with continued lines joined."""
    return text.replace("\\\n", " ").splitlines()


def test_the_pages_have_commands() -> None:
    assert len(commands()) > 20
    assert ["run"] in commands()


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_accepted(words: list[str]) -> None:
    verb, *overrides = words
    assert verb in VERBS
    if "--config-dir" in overrides:
        return
    if verb in DEMOS and not any(override.startswith(("+exp=", "source")) for override in overrides):
        overrides = [f"+exp={DEMOS[verb]}", *overrides]
    compose_config(for_hydra(overrides), needs_source=verb not in NEED_NO_SOURCE)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_to_files_exist(name: str) -> None:
    missing = [link for link in LINK.findall((ROOT / name).read_text()) if not (ROOT / link).exists()]
    assert not missing
