"""Evaluation sets as people have them: unsorted tars, files beside the samples, captions in JSON, broken samples; and
what is refused before anything is computed."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.cli import compose_config
from orchestrator.config import Config, Limits
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.evaluation.check import check_configured, check_sets
from orchestrator.evaluation.samples import read_samples
from orchestrator.evaluation.sets import EvaluationSet, evaluation_sets, open_set
from tests.support.pools import add, caption, make_pairs, picture, write_tars

Members = Sequence[tuple[str, bytes]]


def zero_shot(folder: Path, members: Members, *, names: str = "a\nb\nc\n", mode: str = "w") -> EvaluationSet:
    folder.mkdir(exist_ok=True)
    (folder / "zs.classnames.txt").write_text(names)
    return open_set(written(folder / f"zs.tar{'.gz' if mode == 'w:gz' else ''}", members, mode), needs_classes=True)


def retrieval(folder: Path, members: Members) -> EvaluationSet:
    return open_set(written(folder / "pairs.tar", members), needs_classes=False)


def written(path: Path, members: Members, mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            add(tar, name, data)
    return str(path)


def labelled(numbers: Sequence[int]) -> list[tuple[str, bytes]]:
    return [
        member
        for number in numbers
        for member in ((f"{number:03d}.jpg", picture(number)), (f"{number:03d}.cls", str(number % 3).encode()))
    ]


def captioned(numbers: Sequence[int]) -> list[tuple[str, bytes]]:
    return [
        member
        for number in numbers
        for member in ((f"{number:03d}.jpg", picture(number)), (f"{number:03d}.txt", caption(number).encode()))
    ]


def samples(dataset: EvaluationSet) -> dict[str, tuple[bytes | None, int, str]]:
    (part,) = dataset.source.parts()
    return {one.key: (one.image, one.label, one.caption) for one in read_samples(dataset, part) if one.image}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_a_sample_may_be_anywhere_in_the_tar(mode: str, tmp_path: Path) -> None:
    members = labelled(range(6))
    random.Random(1).shuffle(members)
    readme = [("README.md", b"hello"), ("a/LICENSE.txt", b"free"), ("meta.json", b"{}")]
    dataset = zero_shot(tmp_path, [*readme, *members], mode=mode)
    check_sets({"zero_shot": dataset}, Limits(max_broken_pairs=0), Display())
    assert samples(dataset) == {f"{number:03d}": (picture(number), number % 3, "") for number in range(6)}


def test_captions_come_from_where_a_pool_may_have_them(tmp_path: Path) -> None:
    members = [
        *captioned([0]),
        ("001.json", json.dumps({"caption": "in JSON"}).encode()),
        ("001.jpg", picture(1)),
        ("002.jpg", picture(2)),
        ("002.txt", b" with blanks \n"),
        ("README.md", b"hello"),
    ]
    random.Random(0).shuffle(members)
    dataset = retrieval(tmp_path, members)
    check_sets({"retrieval": dataset}, Limits(max_broken_pairs=0), Display())
    texts = {"000": caption(0), "001": "in JSON", "002": "with blanks"}
    assert samples(dataset) == {f"{number:03d}": (picture(number), 0, texts[f"{number:03d}"]) for number in range(3)}


def test_captions_in_the_parquet_file_beside_the_tar_count_and_change_the_identity(tmp_path: Path) -> None:
    before = retrieval(tmp_path, [("0.jpg", picture(0)), ("1.jpg", picture(1))])
    columns = {"key": ["0", "1"], "caption": ["zero", "one"], "status": ["success"] * 2}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    after = open_set(str(tmp_path / "pairs.tar"), needs_classes=False)
    assert [text for _, _, text in samples(after).values()] == ["zero", "one"]
    assert after.identity != before.identity


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        ("", ["plain 0", "plain 1"]),
        ("source.caption_column=blip", ["blip 0", "blip 1"]),
        ("source.caption_column=.recap", ["recap 0", "recap 1"]),
        ("source.caption_column=blip evaluation.retrieval.caption_column=txt", ["plain 0", "plain 1"]),
        ("evaluation.retrieval.caption_column=recap", ["recap 0", "recap 1"]),
        ("source=parquet source.caption_column=TEXT", ["plain 0", "plain 1"]),
    ],
)
def test_captions_of_a_held_out_set_are_where_those_of_the_pool_are(
    overrides: str, texts: list[str], tmp_path: Path
) -> None:
    members = [
        member
        for number in range(2)
        for member in (
            (f"{number}.jpg", picture(number)),
            (f"{number}.txt", f"plain {number}".encode()),
            (f"{number}.recap", f"recap {number}".encode()),
            (f"{number}.json", json.dumps({"blip": f"blip {number}"}).encode()),
        )
    ]
    tar = written(tmp_path / "pairs.tar", members)
    places = [f"source.uri={tmp_path}", f"evaluation.retrieval.uri={tar}"]
    sets = evaluation_sets(compose_config([*overrides.split(), *places]))
    check_sets(sets, Limits(max_broken_pairs=0), Display())
    assert [text for _, _, text in samples(sets["retrieval"]).values()] == texts
    is_plain = sets["retrieval"].identity == open_set(tar, needs_classes=False).identity
    assert is_plain == (overrides in ("", "source=parquet source.caption_column=TEXT")), "other captions, other results"


def test_a_held_out_set_without_the_named_captions_is_one_line(tmp_path: Path) -> None:
    tar = written(tmp_path / "pairs.tar", captioned(range(2)))
    config = compose_config([f"source.uri={tmp_path}", "source.caption_column=blip", f"evaluation.retrieval.uri={tar}"])
    said = r"2 of 2 samples .* a caption \(in blip; evaluation\.retrieval\.caption_column names another place\)"
    with pytest.raises(UserError, match=said):
        check_configured(config, Display())


def test_few_broken_samples_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [*captioned(range(20)), ("020.jpg", picture(20)), ("021.txt", b"no image")]
    dataset = retrieval(tmp_path, members)
    check_sets({"retrieval": dataset}, Limits(), Display())
    shown = " ".join(capsys.readouterr().out.split())
    assert "retrieval: 2 samples are left out (pairs.tar/020: missing caption; pairs.tar/021: missing image)" in shown
    assert len(samples(dataset)) == 20
    # they are counted by the evaluation too
    (part,) = dataset.source.parts()
    assert sum(one.image is None for one in read_samples(dataset, part)) == 2
    with pytest.raises(UserError, match=r"2 of 22 samples cannot be used, at most 5\.0% allowed .*max_broken_pairs"):
        check_sets({"retrieval": dataset}, Limits(max_broken_pairs=0.05), Display())


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            [("0.jpg", picture(0))],
            r"1 of 1 samples .*0: no cls member\); expected an image and a cls member .* members jpg",
        ),
        ([("0.cls", b"1")], r"zs\.tar/0: no image"),
        ([("0.jpg", picture(0)), ("0.cls", b"dog")], r"got class 'dog', expected an index from 0"),
        ([("0.jpg", picture(0)), ("0.cls", "\u00b2".encode())], r"expected an index from 0"),
        ([("0.jpg", picture(0)), ("0.cls", b"\xff\xfe")], r"expected an index from 0"),
        ([("0.jpg", picture(0)), ("0.cls", b"-1")], r"got class '-1'"),
        ([("0.jpg", picture(0)), ("0.cls", b"3")], r"0 has label 3, expected 0 to 2: there are 3 class names"),
        ([("README.md", b"")], r"0 of 0 samples .*its tars are empty.* members md"),
        ([], r"0 of 0 samples cannot be used"),
    ],
)
def test_unusable_classification_set_is_one_line(members: Members, said: str, tmp_path: Path) -> None:
    dataset = zero_shot(tmp_path, members)
    with pytest.raises(UserError, match=rf"evaluation\.zero_shot\.uri: .*{said}") as error:
        check_sets({"zero_shot": dataset}, Limits(), Display())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            [("0.jpg", picture(0)), ("0.html", b"x")],
            r"0: missing caption\); expected an image and a caption .*members html, jpg",
        ),
        ([("0.jpg", b"<html>"), ("0.txt", b"x")], r"0: bad image"),
        ([("0.jpg", picture(0)), ("0.txt", b" \n")], "all 1 captions are blank, as that of 0"),
        ([("0.jpg", picture(0)), ("0.json", b"not JSON")], "0: missing caption"),
    ],
)
def test_unusable_retrieval_set_is_one_line(members: Members, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.retrieval\.uri: .*{said}"):
        check_sets({"retrieval": retrieval(tmp_path, members)}, Limits(), Display())


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100, None])
def test_cut_or_wrong_file_is_refused_whatever_the_limits(content: bytes | None, tmp_path: Path) -> None:
    write_tars(tmp_path / "held", make_pairs(12), num_shards=2)
    tar = tmp_path / "held" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:9000] if content is None else content)
    dataset = open_set(str(tmp_path / "held"), needs_classes=False)
    with pytest.raises(UserError, match=r"00001\.tar is damaged; an evaluation set must be whole"):
        check_sets({"retrieval": dataset}, Limits(max_broken_pairs=1, max_broken_shards=1), Display())


def config_of(root: Path) -> Config:
    """The tasks `imagenet_shifts` below a root."""
    return compose_config(["evaluation=imagenet_shifts", f"evaluation.root={root}"], needs_source=False)


def write_task(folder: Path, members: Members, *, shards: str = "1") -> None:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(shards)
    (folder / "classnames.txt").write_text("a\nb\nc\n")
    written(folder / "test" / "0.tar", members)


def test_tasks_are_checked_and_the_unusable_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path)
    first, second, third = (config.evaluation.tasks[key].name for key in list(config.evaluation.tasks)[:3])
    keys = list(config.evaluation.tasks)
    write_task(tmp_path / f"wds_{keys[0]}_test", labelled(range(4)))
    write_task(tmp_path / f"wds_{keys[1]}_test", [("0.jpg", picture(0))])
    write_task(tmp_path / f"wds_{keys[2]}_test", [("0.jpg", picture(0)), ("0.cls", b"7")])
    check_configured(config, Display())
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{first} will be skipped" not in shown
    assert f"{second} will be skipped: 1 of 1 samples cannot be used" in shown
    assert f"{third} will be skipped: 0 has label 7, expected 0 to 2" in shown


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ("1", "none of the 1 tasks can be measured; .*: 1 of 1 samples cannot be used"),
        ("0", "nshards.txt: got '0', expected the number of tars"),
        ("\u00b2", "expected the number of tars"),
    ],
)
def test_no_usable_task_is_refused(shards: str, said: str, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    key = next(iter(config.evaluation.tasks))
    write_task(tmp_path / f"wds_{key}_test", [("0.cls", b"0")], shards=shards)
    with pytest.raises(UserError, match=said):
        check_configured(config, Display())


def test_unreadable_group_is_no_group(tmp_path: Path) -> None:
    npy = io.BytesIO()
    np.save(npy, np.array(["text"]))
    members = [*labelled(range(3)), ("000.npy", b"no array"), ("001.npy", npy.getvalue())]
    dataset = zero_shot(tmp_path, members)
    (part,) = dataset.source.parts()
    assert [one.group for one in read_samples(dataset, part)] == [-1, -1, -1]
