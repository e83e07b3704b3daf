"""Results as Markdown for `tests/benchmarks/RESULTS.md`, and the exit code of a call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.gpu.harness import Result, short

SIGNS = {True: "pass", False: "**fail**", None: ""}


def markdown(title: str, command: str, results: Sequence[Result]) -> str:
    """Return a section of the results page: one row for each check, and one for each section without any."""
    lines = [f"## {title}", "", f"`{command}`", ""]
    lines += ["| section | what | value | expected | |", "|---|---|---|---|---|"]
    for result in results:
        for check in result.checks:
            value = f"{short(check.value)} {check.unit}".strip()
            lines.append(f"| {result.name} | {check.name} | {value} | {check.expected} | {SIGNS[check.passed]} |")
        if result.outcome != "pass" or not result.checks:
            sign = "**fail**" if result.outcome == "fail" else result.outcome
            lines.append(f"| {result.name} | {_cell(result.shows)} | | | {sign}: {_cell(result.reason)} |")
    passed = sum(result.outcome == "pass" for result in results)
    seconds = sum(result.seconds for result in results)
    return "\n".join([*lines, "", f"{passed} of {len(results)} sections passed, in {seconds:.0f} s.", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").rstrip(".")


def finish(title: str, command: str, results: Sequence[Result], out: Path) -> int:
    """Write `results.md` and print it; return 1 if a section failed, else 0."""
    text = markdown(title, command, results)
    (out / "results.md").write_text(text)
    print(text, flush=True)
    return int(any(result.outcome == "fail" for result in results))
