"""`hf://`: datasets of a hub on loopback, with temporary and permanent failures."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from orchestrator.config import ConfigError, EvaluationConfig
from orchestrator.engine.log import run_log
from orchestrator.errors import UserError
from orchestrator.evaluation.sets import open_set
from orchestrator.evaluation.tasks import open_tasks
from orchestrator.source import Source, open_source
from orchestrator.source.shards import find_shards
from orchestrator.storage import files, hub, retry
from orchestrator.storage.ranges import read_spans
from orchestrator.storage.retry import CutOff, StoreError
from tests.support.commands import Shell
from tests.support.faulty_s3 import Fault
from tests.support.hub import OTHER_TOKEN, SIGNATURE, TOKEN, Hub, Repository
from tests.support.pools import config_of, make_pairs, write_tars, write_zero_shot

BODY = bytes(range(256)) * 400
DATA = "hf://datasets/anna/data"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process reaches as `hf://`, without a token; the dataset `DATA` is on it."""
    server = Hub()
    server.repositories["anna/data"] = Repository({"main": {"a.bin": BODY, "small.txt": b"123"}})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # a token that somebody saved on this machine
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.01)
    # the client's own pauses
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield server
    server.stop()


def write_datasets_parquet(folder: Path, num_pairs: int, *, num_shards: int) -> str:
    """Parquet as the `datasets` library uploads it: a record of bytes and path, a caption, and no key."""
    folder.mkdir(parents=True)
    pairs = make_pairs(num_pairs)
    for number in range(num_shards):
        some = pairs[number::num_shards]
        images = pa.array([{"bytes": pair.image, "path": f"{pair.key}.jpg"} for pair in some], IMAGE)
        table = pa.table({"image": images, "text": [pair.caption for pair in some]})
        pq.write_table(table, folder / f"train-{number:05d}-of-{num_shards:05d}.parquet")
    return str(folder)


def source_of(uri: str | list[str], tmp_path: Path, kind: str = "webdataset") -> Source:
    return open_source(config_of({"format": kind, "uri": uri}, tmp_path).source)


def everything(source: Source) -> list[Any]:
    found = [(part, source.catalog(part)) for part in source.parts()]
    return [(one.table.to_pylist(), one.problems, list(source.images(part, one.table))) for part, one in found]


