"""Exports of a keep list as Parquet, DataComp uids and shards, on disk and in a bucket."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import quote

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.commands import Shell
from tests.support.faulty_s3 import Fault, FaultyS3
from tests.support.pools import Pair, build_selection, config_of, make_pairs, real_captions, write_table, write_tars

NUM_PAIRS = 48
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPRUNEDPAIRS7Q2LX",
    "AWS_SECRET_ACCESS_KEY": "wJqT/5sVn+Kx0RbLz3Hd9YfUe8GmPc2Ai6OtXk4",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr//////////wEaDLp9+Qm3",
    "WANDB_API_KEY": "5d1f0c7be2a94836b1c08e4f7a6d29300c5e8b1a",
    "HF_TOKEN": "hf_qVbXzTnPwLkRjHsMdGyFcUaEoIiBvNrQ",
}
pytestmark = pytest.mark.usefixtures("ray_cluster")


def select(run_process: Shell, folder: Path, uri: str, *more: str, source: str = "webdataset") -> None:
    command = (
        f"python -m orchestrator select +exp=wfpp source={source} source.uri={uri} "
        "selection.wfpp.keep_fraction=0.5 out=OUT"
    )
    done = run_process(" ".join([command, *more]), cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def selected(run_command: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `select` run over three tars with uids. One pair has no caption."""
    folder = tmp_path_factory.mktemp("export")
    pairs = make_pairs(NUM_PAIRS)
    pairs[5] = Pair(pairs[5].key, None, pairs[5].image)
    write_tars(folder / "pool", pairs, num_shards=3)
    for number in range(3):
        rows = pairs[16 * number : 16 * number + 16]
        metadata = [
            {"key": pair.key, "status": "success", "caption": pair.caption, "uid": f"{1000 - int(pair.key):032x}"}
            for pair in rows
        ]
        pq.write_table(pa.Table.from_pylist(metadata), folder / "pool" / f"{number:05d}.parquet")
    select(run_command, folder, "pool", "selection.wfpp.min_count=2")
    return folder


@pytest.fixture(scope="module")
def kept(selected: Path, run_command: Shell) -> pa.Table:
    done = run_command("python -m orchestrator export run=OUT to=kept.parquet", cwd=selected)
    assert done.returncode == 0, done.stderr
    return pq.read_table(selected / "kept.parquet")


def test_parquet_names_shard_row_and_key(kept: pa.Table) -> None:
    assert kept.column_names == ["shard", "row", "key", "score"]
    rows = kept.to_pylist()
    assert len(rows) == NUM_PAIRS // 2
    assert [(row["shard"], row["row"]) for row in rows] == sorted((row["shard"], row["row"]) for row in rows)
    assert all(int(row["key"]) == 16 * int(row["shard"].removesuffix(".tar")) + row["row"] for row in rows)
    assert all(row["score"] > 0 for row in rows)
    assert 5 not in {int(row["key"]) for row in rows}


def test_uids_have_datacomps_format(selected: Path, kept: pa.Table, run_command: Shell) -> None:
    done = run_command("python -m orchestrator export run=OUT to=kept.npy", cwd=selected)
    assert done.returncode == 0, done.stderr
    uids = np.load(selected / "kept.npy")
    assert uids.dtype == np.dtype("u8,u8")
    assert sorted(1000 - int(low) for _, low in uids.tolist()) == sorted(map(int, kept["key"].to_pylist()))
    assert (uids["f0"] == 0).all()
    assert (np.diff(uids["f1"].astype(np.int64)) > 0).all(), "DataComp's tools use binary search"


def test_shards_hold_the_kept_pairs_byte_by_byte(selected: Path, kept: pa.Table, run_command: Shell) -> None:
    done = run_command("python -m orchestrator export run=OUT to=shards", cwd=selected)
    assert done.returncode == 0, done.stderr
    shards = sorted(path.name for path in (selected / "shards").iterdir())
    assert shards == [*(f"{i:05d}.tar" for i in range(3)), "_export.json"]
    originals, copies = members(selected / "pool"), members(selected / "shards")
    assert {name.split(".")[0] for name in copies} == set(kept["key"].to_pylist())
    for name, data in copies.items():
        if name.endswith(".json"):
            assert json.loads(data)["key"] == name.split(".")[0]
        else:
            assert data == originals[name]
            if name.endswith(".jpg"):
                Image.open(io.BytesIO(data)).load()


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    return found


def test_exported_shards_are_a_pool_again(selected: Path, kept: pa.Table, run_command: Shell, tmp_path: Path) -> None:
    done = run_command(f"python -m orchestrator export run=OUT to={tmp_path}/again", cwd=selected)
    assert done.returncode == 0, done.stderr
    selection = {"steps": ["all"], "all": {}}
    pool = build_selection(
        config_of({"format": "webdataset", "uri": f"{tmp_path}/again"}, tmp_path / "store", selection=selection)
    )
    keys = [key for i in range(3) for key in pool.catalog.table(i, ("key",))["key"].to_pylist()]
    assert keys == kept["key"].to_pylist()
    assert pool.stages[0].artifact.totals["problems"] == {}


