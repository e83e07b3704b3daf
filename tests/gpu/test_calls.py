"""The calls on this machine: for real where there is a GPU, else dry, so that no GPU's minute is spent on a typing
error; and that a call keeps to its deadlines, whatever a section does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import with_ray, without_ray
from tests.gpu.harness import Check, Result, Section, Skip, at_most, equal, figure, run_sections
from tests.gpu.lab import Lab
from tests.gpu.report import finish, markdown

ROOT = Path(__file__).parents[2]
CALLS = {"without_ray": without_ray.SECTIONS, "with_ray": with_ray.SECTIONS}
NO_GPU = "needs a GPU: run `make test-gpu` on a machine with one"


def call(name: str, out: Path, *options: str) -> list[dict[str, Any]]:
    """Run a call as a person does; return its results."""
    command = [sys.executable, "-m", f"tests.gpu.{name}", "--out", str(out), *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (out / "results.json").is_file(), done.stderr
    results = json.loads((out / "results.json").read_text())
    logs = "".join(f"\n{path.name}:\n{path.read_text()[-2000:]}" for path in out.glob("*.log"))
    assert done.returncode == any(result["outcome"] == "fail" for result in results), done.stderr + logs
    assert (out / "results.md").read_text() in done.stdout
    return results


def assert_dry_run(name: str, out: Path) -> None:
    results = call(name, out, "--dry-run", "--seconds", "550")
    failed = {result["name"]: result["reason"] for result in results if result["outcome"] == "fail"}
    assert not failed, {name: (reason, (out / f"{name}.log").read_text()[-2000:]) for name, reason in failed.items()}
    assert [result["name"] for result in results] == [section.name for section in CALLS[name]]
    assert all(result["checks"] for result in results if result["outcome"] == "pass")


def test_every_section_without_ray_runs_on_a_cpu(tmp_path: Path) -> None:
    assert_dry_run("without_ray", tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_every_section_with_ray_runs_on_a_cpu(tmp_path: Path) -> None:
    assert_dry_run("with_ray", tmp_path)


@pytest.fixture(scope="module", params=list(CALLS))
def on_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of a call on the GPU, by section."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    results = call(request.param, tmp_path_factory.mktemp(request.param))
    return {result["name"]: result for result in results}


def test_on_a_gpu_no_section_fails(on_gpu: dict[str, dict[str, Any]]) -> None:
    assert {name: result["reason"] for name, result in on_gpu.items() if result["outcome"] == "fail"} == {}


def good(lab: Lab) -> Iterator[Check]:
    """A section without a fault."""
    yield at_most("one", lab.size(10.0, 1.0), 2.0)
    yield figure("rate", 1234.5, "samples/s")


def wrong(lab: Lab) -> Iterator[Check]:
    """A section with a wrong value and a right one after it."""
    yield at_most("two", 2.5, 2.0)
    yield equal("name", "a", "a")


def raises(lab: Lab) -> Iterator[Check]:
    """A section that breaks off."""
    yield figure("before", 1)
    raise ValueError("no such\nthing")


def hangs(lab: Lab) -> Iterator[Check]:
    """A section that never ends, and starts a process that does not end either."""
    child = subprocess.Popen(["sleep", "300"])
    yield figure("child", child.pid)
    while True:
        time.sleep(1)


def dies(lab: Lab) -> Iterator[Check]:
    """A section that ends its process."""
    yield figure("before", 1)
    os._exit(7)


def lacks(lab: Lab) -> Iterator[Check]:
    """A section without what it needs."""
    raise Skip("no such package here")
    yield figure("never", 0)


def run(tmp_path: Path, *runs: Any, seconds: float = 60, each: float = 30) -> dict[str, Result]:
    sections = [Section(name=run.__name__, run=run, seconds=each) for run in runs]
    lab = Lab(is_dry=True, scratch=tmp_path)
    return {result.name: result for result in run_sections(sections, lab, seconds=seconds, out=tmp_path)}


def test_each_section_has_its_outcome_and_none_stops_the_others(tmp_path: Path) -> None:
    found = run(tmp_path, good, wrong, raises, dies, lacks, good)
    assert {name: result.outcome for name, result in found.items()} == {
        "good": "pass", "wrong": "fail", "raises": "fail", "dies": "fail", "lacks": "skipped",
    }  # fmt: skip
    assert found["wrong"].reason == "two is 2.5, expected at most 2"
    assert [check.passed for check in found["wrong"].checks] == [False, True]
    assert found["raises"].reason == "ValueError: no such thing"
    assert [check.name for check in found["raises"].checks] == ["before"], "what was measured before is kept"
    assert "no such\nthing" in (tmp_path / "raises.log").read_text()
    assert found["dies"].reason == "its process ended with exit code 7"
    assert found["lacks"].reason == "no such package here"
    written = json.loads((tmp_path / "results.json").read_text())
    assert [result["name"] for result in written] == ["good", "wrong", "raises", "dies", "lacks", "good"]


def test_a_section_that_hangs_ends_at_its_deadline_with_all_that_it_started(tmp_path: Path) -> None:
    start = time.monotonic()
    found = run(tmp_path, hangs, good, each=2.5)["hangs"]
    assert time.monotonic() - start < 20
    assert found.outcome == "fail"
    assert found.reason.startswith("stopped at its deadline")
    child = Path(f"/proc/{int(found.checks[0].value)}/cmdline")
    assert not child.exists() or b"sleep" not in child.read_bytes()


def test_a_call_ends_in_time_and_says_which_sections_got_none(tmp_path: Path) -> None:
    found = run(tmp_path, hangs, good, seconds=3)
    assert found["hangs"].outcome == "fail"
    assert found["good"].outcome == "skipped"
    assert found["good"].reason == "the call's 3 s are used up"


def test_a_table_for_the_results_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(run(tmp_path, good, wrong, lacks).values())
    text = markdown("GPU", "python -m tests.gpu.without_ray", found)
    assert "| good | one | 1 | at most 2 | pass |" in text
    assert "| good | rate | 1,234 samples/s |  |  |" in text
    assert "| wrong | two | 2.5 | at most 2 | **fail** |" in text
    assert "| lacks | A section without what it needs | | | skipped: no such package here |" in text
    assert "1 of 3 sections passed" in text
    assert finish("GPU", "python -m tests.gpu.without_ray", found, tmp_path) == 1
    assert text in capsys.readouterr().out
