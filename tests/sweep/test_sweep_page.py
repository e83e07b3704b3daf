"""The page of a sweep, parsed and opened: all kinds of sweeps render, hostile text stays text, it fits a phone."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from orchestrator.sweep.report.figures import grid_of
from orchestrator.sweep.report.page import PAPERS, render, table_lines
from orchestrator.sweep.report.schema import SweepReport
from orchestrator.sweep.report.summary import settings_of
from tests.support.browser import CHROMIUM, POLICY, QUIET
from tests.support.report_runs import Elements
from tests.support.sweep_reports import (
    DIMENSIONS,
    TOP1,
    control_trials,
    failed,
    grid_trials,
    model,
    report_of,
    trial,
    whole_report,
)

EVIL = "_$x$<script>alert(1)</script>\"' \x07 \\frac{"
# Chromium's narrowest window is wider than a phone, so the page measures itself in a frame
MEASURE = """<iframe width="{width}" height="2000" style="border: 0"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{ const page = frame.contentDocument;
  document.title = JSON.stringify([page.title, page.documentElement.scrollWidth]); }};
frame.srcdoc = {page};</script>"""


def hostile_report() -> SweepReport:
    dimensions = {EVIL: [EVIL, f"{EVIL}2"], "keep_fraction": [0.25, 0.5], f"{EVIL}.n": [1, 2]}
    trials = [
        trial(
            f"{EVIL}{value}{kept}{n}",
            0.2 + kept / 10,
            kept,
            settings={EVIL: value, "keep_fraction": kept, f"{EVIL}.n": n},
        )
        for value in dimensions[EVIL]
        for kept in (0.25, 0.5)
        for n in (1, 2)
    ]
    trials.append(failed(EVIL, EVIL))
    return report_of(trials, name=EVIL, dimensions=dimensions, versions={EVIL: EVIL}, config={EVIL: EVIL})


def many_report() -> SweepReport:
    """60 trials of ten methods."""
    methods = [
        ["wfpp"],
        ["dbp"],
        ["ssp"],
        ["semdedup", "dbp"],
        ["semdedup", "ssp"],
        ["random"],
        *(["m", str(n)] for n in range(4)),
    ]
    trials = [
        trial(
            f"{'+'.join(steps)}-{kept}-{seed}",
            0.1 + kept / 5 + n / 90,
            kept,
            seed,
            settings={"steps": steps, "keep_fraction": kept},
        )
        for n, steps in enumerate(methods)
        for kept in (0.3, 0.6, 0.9)
        for seed in (0, 1)
    ]
    return report_of(trials, dimensions={"steps": methods, "keep_fraction": [0.3, 0.6, 0.9]}, seeds=[0, 1])


def unmeasured(name: str) -> SweepReport:
    found = trial(name, 0.3, 0.5)
    return report_of(
        [found.model_copy(update={"models": {"pretrain": model(0.3, 10).model_copy(update={"metrics": {}})}})]
    )


REPORTS = {
    "whole": whole_report(),
    "no controls": report_of(grid_trials()),
    "controls alone": report_of(control_trials(), dimensions={}),
    "one trial": report_of([trial("one", 0.3, 0.5)], dimensions={}, seeds=[0]),
    "no fine-tuning": report_of([*grid_trials(finetune=False), *control_trials(finetune=False)]),
    "all failed": report_of([failed("a", "no memory"), failed("b", "")]),
    "nothing at all": report_of([], dimensions={}, seeds=[], sharing=[], versions={}, config={}),
    "nothing measured": unmeasured("a"),
    "no models": report_of([trial("a", 0.3, 0.5).model_copy(update={"models": {}})]),
    "another metric": report_of(grid_trials(), metric="retrieval/never_measured"),
    "size not known": report_of([trial("a", 0.3, 0.5).model_copy(update={"pairs": None, "kept_fraction": None})]),
    "on cores": report_of([*grid_trials(), *control_trials()], device="core", equal_epochs=None, equal_samples=5000),
    "many": many_report(),
    "hostile": hostile_report(),
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render(report) for name, report in REPORTS.items()}


@pytest.mark.parametrize("name", REPORTS)
def test_every_page_is_whole_and_requests_nothing(pages: dict[str, str], name: str) -> None:
    elements = Elements()
    elements.feed(pages[name])
    tags = {tag for tag, _ in elements.found}
    assert not {"script", "iframe", "object", "link", "i", "a", "img"} & tags
    assert "svg" in tags or name in ("all failed", "nothing at all", "nothing measured", "no models", "another metric")
    assert not [key for _, attributes in elements.found for key in attributes if key.startswith("on")]
    references = [attributes.get(key) for _, attributes in elements.found for key in ("src", "href", "xlink:href")]
    assert all(reference.startswith("#") for reference in references if reference)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    plots = "".join(re.findall(r"<svg.*?</svg>", pages[name], re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", plots)) <= {"#000000", "#ffffff"}
    assert "nan" not in re.sub(r"<style>.*?</style>", "", plots.lower(), flags=re.DOTALL)


def test_the_sections_of_a_whole_sweep(pages: dict[str, str]) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", pages["whole"])
    assert titles == [
        "Results against cost",
        "Results against pairs kept",
        "Results",
        "Cost of pruning and training",
        "Shared stages",
        "Trials that did not finish",
        "Results in the papers",
        "About this sweep",
    ]
    assert pages["whole"].count("<svg") == 4
    assert pages["no fine-tuning"].count("<svg") == 3
    assert pages["one trial"].count("<svg") == 3


def test_the_table_has_means_and_deviations(pages: dict[str, str]) -> None:
    # the full control: 24.5, 24.8, 25.1; fine-tuned two points more
    assert "24.80 ± 0.30" in pages["whole"]
    assert "26.80 ± 0.30" in pages["whole"]
    # the best: 0.15 + 0.09 + 0.0128 ± 0.007, and fine-tuned
    assert "<b>25.28 ± 0.70</b>" in pages["whole"]
    assert "<b>27.28 ± 0.70</b>" in pages["whole"]
    assert "±" not in re.sub(r"<p.*?</p>", "", pages["one trial"], flags=re.DOTALL)


def test_one_line_of_a_model_is_best_in_each_metric() -> None:
    lines = table_lines(settings_of(whole_report()), [TOP1])
    assert [setting.control for setting, _ in lines[:4]] == ["full", "random", "random", "random"]
    for phase in (0, 1):
        assert [models[phase].best for _, models in lines] == [[False]] * 9 + [[True]]


def test_unfinished_trials_and_missing_controls_are_explained(pages: dict[str, str]) -> None:
    assert "stopped by the scheduler: below the median" in pages["whole"]
    assert "TrainingError: loss is not finite" in pages["whole"]
    assert "No trial finished" in pages["all failed"]
    assert ">unknown<" in pages["all failed"]
    assert "There is no full control" in pages["no controls"]
    assert all("training time" in pages[name] for name in ("whole", "no controls"))
    assert "core-hours" in pages["on cores"]
    assert "sees 5,000 samples" in pages["on cores"]


def test_hostile_names_settings_and_reasons_are_escaped(pages: dict[str, str]) -> None:
    assert "<script" not in pages["hostile"]
    assert pages["hostile"].count("&lt;script&gt;") >= 20
    plots = "".join(re.findall(r"<svg.*?</svg>", pages["hostile"], re.DOTALL))
    assert plots.count("_$x$&lt;script&gt;") == 3 * 4, "a dollar starts no formula; equal short labels are not merged"


def test_series_beyond_the_first_few_are_labelled_others(pages: dict[str, str]) -> None:
    plots = "".join(re.findall(r"<svg.*?</svg>", pages["many"], re.DOTALL))
    assert plots.count(">others<") == 3
    # the last six methods are the best
    assert plots.count(">semdedup, ssp<") == 3
    assert ">wfpp<" not in plots


def test_the_map_holds_the_means() -> None:
    report = whole_report()
    grid = grid_of(settings_of(report), TOP1, report.dimensions)
    assert grid is not None
    assert (grid.column_name, grid.columns, grid.row_name, grid.rows) == (
        "keep_fraction",
        [0.25, 0.5, 0.75],
        "k",
        [16, 64],
    )
    expected = [[0.17 + 0.12 * kept + 0.0002 * k for kept in (0.25, 0.5, 0.75)] for k in (16, 64)]
    np.testing.assert_allclose(grid.values, expected)


@pytest.mark.parametrize(
    "dimensions", [{}, {"keep_fraction": [0.25, 0.5]}, {**DIMENSIONS, "selection.clustering.k": list(range(99))}]
)
def test_there_is_no_map_of_fewer_dimensions_or_too_many_values(dimensions: dict) -> None:
    assert grid_of(settings_of(whole_report()), TOP1, dimensions) is None


def test_the_papers_numbers_are_as_published(pages: dict[str, str]) -> None:
    assert [paper.arxiv for paper in PAPERS] == ["2410.10879", "2401.04578"]
    dbp = {(row.what, row.pairs): row for row in PAPERS[1].rows}
    # the abstract says: 1.1 points above OpenCLIP at 27.7% of the cost
    found = dbp["SemDeDup, DBP", "112M"]
    assert found.cost == "27.7%"
    assert found.top1 - dbp["OpenCLIP, LAION-400M", "400M"].top1 == pytest.approx(1.1, abs=0.05)
    assert "arXiv:2401.04578" in pages["all failed"]
    assert "authors’ results, not this sweep’s" in pages["all failed"]


@pytest.mark.parametrize("name", ["whole", "hostile", "many"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_chromium_the_page_fits_and_no_script_runs(
    pages: dict[str, str], name: str, width: int, tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    # without its policy the page must still be harmless; the script that measures is the test's own
    bare = POLICY.sub("", pages[name])
    assert "Content-Security-Policy" not in bare
    source = json.dumps(bare).replace("</", "<\\/")
    (tmp_path / "frame.html").write_text('<meta charset="utf-8">' + MEASURE.format(width=width, page=source))
    places = (f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'frame.html'}")
    done = subprocess.run(
        [CHROMIUM, *QUIET, "--window-size=1400,2000", *places], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr
    title, content_width = json.loads(html.unescape(found[1]))
    assert title.endswith(": report of a sweep")
    assert content_width <= width
