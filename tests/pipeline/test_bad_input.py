"""Bad input, typed: what cannot work is one line and exit code 2; broken pairs are skipped, counted, named."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Shell, tiny_command
from tests.support.pools import Pair, bomb, make_pairs, torn, write_experiment, write_tars

SELECT = "python -m orchestrator select +exp=wfpp selection.wfpp.min_count=2"


def refused(done: Any, *said: str) -> str:
    """Checks that a command ended as a user's mistake does: one line, exit code 2, no trace."""
    line = done.stderr.strip()
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert line.startswith("orchestrator: "), line
    assert "\n" not in line, line
    assert "Traceback" not in done.stdout + done.stderr
    assert "ray::" not in line, "a trace folded into one line is none the better"
    assert "UDF" not in line
    for part in said:
        assert part in line, line
    return line


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "OUT" / "report.json").read_text())


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nowhere", ["no such path", "nowhere"]),
        ("'pool/{00000..00003}.tar'", ["3 of the 4 files", "00001.tar"]),
        ("empty", ["no shards in", "empty", ".tar"]),
        ("'empty/*.tar'", ["nothing matches"]),
        ("pool/00000.txt", ["no such path"]),
    ],
)
def test_a_source_that_is_not_there(run_command: Shell, tmp_path: Path, uri: str, said: list[str]) -> None:
    write_tars(tmp_path / "pool", make_pairs(2))
    (tmp_path / "empty").mkdir()
    refused(run_command(f"{SELECT} source.uri={uri} out=OUT store=STORE", cwd=tmp_path), "source.uri", *said)
    assert not (tmp_path / "OUT").exists()
    assert not (tmp_path / "STORE").exists()


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1", "abc"])
def test_a_keep_fraction_that_is_none(run_command: Shell, tmp_path: Path, value: str) -> None:
    write_tars(tmp_path / "pool", make_pairs(2))
    done = run_command(f"{SELECT} source.uri=pool selection.wfpp.keep_fraction={value}", cwd=tmp_path)
    refused(done, "selection.wfpp.keep_fraction", value)


def test_shards_without_a_pair(run_command: Shell, tmp_path: Path) -> None:
    write_tars(tmp_path / "pool", [])
    refused(run_command(f"{SELECT} source.uri=pool out=OUT store=STORE", cwd=tmp_path), "the source has no pairs")


def test_a_file_that_is_no_tar(run_command: Shell, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "00000.tar").write_bytes(b"<html>Not found</html>" * 100)
    refused(run_command(f"{SELECT} source.uri=pool out=OUT store=STORE", cwd=tmp_path), "00000.tar: not a tar")


def test_a_cut_tar_a_header_that_is_none_and_a_missing_caption_are_counted_and_named(
    run_command: Shell, tmp_path: Path
) -> None:
    pairs = make_pairs(60)
    pairs[2] = Pair(pairs[2].key, pairs[2].caption, b"<html>404</html>" * 40)
    pairs[3] = Pair(pairs[3].key, None, pairs[3].image)
    write_tars(tmp_path / "pool", pairs, num_shards=3)
    cut = tmp_path / "pool" / "00001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    done = run_command(f"{SELECT} source.uri=pool out=OUT store=STORE", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = report_of(tmp_path)["skipped"]["catalog"]
    assert skipped["broken_shards"] == 1
    assert skipped["problems"] == {"truncated_shard": 1, "bad_image": 1, "missing_caption": 1}
    examples = "; ".join(skipped["examples"])
    for name in ("00001.tar: truncated after", "00000.tar/000000002", "00000.tar/000000003"):
        assert name in examples
        assert name.split(":")[0] in (tmp_path / "OUT" / "report.html").read_text()
    funnel = {row["name"]: row["pairs"] for row in report_of(tmp_path)["funnel"]}
    assert 40 < funnel["source"] < 60
    assert funnel["pool"] == funnel["source"] - 1
    strict = f"{SELECT} source.uri=pool out=OUT2 store=STORE source.limits.max_broken_shards=0"
    refused(run_command(strict, cwd=tmp_path), "1 of 3 shards are broken, 0 allowed", "00001.tar", "max_broken_shards")


def test_more_broken_pairs_than_allowed(run_command: Shell, tmp_path: Path) -> None:
    pairs = make_pairs(20)
    for i in range(8):
        pairs[i] = Pair(pairs[i].key, pairs[i].caption, b"no picture")
    write_tars(tmp_path / "pool", pairs)
    refused(
        run_command(f"{SELECT} source.uri=pool out=OUT store=STORE", cwd=tmp_path), "8 of 20 pairs are broken", "10.0%"
    )


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"--config-dir {write_experiment(tmp_path_factory.mktemp('conf') / 'conf')} +exp=tiny"


def test_a_pool_smaller_than_a_global_batch_is_told_before_anything_is_computed(
    run_command: Shell, conf: str, tmp_path: Path
) -> None:
    write_tars(tmp_path / "pool", make_pairs(20))
    done = run_command(
        f"python -m orchestrator run {conf} source.uri=pool out=OUT store=STORE training.global_batch_size=32",
        cwd=tmp_path,
    )
    refused(done, "15", "32", "training.global_batch_size")
    assert "pretrain ..." not in done.stdout
    assert not (tmp_path / "STORE" / "pretrain").exists()


