"""What the pages say about the repository holds: its files exist, and every verb and experiment has its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.cli import VERBS

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
FILE = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|md|yaml))`")
# of the reader's own: examples that a page tells to write
EXAMPLES = {"my_conf/exp/mine.yaml", "orchestrator/selection/short.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(FILE.findall(page.read_text())) - EXAMPLES
    missing = [name for name in named if not any((ROOT / folder / name).exists() for folder in ("", "orchestrator"))]
    assert not missing


def test_every_verb_has_its_row() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text()
    assert [verb for verb in VERBS if f"| `{verb}` |" not in page] == []


def test_every_experiment_is_described() -> None:
    page = (ROOT / "docs/reference/experiments.md").read_text()
    names = [path.stem for path in (ROOT / "conf/exp").glob("*.yaml")]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_layer_is_described() -> None:
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    folders = [path.name for path in (ROOT / "orchestrator").iterdir() if (path / "__init__.py").exists()]
    assert [name for name in folders if f"| `{name}/` |" not in page] == []