def test_files_are_read_whole_in_spans_and_in_order(server: Hub, tmp_path: Path) -> None:
    assert files.read(f"{DATA}/a.bin") == BODY
    assert files.read(f"{DATA}/small.txt") == b"123"
    spans = [(90_000, 400), (0, 10), (5, 50_000)]
    server.seen.clear()
    assert list(read_spans(f"{DATA}/a.bin", spans)) == [BODY[offset : offset + size] for offset, size in spans]
    # nothing is read that no span asks for, and the folder is not listed again
    asked = sorted(one.range or "" for one in server.seen if one.path.startswith("/lfs"))
    assert asked == ["bytes=0-9", "bytes=5-50004", "bytes=90000-90399"]
    assert not [one for one in server.seen if "/tree/" in one.path]
    with files.open_file(f"{DATA}/a.bin", read_ahead=1000) as file:
        file.seek(300)
        assert file.read(5000) == BODY[300:5300]
    files.copy(DATA, str(tmp_path / "copy"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
        "a.bin": BODY,
        "small.txt": b"123",
    }
    with pytest.raises(CutOff, match="got 5 of 10 bytes"):
        list(read_spans(f"{DATA}/a.bin", [(len(BODY) - 5, 10)]))


def test_folders_are_listed_in_pages(server: Hub) -> None:
    server.repositories["anna/data"].revisions["main"] |= {f"sub/{number}.txt": b"12" for number in range(8)}
    assert files.names(DATA) == ["a.bin", "small.txt", "sub"]
    assert files.names(f"{DATA}/sub") == [f"{number}.txt" for number in range(8)]
    assert files.num_bytes(f"{DATA}/sub") == 16
    assert files.num_bytes(f"{DATA}/a.bin") == len(BODY)
    found = [files.exists(f"{DATA}/{name}") for name in ("a.bin", "sub", "sub/7.txt", "none", "none/a")]
    assert found == [True, True, True, False, False]
    assert files.names(f"{DATA}/none") == []
    assert files.num_bytes(f"{DATA}/none") == 0
    with pytest.raises(FileNotFoundError, match=r"hf://datasets/anna/data/none"):
        files.read(f"{DATA}/none")
    assert files.canonical(f"{DATA}/sub/") == f"{DATA}/sub"


def test_the_token_goes_to_the_hub_and_not_to_the_storage_behind_it(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["anna/data"].private = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert files.read(f"{DATA}/a.bin") == BODY
    tokens = {one.path.startswith("/lfs"): one.token for one in server.seen}
    assert tokens == {False: f"Bearer {TOKEN}", True: None}


@pytest.mark.parametrize("kind", ["busy", "broken", "limited", "cut"])
@pytest.mark.parametrize("path", ["/api/datasets/anna/data", "/tree/", "/resolve/", "/lfs/"])
def test_a_read_survives_temporary_failures(kind: str, path: str, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # a redirect has no body that could be cut
    kind = "busy" if (kind, path) == ("cut", "/resolve/") else kind
    for read, expected in (
        (lambda: files.read(f"{DATA}/a.bin"), BODY),
        (
            lambda: b"".join(read_spans(f"{DATA}/a.bin", [(7, 70_000), (80_000, 10)])),
            BODY[7:70_007] + BODY[80_000:80_010],
        ),
        (lambda: files.open_file(f"{DATA}/a.bin", read_ahead=10_000).read(30_000), BODY[:30_000]),
    ):
        files.filesystem(DATA)[0].invalidate_cache()
        server.faults = [fault := Fault(kind, path=path, times=2)]  # type: ignore[arg-type]
        monkeypatch.setattr(hub, "MAX_RESET", 0.01)
        assert read() == expected
        assert fault.done == 2


def test_the_hub_says_how_long_to_wait(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, pause = list[float](), retry._pause
    monkeypatch.setattr(retry, "_pause", lambda state: seconds.append(pause(state)) or 0.0)
    server.faults = [Fault("limited", path="/api/datasets/anna/data", times=1)]
    files.filesystem(DATA)[0].invalidate_cache()
    assert files.exists(f"{DATA}/a.bin")
    assert seconds == [1.0]


def test_a_failure_that_does_not_end_is_one_line(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults = [Fault("busy")]
    files.filesystem(DATA)[0].invalidate_cache()
    with pytest.raises(
        StoreError, match=r"cannot read hf://datasets/anna/data/a\.bin after 8 attempts: .*503"
    ) as caught:
        files.read(f"{DATA}/a.bin")
    assert "\n" not in str(caught.value)
    server.faults = []
    assert files.exists(f"{DATA}/a.bin")
    server.faults = [Fault("busy", path="/lfs/")]
    with pytest.raises(StoreError, match=r"after 8 attempts: .*503") as caught:
        list(read_spans(f"{DATA}/a.bin", [(0, 10)]))
    assert SIGNATURE not in str(caught.value)
    server.faults = [Fault("cut", path="/lfs/")]
    with pytest.raises(CutOff, match="after 8 attempts"):
        list(read_spans(f"{DATA}/a.bin", [(0, 1000)]))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"after 8 attempts: .*refused"):
        files.read(f"{DATA}/small.txt")


def test_the_clients_warnings_go_to_the_log(server: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.faults = [Fault("busy", path="/lfs/", times=1)]
    with run_log(str(tmp_path)):
        assert files.read(f"{DATA}/a.bin") == BODY
    line = next(line for line in (tmp_path / "run.log").read_text().splitlines() if "503" in line)
    assert "WARNING huggingface_hub" in line
    assert SIGNATURE not in line
    assert capfd.readouterr().err == ""


def refused(call: Callable[[], Any], server: Hub) -> str:
    """The line in which a call fails, after few requests."""
    server.seen.clear()
    files.filesystem(DATA)[0].invalidate_cache()
    with pytest.raises(UserError) as caught:
        call()
    assert len(server.seen) < 8, "no retries"
    message = str(caught.value)
    assert "\n" not in message
    assert TOKEN not in message
    return message


@pytest.mark.parametrize("token", [None, TOKEN, OTHER_TOKEN])
def test_a_repository_that_is_missing_or_private_is_an_error(
    token: str | None, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    uri = "hf://datasets/anna/other"
    if token == OTHER_TOKEN:
        server.repositories["anna/other"] = Repository({"main": {"a.tar": b"1"}}, private=True)
    for call in (
        lambda: files.read(f"{uri}/a.tar"),
        lambda: files.exists(f"{uri}/a.tar"),
        lambda: files.names(uri),
        lambda: source_of(uri, tmp_path),
        lambda: source_of(f"{uri}/{{0..20}}.tar", tmp_path),
        lambda: source_of(f"{uri}/*/*.tar", tmp_path),
        lambda: open_set(uri, needs_classes=True),
    ):
        message = refused(call, server)
        assert message.startswith(f"cannot read {uri}")
        assert f"no such repository, or it is private; expected {hub.FORM}" in message
        assert "HF_TOKEN on every node" in message


@pytest.mark.parametrize("token", [None, OTHER_TOKEN])
def test_a_gated_dataset_can_be_listed_and_not_read(
    token: str | None, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["anna/data"].gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert files.names(DATA) == ["a.bin", "small.txt"]
    for call in (lambda: files.read(f"{DATA}/a.bin"), lambda: list(read_spans(f"{DATA}/a.bin", [(0, 5)]))):
        message = refused(call, server)
        assert message.startswith(
            f"cannot read {DATA}/a.bin: the repository is gated; accept its conditions on its page"
        )
        assert "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert files.read(f"{DATA}/a.bin") == BODY


def test_a_wrong_token_revision_or_address_is_an_error(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(lambda: source_of(f"{DATA}@none/*.tar", tmp_path), server)
    assert "cannot read hf://datasets/anna/data@none: no such revision; expected a branch, a tag or a commit" in message
    for uri in ("hf://datasets/data", "hf://datasets", "hf://datasets//data/a.tar", "hf://anna"):
        message = refused(lambda uri=uri: source_of(uri, tmp_path), server)
        assert message == f"{uri}: expected {hub.FORM}"
    assert "no such repository" in refused(lambda: source_of("hf://anna/data/a.tar", tmp_path), server)
    assert "OWNER/NAME" in refused(lambda: source_of("hf://datasets/anna/da ta/a.tar", tmp_path), server)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    message = refused(lambda: files.read(f"{DATA}/a.bin"), server)
    assert message == f"cannot read {DATA}/a.bin: the hub asks for a valid token; set HF_TOKEN on every node"


def test_offline_mode_is_an_error(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for call in (lambda: files.read(f"{DATA}/a.bin"), lambda: source_of(f"{DATA}/*.tar", tmp_path)):
        assert "HF_HUB_OFFLINE is set; unset it, or name a copy of the files" in refused(call, server)
    assert not server.seen


def test_the_hub_is_read_only(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for call in (
        lambda: files.write(f"{DATA}/b.bin", b"1"),
        lambda: files.put_file(str(tmp_path / "a"), f"{DATA}/b.bin"),
        lambda: files.remove(f"{DATA}/a.bin"),
    ):
        message = refused(call, server)
        assert message.startswith(f"cannot write to {DATA}/")
        assert message.endswith("hf:// is read-only; expected a folder or a bucket")
    for setting in ({"store": f"{DATA}/store"}, {"out": f"{DATA}/out"}, {"to": f"{DATA}/kept.parquet"}):
        (key, uri) = next(iter(setting.items()))
        with pytest.raises(ConfigError, match=f"^{key}: cannot write to {uri}: hf:// is read-only"):
            config_of({"format": "webdataset", "uri": DATA}, **{"store": tmp_path, **setting})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "uri", [f"hf://{TOKEN}@datasets/anna/data", f"hf://anna:{TOKEN}@datasets/a/b", f"{DATA}?token={TOKEN}"]
)
def test_a_token_in_a_uri_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.uri contains a password .* HF_TOKEN") as caught:
        config_of({"format": "webdataset", "uri": uri}, tmp_path)
    assert TOKEN not in str(caught.value)
    config_of({"format": "webdataset", "uri": f"{DATA}@v1/a.tar::{DATA}@refs/convert/parquet/b.tar"}, tmp_path)


@pytest.mark.parametrize(
    ("uri", "package", "extra"), [(DATA, "huggingface_hub", "hf"), ("s3://bucket/a.tar", "s3fs", "s3")]
)
def test_a_missing_package_is_an_error(uri: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub._file_system.cache_clear()
    # the classes that fsspec has loaded
    monkeypatch.delitem(import_module("fsspec.registry")._registry, uri.split(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"cannot open {uri}: .*{package}.*pip install 'clip-orchestrator\[{extra}\]'"):
        find_shards(uri, endings=[".tar"])
    with pytest.raises(UserError, match=r"cannot open nothing://a\.tar: Protocol not known: nothing"):
        find_shards("nothing://a.tar", endings=[".tar"])


def test_shards_are_found_by_folder_pattern_list_and_revision(server: Hub, tmp_path: Path) -> None:
    for folder in ("train", "val"):
        write_tars(tmp_path / "pool" / folder, make_pairs(20), num_shards=10)
    uri = server.add(tmp_path / "pool", "anna/tars")
    (tmp_path / "old" / "train").mkdir(parents=True)
    shutil.copy(tmp_path / "pool" / "train" / "00000.tar", tmp_path / "old" / "train")
    for revision in ("v1", "refs/convert/old"):
        server.add(tmp_path / "old", "anna/tars", revision=revision)

    def found(uri: str | list[str]) -> list[str]:
        return [shard.uri for shard in find_shards(uri, endings=[".tar"])]

    ten = [f"{uri}/train/{number:05d}.tar" for number in range(10)]
    assert found(f"{uri}/train") == found(f"{uri}/train/*.tar") == found(f"{uri}/train/{{00000..00009}}.tar") == ten
    assert found(f"{uri}/train/{{00000,00003}}.tar") == found([ten[3], ten[0]]) == [ten[0], ten[3]]
    assert found(f"{ten[1]}::{ten[2]}") == ten[1:3]
    assert len(found(f"{uri}/*/*.tar")) == len(found(f"{uri}/{{train,val}}/*")) == 20
    assert found(f"{uri}@v1/train") == [f"{uri}@v1/train/00000.tar"]
    assert found(f"{uri}@refs/convert/old/*/*.tar") == [f"{uri}@refs/convert/old/train/00000.tar"]
    for missing, expected in (
        (uri, f"no shards in {uri}.*its folder train has some: for all of its folders use {uri}/\\*/\\*"),
        (f"{uri}/train/99.tar", "no such path: hf://"),
        (f"{uri}/train/{{00000..00011}}.tar", "2 of the 12 files of .* are missing"),
        (f"{uri}/test/*.tar", "nothing matches"),
    ):
        with pytest.raises(ConfigError, match=expected):
            found(missing)
    server.faults = [fault := Fault("busy", path="/tree/", times=3)]
    assert len(found(f"{uri}/*/*.tar")) == 20
    assert fault.done == 3


def test_a_changed_file_changes_the_pool(server: Hub, tmp_path: Path) -> None:
    write_tars(tmp_path / "pool", make_pairs(8), num_shards=2)
    uri = server.add(tmp_path / "pool", "anna/tars")
    server.add(tmp_path / "pool", "anna/tars", revision="v1")
    before, pinned = source_of(uri, tmp_path).identity(), source_of(f"{uri}@v1", tmp_path).identity()
    main = server.repositories["anna/tars"].revisions["main"]
    main["README.md"] = b"another file"
    assert source_of(uri, tmp_path).identity() == before
    # of the same size
    main["00001.tar"] = main["00001.tar"].replace(b"number", b"letter")
    assert source_of(uri, tmp_path).identity() != before
    assert source_of(f"{uri}@v1", tmp_path).identity() == pinned


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_pool_on_the_hub_reads_as_on_disk(kind: str, server: Hub, tmp_path: Path) -> None:
    pool = (
        write_tars(tmp_path / "pool", make_pairs(30), num_shards=3)
        if kind == "webdataset"
        else write_datasets_parquet(tmp_path / "pool", 30, num_shards=3)
    )
    uri = server.add(Path(pool), "anna/pool", private=False)
    expected = everything(source_of(pool, tmp_path, kind))
    assert sum(len(images) for _, _, images in expected) == 30
    assert everything(source_of(uri, tmp_path, kind)) == expected
    server.faults = [fault := Fault("cut", path="/lfs/", every=3)]
    assert everything(source_of(uri, tmp_path, kind)) == expected
    assert fault.done
    # the first shard is cut whenever it is read
    source = source_of(uri, tmp_path, kind)
    part, first = source.parts()[0], Path(pool) / source.parts()[0].shard.name
    server.faults = [Fault("cut", path=f"/lfs/{digest(first)}")]
    assert source.catalog(part).broken


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_evaluation_set_on_the_hub(server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    write_zero_shot(folder)
    task = folder / "tasks" / "wds_one_test"
    (task / "test").mkdir(parents=True)
    shutil.copy(folder / "zs.tar", task / "test" / "0.tar")
    (task / "test" / "nshards.txt").write_text("1\n")
    shutil.copy(folder / "zs.classnames.txt", task / "classnames.txt")
    (task / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\n")
    uri = server.add(folder, "anna/sets")
    local, remote = (open_set(f"{place}/zs.tar", needs_classes=True) for place in (folder, uri))
    assert remote.class_names == local.class_names
    assert len(remote.class_names) == 8
    assert remote.shard_uris == (f"{uri}/zs.tar",)
    settings = EvaluationConfig.model_validate({"root": f"{uri}/tasks", "tasks": {"one": {"name": "One"}}})
    found = open_tasks(settings)
    assert [one.test.templates for one in found.found] == [("a photo of a {c}",)]
    assert not found.skipped
    # clip_benchmark has a dataset for each task
    server.add(task, "bench/wds_one")
    settings = EvaluationConfig.model_validate({"root": "hf://datasets/bench", "tasks": {"one": {"name": "One"}}})
    assert [one.test.shard_uris for one in open_tasks(settings).found] == [("hf://datasets/bench/wds_one/test/0.tar",)]
    settings = EvaluationConfig.model_validate({"root": "hf://datasets/nobody", "tasks": {"one": {"name": "One"}}})
    with pytest.raises(UserError, match="none of the 1 tasks can be measured; one: not there"):
        open_tasks(settings)
    main = server.repositories["anna/sets"].revisions["main"]
    main["zs.classnames.txt"] = main["zs.classnames.txt"].replace(b"square", b"circle")
    assert open_set(f"{uri}/zs.tar", needs_classes=True).identity != remote.identity


@pytest.mark.slow
def test_commands_read_a_private_dataset_and_write_no_token(
    run_process: Shell, forked_workers: dict[str, str], tiny_conf: str, server: Hub, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    write_datasets_parquet(tmp_path / "data" / "data", 64, num_shards=2)
    write_zero_shot(tmp_path / "data")
    uri = server.add(tmp_path / "data", "anna/pool", revision="v1", private=True)
    command = (
        f"python -m orchestrator run {tiny_conf} source=parquet 'source.uri={uri}@v1/data/*.parquet' "
        f"evaluation.zero_shot.uri={uri}@v1/zs.tar out=OUT store=STORE"
    )
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), **forked_workers}
    done = run_process(command, cwd=work, env=env)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1
    assert "no such repository, or it is private" in done.stderr
    server.faults = [fault := Fault("busy", path="/resolve/", every=5)]
    done = run_process(command, cwd=work, env={**env, "HF_TOKEN": TOKEN})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert fault.done
    assert "HTTP Error 503" in (work / "OUT" / "run.log").read_text()
    report = json.loads((work / "OUT" / "report.json").read_text())
    assert report["funnel"][0]["pairs"] == 64
    written = [path for path in work.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in done.stdout
    assert {one.token for one in server.seen if one.path.startswith("/lfs")} == {None}
