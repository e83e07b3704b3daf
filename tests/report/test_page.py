"""The page, parsed and opened in a browser: hostile text stays text, images load, no network requests."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.run_record import RunRecord
from orchestrator.report.page import render
from orchestrator.report.schema import Report
from orchestrator.report.summary import Headline, headlines
from orchestrator.report.thumbnails import Thumbnails
from orchestrator.report.write import build_report, write_report
from tests.support.browser import CHROMIUM, POLICY, QUIET
from tests.support.report_runs import HOSTILE, Elements

MEASURE = """<script>document.title = JSON.stringify([document.title, document.documentElement.scrollWidth, innerWidth,
[...document.images].map(image => image.naturalWidth)])</script>"""


@pytest.fixture(scope="module")
def page(trained: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    write_report(str(out), trained)
    return out / "report.html"


def test_captions_do_not_create_elements(page: Path) -> None:
    text = page.read_text()
    elements = Elements()
    elements.feed(text)
    assert not {"script", "iframe", "object", "link", "i"} & {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    alts = [attributes["alt"] for tag, attributes in elements.found if tag == "img"]
    assert set(HOSTILE) <= set(alts)


def test_hostile_words_problems_and_names_are_escaped(trained: RunRecord) -> None:
    report = build_report(trained)
    assert report.words is not None
    assert report.skipped.catalog is not None
    evil = "<script>alert(1)</script>\"'"
    changed = report.words.most_affected[0].model_copy(update={"word": evil})
    catalog = report.skipped.catalog.model_copy(update={"problems": {evil: 1}, "examples": [evil]})
    hostile = report.model_copy(
        update={
            "name": evil,
            "words": report.words.model_copy(update={"most_affected": [changed]}),
            "versions": {evil: evil},
            "skipped": report.skipped.model_copy(update={"catalog": catalog}),
            "config": {evil: evil},
        }
    )
    text = render(hostile, Thumbnails(missing=evil))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 9


def test_a_failed_evaluation_says_why() -> None:
    stages: dict[str, Any] = {"stages": [], "fingerprints": {}, "versions": {}, "config": {}}
    started = "2026-01-01T00:00:00+00:00"
    report = Report(name="x", verb="run", started=started, wall_seconds=3, not_evaluated="got 0 <images>", **stages)
    text = render(report, Thumbnails())
    assert "The evaluation failed, so there are no results: got 0 &lt;images&gt;." in text
    assert Headline("evaluation", "failed") in headlines(report)
    assert "<h2>Evaluation" not in render(report.model_copy(update={"not_evaluated": None}), Thumbnails())


def test_page_makes_no_requests(page: Path) -> None:
    elements = Elements()
    elements.feed(page.read_text())
    references = [
        attributes[name] or ""
        for _, attributes in elements.found
        for name in ("src", "href", "xlink:href")
        if name in attributes
    ]
    assert references
    assert all(reference.startswith(("data:image/webp;base64,", "#")) for reference in references)
    assert "url(http" not in page.read_text()


def test_ids_are_unique_and_colours_follow_the_page(page: Path) -> None:
    elements = Elements()
    elements.feed(page.read_text())
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    plots = "".join(re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL))
    assert plots.count("<svg") == 3
    assert set(re.findall(r"#[0-9a-f]{6}\b", plots)) <= {"#000000", "#ffffff"}


@pytest.mark.parametrize("width", [500, 1400])
def test_no_script_runs_and_images_load_in_chromium(page: Path, width: int, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    # the page must be harmless even without its policy; the measuring script belongs to the test
    bare = POLICY.sub("", page.read_text())
    assert "Content-Security-Policy" not in bare
    (tmp_path / "bare.html").write_text(bare.replace("</body>", MEASURE + "</body>"))
    places = (f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'bare.html'}")
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--window-size={width},2000", *places],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr
    title, content_width, window_width, image_widths = json.loads(html.unescape(found[1]))
    assert title == "a <b>run</b>: report of a run"
    assert content_width <= window_width
    assert image_widths
    assert set(image_widths) == {128}