def test_the_columns_of_a_table_are_exported(run_command: Shell, tmp_path: Path) -> None:
    captions = real_captions(100)
    write_table(tmp_path / "table", captions, num_files=2)
    select(run_command, tmp_path, "table", source="table")
    done = run_command(
        "python -m orchestrator export run=OUT to=kept.parquet && python -m orchestrator export run=OUT to=shards",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "shards need images, and a caption table has none" in done.stderr
    rows = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    assert len(rows) == len(captions) // 2
    for row in rows:
        ordinal = int(row["url"].rsplit("/", 1)[1])
        assert row["caption"] == captions[ordinal]
        assert row["row"] == (ordinal if row["shard"] == "00000.parquet" else ordinal - 58)


@pytest.mark.slow
def test_a_run_and_exports_in_a_bucket_with_failures(
    run_process: Shell, forked_workers: dict[str, str], tiny_conf: str, tmp_path: Path
) -> None:
    server = FaultyS3()
    # the path of a socket is limited to about 100 characters
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    env = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_TMPDIR": str(ray_folder),
        **SECRETS,
        **forked_workers,
    }
    fs = fsspec.filesystem("s3", endpoint_url=server.url, key="test", secret="test", skip_instance_cache=True)
    fs.mkdir("bucket")
    write_tars(tmp_path / "pool", make_pairs(96), num_shards=2)
    for path in (tmp_path / "pool").iterdir():
        fs.pipe_file(f"bucket/pool/{path.name}", path.read_bytes())
    server.faults = [
        Fault("busy", method="GET HEAD", every=13),
        Fault("cut", path=".tar", every=5),
        Fault("broken", method="PUT", every=7),
    ]
    command = (
        f"python -m orchestrator run {tiny_conf} source.uri='s3://bucket/pool/{{00000..00001}}.tar' "
        "out=s3://bucket/OUT store=s3://bucket/store selection.wfpp.keep_fraction=0.5 finetune.enabled=false "
        "&& python -m orchestrator export run=s3://bucket/OUT to=s3://bucket/kept.parquet"
        " && python -m orchestrator export run=s3://bucket/OUT to=s3://bucket/shards"
    )
    done = run_process(command, cwd=tmp_path, env=env)
    faults, server.faults = server.faults, []
    assert done.returncode == 0, done.stderr
    assert all(fault.done > 1 for fault in faults), faults
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"], "no file was written on this machine"
    report = json.loads(fs.cat_file("bucket/OUT/report.json"))
    assert report["skipped"]["catalog"]["problems"] == {}, "no pair was lost"
    assert report["training"]["pretrain"]["samples_seen"] == 96
    assert report["skipped"]["training"]["pretrain"]["skipped"] == 0
    names = {name.rsplit("/", 1)[1] for name in fs.find("bucket/OUT")}
    assert {"report.json", "report.html", "run.json"} <= names
    kept = pq.read_table(io.BytesIO(fs.cat_file("bucket/kept.parquet")))
    local = build_selection(
        config_of(
            {"format": "webdataset", "uri": f"{tmp_path}/pool"},
            tmp_path / "store",
            selection={"steps": ["wfpp"], "wfpp": {"keep_fraction": 0.5, "min_count": 2}},
        )
    )
    assert [int(key) for key in kept["key"].to_pylist()] == local.ordinals()
    assert sorted(name.rsplit("/", 1)[1] for name in fs.ls("bucket/shards", detail=False)) == [
        "00000.tar",
        "00001.tar",
        "_export.json",
    ]
    objects = {name: fs.cat_file(name) for name in fs.find("bucket")}
    logs = {str(path): path.read_bytes() for path in ray_folder.rglob("*") if path.is_file() and not path.is_symlink()}
    assert any(name.endswith("raylet.out") for name in logs), "the logs of this run"
    output = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert files_with_secrets({**objects, **logs, **output}) == []
    server.stop()
    shutil.rmtree(ray_folder, ignore_errors=True)


def files_with_secrets(files: dict[str, bytes]) -> list[str]:
    """Return the files that hold a secret, as plain text, in Base64 or percent-encoded."""
    forms = [
        form
        for secret in SECRETS.values()
        for form in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), quote(secret, safe="").encode())
    ]
    return [name for name, data in files.items() if any(form in data for form in forms)]


def test_every_form_of_a_secret_is_found() -> None:
    for secret in SECRETS.values():
        hidden = {
            "plain": f"key={secret}".encode(),
            "basic": base64.b64encode(secret.encode()),
            "none": secret[1:].encode(),
        }
        assert files_with_secrets(hidden) == ["plain", "basic"]
