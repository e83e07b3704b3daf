"""The reference of `report.json` and `sweep.json`: every class that a file holds, with its keys and types."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "docs" / "extensions"))

import schema_reference


def test_every_part_of_the_report_has_its_section() -> None:
    page = schema_reference.markdown("orchestrator.results.run.Report")
    assert page.startswith("## Report\n\nThe whole of `report.json`.")
    assert "| `funnel` | list of [FunnelRow](#funnelrow) |" in page
    assert "| `words` | [Words](#words) or null |" in page
    assert "| `curve` | list of [integer, integer] |" in page
    assert page.count("\n## FunnelRow\n") == 1


@pytest.mark.parametrize("path", ["orchestrator.results.run.Report", "orchestrator.results.sweep.SweepReport"])
def test_every_class_says_what_it_is(path: str) -> None:
    for section in schema_reference.markdown(path).split("## ")[1:]:
        name, about = section.split("\n\n")[:2]
        assert about.endswith((".", ":")), f"{name} has no docstring"
