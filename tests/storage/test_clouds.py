"""The stores of Google and Azure through their own clients. `test_retry.py` has the same checks for S3."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from orchestrator.engine import lease
from orchestrator.storage import files, retry
from orchestrator.storage.retry import CutOff, StoreError
from tests.support import clouds
from tests.support.commands import Shell
from tests.support.pools import make_pairs, write_tars

BIG = bytes(range(256)) * 80_000
CLOUDS: dict[str, Callable[[], AbstractContextManager[dict[str, str]]]] = {"gs": clouds.gcs, "az": clouds.azure}


@pytest.fixture(scope="module", params=list(CLOUDS))
def cloud(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket on a server on this machine, and the environment variables for its clients."""
    protocol: str = request.param
    if protocol == "az" and clouds.azurite() is None:
        pytest.skip("no Azurite")
    with CLOUDS[protocol]() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fs = fsspec.filesystem(protocol, skip_instance_cache=True)
        fs.clear_instance_cache()
        if protocol == "az":
            fs.mkdir(clouds.BUCKET)
        yield f"{protocol}://{clouds.BUCKET}", variables
        fs.clear_instance_cache()


@pytest.fixture
def bucket(cloud: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in the bucket, for one test."""
    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.01)
    return f"{cloud[0]}/{tmp_path.name}"


def test_a_written_file_is_read_in_one_piece_and_in_spans(bucket: str) -> None:
    files.write(f"{bucket}/a/small", BIG[:1000])
    files.write(f"{bucket}/a/b/big", BIG)
    assert files.read(f"{bucket}/a/small") == BIG[:1000]
    assert files.read(f"{bucket}/a/b/big") == BIG
    spans = [(5, 100), (0, 10), (3_000_000, 5_000_000)]
    expected = [BIG[offset : offset + size] for offset, size in spans]
    assert list(files.read_spans(f"{bucket}/a/b/big", spans)) == expected
    with files.open_file(f"{bucket}/a/b/big", read_ahead=1000) as file:
        file.seek(1_000_000)
        assert file.read(5000) == BIG[1_000_000:1_005_000]
    files.write(f"{bucket}/a/small", b"another")
    assert files.read(f"{bucket}/a/small") == b"another"
    with pytest.raises(CutOff, match="got 2 of 9 bytes at 5"):
        list(files.read_spans(f"{bucket}/a/small", [(5, 9)]))


def test_folders_are_listed_copied_and_removed(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(BIG)
    files.put_file(str(tmp_path / "big"), f"{bucket}/a/b/big")
    files.write(f"{bucket}/a/small", b"123")
    assert files.names(f"{bucket}/a") == ["b", "small"]
    assert files.num_bytes(f"{bucket}/a") == len(BIG) + 3
    files.copy(f"{bucket}/a", f"{bucket}/c")
    files.get_file(f"{bucket}/c/b/big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == BIG
    files.remove(f"{bucket}/a")
    assert [files.exists(f"{bucket}/{name}") for name in ("a", "a/small", "c", "c/small")] == [False, False, True, True]
    files.remove(f"{bucket}/a")


def test_a_missing_file_or_bucket_fails_without_retries(bucket: str) -> None:
    protocol = bucket.split(":")[0]
    for uri in (f"{bucket}/none", f"{protocol}://elsewhere/none"):
        assert not files.exists(uri)
        assert files.names(uri) == []
        with pytest.raises(FileNotFoundError, match="no such file or bucket"):
            files.read(uri)
    with pytest.raises(StoreError, match=f"cannot write {protocol}://elsewhere/a: no such file or bucket; expected"):
        files.write(f"{protocol}://elsewhere/a", b"1")


def test_a_lease_is_created_once(bucket: str) -> None:
    found = [lease._created(f"{bucket}/lease.json", owner) for owner in (b"one", b"other")]
    assert found == [True, False]
    assert files.read(f"{bucket}/lease.json") == b"one"


def test_a_refused_key_fails_without_retries(
    cloud: tuple[str, dict[str, str]], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not bucket.startswith("az"):
        pytest.skip("the emulator of Google's store does not check credentials")
    files.write(f"{bucket}/a", b"1")
    variable = "AZURE_STORAGE_CONNECTION_STRING"
    with monkeypatch.context() as patch:
        patch.setenv(variable, os.environ[variable].replace(clouds.KEY, clouds.KEY.swapcase()))
        fsspec.filesystem("az").clear_instance_cache()
        calls: list[Callable[[], Any]] = [
            lambda: files.read(f"{bucket}/a"),
            lambda: files.write(f"{bucket}/a", b"2"),
            lambda: files.names(bucket),
            lambda: files.exists(f"{bucket}/a"),
        ]
        for call in calls:
            with pytest.raises(
                StoreError, match=r"^not allowed to (read|write) az://\S+: HttpResponseError: .*"
            ) as caught:
                call()
            assert "expected valid credentials" in str(caught.value)
            assert "RequestId" not in str(caught.value)
            assert "\n" not in str(caught.value)
    fsspec.filesystem("az").clear_instance_cache()
    assert files.read(f"{bucket}/a") == b"1"


@pytest.mark.slow
def test_a_selection_runs_with_source_store_and_out_in_a_bucket(
    run_process: Shell,
    forked_workers: dict[str, str],
    cloud: tuple[str, dict[str, str]],
    bucket: str,
    tmp_path: Path,
) -> None:
    write_tars(tmp_path / "pool", make_pairs(60), num_shards=3)
    files.copy(str(tmp_path / "pool"), f"{bucket}/pool")
    command = (
        f"python -m orchestrator select +exp=wfpp 'source.uri=\"{bucket}/pool/{{00000..00002}}.tar\"' "
        f"selection.wfpp.min_count=2 selection.wfpp.keep_fraction=0.5 out={bucket}/OUT store={bucket}/STORE"
    )
    done = run_process(command, cwd=tmp_path, env={**cloud[1], **forked_workers})
    assert done.returncode == 0, done.stderr
    assert "report.html" in files.names(f"{bucket}/OUT")
    funnel = {row["name"]: row["pairs"] for row in files.read_json(f"{bucket}/OUT/report.json")["funnel"]}
    assert (funnel["source"], funnel["wfpp"]) == (60, 30)
    assert os.listdir(tmp_path) == ["pool"], "no local file was written instead of one in the bucket"
