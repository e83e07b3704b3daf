"""A pool in which no caption is recognised is refused where captions are read, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Limits, WebDatasetSource
from orchestrator.data.captionless import caption_summary, check_captions
from orchestrator.errors import UserError
from orchestrator.selection import caption_reader
from orchestrator.source import open_source
from tests.support.commands import Shell, tiny_command
from tests.support.pools import config_of, make_pairs, picture
from tests.support.shard_files import write_tar

SELECT = "python -m orchestrator select +exp=wfpp selection.wfpp.min_count=2 source.uri=pool out=OUT store=STORE"


def write_unnamed(folder: Path, *, num_pairs: int = 24) -> None:
    """A pool with captions in members and keys that nobody tries."""
    folder.mkdir()
    entries = []
    for pair in make_pairs(num_pairs):
        entries += [(f"{pair.key}.jpg", pair.image or b""), (f"{pair.key}.prompt", (pair.caption or "").encode())]
        entries.append((f"{pair.key}.json", json.dumps({"description": pair.caption, "url": "http://x"}).encode()))
    write_tar(folder / "0.tar", entries)


def summary_of(folder: Path, captions: list[str | None]) -> dict[str, Any]:
    """The summary of a tar of pairs with these captions; the last pair has no image."""
    entries = [(f"{i}.jpg", picture(i)) for i in range(len(captions) - 1)]
    entries += [(f"{i}.txt", text.encode()) for i, text in enumerate(captions) if text is not None]
    source = open_source(WebDatasetSource(uri=str(write_tar(folder / "0.tar", entries))))
    catalog = source.catalog(source.parts()[0])
    return {"rows": catalog.table.num_rows, "problems": catalog.problems, **caption_summary(catalog)}


def test_blank_captions_count_and_pairs_without_an_image_do_not(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, ["a cat", None, " \n", "", "a dog"])
    assert summary["captionless"] == 3
    assert summary["captions_from"] == {"member txt": 2}
    assert summary["seen"] == {".jpg": 3, ".txt": 2}
    check_captions(Limits(max_captionless=0.75), [summary], "training")
    check_captions(Limits(max_captionless=0.0), [summary], None)
    with pytest.raises(UserError, match=r"^3 of 4 pairs have no caption, at most 50.0% allowed, and training reads"):
        check_captions(Limits(), [summary], "training")
    old = {"rows": 4, "problems": {"missing_caption": 3, "missing_image": 1}}
    with pytest.raises(UserError, match="3 of 3 pairs"):
        check_captions(Limits(), [old], "training")


@pytest.mark.parametrize(
    ("steps", "trains", "reader"),
    [
        (["random"], False, None),
        (["random", "semdedup"], False, None),
        (["random"], True, "training"),
        (["random", "basic"], True, "the step basic"),
        (["mine"], False, "the step mine"),
        (["clip_score"], False, "the step clip_score"),
        (["metaclip"], False, "the step metaclip"),
    ],
)
def test_what_reads_captions(tmp_path: Path, steps: list[str], trains: bool, reader: str | None) -> None:
    settings: dict[str, Any] = {name: {} for name in steps}
    settings |= {name: {"embedding": "clip"} for name in steps if name in ("semdedup", "clip_score")}
    settings |= {"mine": {"method": "wfpp"}} if "mine" in steps else {}
    source = {"format": "webdataset", "uri": "pool"}
    config = config_of(
        source, tmp_path, selection={"steps": steps, **settings}, embedding={"clip": {"kind": "open_clip"}}
    )
    assert caption_reader(config, trains=trains) == reader


def refused(done: Any, *said: str) -> None:
    """Checks for one line with these words, and exit code 2."""
    line = done.stderr.strip()
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "\n" not in line, line
    assert [part for part in said if part not in line] == [], line


def test_commands_refuse_a_pool_without_captions(run_command: Shell, tiny_conf: str, tmp_path: Path) -> None:
    write_unnamed(tmp_path / "pool")
    said = ["24 of 24 pairs have no caption", "members .jpg, .json, .prompt", "JSON keys description, url"]
    said += ["source.caption_column", "source.limits.max_captionless"]
    refused(run_command(SELECT, cwd=tmp_path), *said, "the step wfpp")
    # no step of this run reads captions, but training does
    train = tiny_command(tiny_conf, "pool").replace(" evaluation.zero_shot.uri=zs.tar", "")
    train += " selection.steps=[random] selection.random.keep_fraction=0.9 out=OUT store=STORE"
    refused(run_command(train, cwd=tmp_path), *said, "training reads captions")
    assert not (tmp_path / "STORE" / "pretrain").exists()
    refused(run_command(train.replace(" run ", " plan "), cwd=tmp_path), *said, "training reads captions")
    # allowed: nothing reads captions; then the finished catalog is checked again
    select = SELECT.replace("+exp=wfpp selection.wfpp.min_count=2", "selection.steps=[random]")
    done = run_command(select, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for verb in ("run", "plan"):
        refused(run_command(train.replace(" run ", f" {verb} "), cwd=tmp_path), *said)
    done = run_command(f"{SELECT} source.limits.max_captionless=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["prompt", "description"])
def test_the_setting_that_the_message_names_helps(run_command: Shell, tmp_path: Path, name: str) -> None:
    write_unnamed(tmp_path / "pool")
    done = run_command(f"{SELECT} source.caption_column={name}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = json.loads((tmp_path / "OUT" / "report.json").read_text())["skipped"]["catalog"]
    taken = "member prompt" if name == "prompt" else "JSON description"
    assert skipped["captions_from"] == {taken: 24}
    assert f"Captions are from: {taken} (24)." in (tmp_path / "OUT" / "report.html").read_text()