def test_more_workers_than_the_cluster_holds_are_told_before_anything_is_computed(
    run_command: Shell, conf: str, tmp_path: Path
) -> None:
    write_tars(tmp_path / "pool", make_pairs(60))
    workers = "training.lanes=8 training.num_workers=8"
    done = run_command(
        f"python -m orchestrator run {conf} source.uri=pool out=OUT store=STORE {workers}",
        cwd=tmp_path,
    )
    refused(done, "training.num_workers=8", "10 logical CPUs", "cluster.scales_to_cpus")
    assert "the models will not be evaluated" in done.stdout
    assert not (tmp_path / "STORE").exists()


def test_a_caption_table_cannot_be_trained_on(run_command: Shell, conf: str, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("caption\na cat\na dog\n")
    done = run_command(f"python -m orchestrator run {conf} source=table source.uri=captions.csv out=OUT", cwd=tmp_path)
    refused(done, "no images to train on", "img2dataset")


def test_a_column_that_is_not_there(run_command: Shell, tmp_path: Path) -> None:
    import polars as pl

    pl.DataFrame({"prompt": ["a"], "url": ["b"]}).write_parquet(tmp_path / "captions.parquet")
    done = run_command(f"{SELECT} source=table source.uri=captions.parquet", cwd=tmp_path)
    refused(done, "source.caption_column", "caption", "prompt", "url")


@pytest.mark.parametrize("key", ["out", "store"])
def test_a_file_where_the_folder_should_be(run_command: Shell, tmp_path: Path, key: str) -> None:
    write_tars(tmp_path / "pool", make_pairs(4))
    (tmp_path / "taken").write_text("mine")
    places = {"out": "OUT", "store": "STORE", key: "taken/inside"}
    done = run_command(f"{SELECT} source.uri=pool out={places['out']} store={places['store']}", cwd=tmp_path)
    refused(done, "cannot write", "taken/inside")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_output_folder_loses_nothing(run_command: Shell, small_disk: Path, tmp_path: Path) -> None:
    write_tars(tmp_path / "pool", make_pairs(40))
    (small_disk / "OUT").mkdir()
    (small_disk / "mine.txt").write_text("x" * 1000)
    (small_disk / "filler").write_bytes(b"x" * 40_000)
    done = run_command(f"{SELECT} source.uri=pool out=small/OUT store=STORE", cwd=tmp_path)
    refused(done, "cannot write", "small/OUT", "No space left")
    assert (small_disk / "mine.txt").read_text() == "x" * 1000
    assert not list(small_disk.rglob("*.tmp"))
    done = run_command(f"{SELECT} source.uri=pool out=OUT store=STORE", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # what was computed before the disk was full is still there
    assert all(stage["reused"] for stage in report_of(tmp_path)["stages"])


def test_a_full_store_is_one_line(run_command: Shell, small_disk: Path, tmp_path: Path) -> None:
    write_tars(tmp_path / "pool", make_pairs(40))
    (small_disk / "filler").write_bytes(b"x" * 60_000)
    refused(
        run_command(f"{SELECT} source.uri=pool out=OUT store=small/STORE", cwd=tmp_path),
        "cannot write",
        "No space left",
    )


def test_a_read_only_output_folder(run_command: Shell, small_disk: Path, tmp_path: Path) -> None:
    write_tars(tmp_path / "pool", make_pairs(4))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(
        run_command(f"{SELECT} source.uri=pool out=small/OUT store=STORE", cwd=tmp_path),
        "cannot write",
        "Read-only file system",
    )


@pytest.mark.slow
def test_pictures_that_cannot_be_decoded_are_masked_counted_and_named_in_the_report(
    run_command: Shell, conf: str, tmp_path: Path
) -> None:
    pairs = make_pairs(64)
    pairs[7] = Pair(pairs[7].key, pairs[7].caption, torn(pairs[7].image or b""))
    pairs[30] = Pair(pairs[30].key, pairs[30].caption, bomb())
    pairs[31] = Pair(pairs[31].key, None, pairs[31].image)
    write_tars(tmp_path / "pool", pairs, num_shards=2)
    command = tiny_command(conf, "pool").replace("evaluation.zero_shot.uri=zs.tar", "")
    done = run_command(f"{command} out=OUT store=STORE selection.steps=[all] training.epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path)
    assert report["skipped"]["catalog"]["problems"] == {"missing_caption": 1}
    skips = report["skipped"]["training"]
    # the fine-tune epoch leaves out the pair without a caption, pre-training on `all` meets it
    assert (skips["pretrain"]["skipped"], skips["finetune"]["skipped"]) == (3, 2)
    for key in ("000000007: undecodable", "000000030: too_large"):
        for phase in skips.values():
            assert any(key in example for example in phase["examples"])
        assert key.split(":")[0] in (tmp_path / "OUT" / "report.html").read_text()
    assert report["training"]["pretrain"]["samples_seen"] == 64
    assert os.listdir(tmp_path / "OUT" / "model")


@pytest.mark.slow
def test_too_many_undecodable_pictures_end_the_run(run_command: Shell, conf: str, tmp_path: Path) -> None:
    pairs = [
        Pair(p.key, p.caption, torn(p.image or b"") if i % 4 == 0 else p.image) for i, p in enumerate(make_pairs(64))
    ]
    write_tars(tmp_path / "pool", pairs)
    command = tiny_command(conf, "pool").replace("evaluation.zero_shot.uri=zs.tar", "")
    done = run_command(f"{command} out=OUT store=STORE training.epochs=1", cwd=tmp_path)
    refused(done, "pretrain", "training.max_bad_pairs", "undecodable")
