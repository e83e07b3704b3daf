"""Two runs that need the same artifact: one computes it and the other waits, or takes over if the first one ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine import lease
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.lease_holder import Holder
from orchestrator.errors import UserError
from orchestrator.storage import files

# a process that waits for the start signal, logs what it does, and computes for the given seconds, and at least until
# the other processes have seen its lease
RUN = """
import sys, time
from pathlib import Path
from orchestrator.engine import lease
from orchestrator.engine.artifact import Artifact

store_uri, log, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
artifact = Artifact.of(store_uri, "numbers", version=1)

def say(line):
    with log.open("a") as file:
        file.write(line + "\\n")

say("ready")
while log.read_text().count("ready") < int(sys.argv[4]):
    time.sleep(0.005)
with lease.held(artifact, name="numbers", show=say, poll_seconds=0.05) as mine:
    say("computes" if mine else "reuses")
    if mine:
        while log.read_text().count("waiting for another run") < int(sys.argv[4]) - 1:
            time.sleep(0.05)
        time.sleep(seconds)
        artifact.publish(totals={}, parts=[], seconds=seconds)
"""


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_bucket")


@pytest.fixture
def artifact(store: str) -> Artifact:
    return Artifact.of(store, "numbers", version=1)


class Shown(list[str]):
    """The lines that the user sees."""

    def hold(self, artifact: Artifact, **how: Any) -> Any:
        return lease.held(artifact, name="numbers", show=self.append, **{"poll_seconds": 0.02, **how})


def start(store: str, log: Path, *, seconds: float = 0.5, together: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RUN, store, str(log), str(seconds), str(together)])


def wait_until_computing(log: Path) -> None:
    end = time.monotonic() + 60
    while not log.exists() or "computes" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def elsewhere(artifact: Artifact, *, expiry_seconds: float) -> Holder:
    """A process of another host holds the artifact."""
    here = Holder.here(expiry_seconds)
    there = Holder(
        owner="other", host="far", machine="far", pid=here.pid, process_start="1", expiry_seconds=expiry_seconds
    )
    files.write(artifact.path(lease.FILE), there.lease())
    return there


def test_one_of_several_runs_computes(store: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    runs = [start(store, log, together=3) for _ in range(3)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    lines = log.read_text().splitlines()
    assert (lines.count("computes"), lines.count("reuses")) == (1, 2)
    pids = [run.pid for run in runs]
    waiting = [line for line in lines if "waiting for another run" in line]
    assert len(waiting) == 2, "each waiting run prints one line"
    assert any(f"pid {pid})" in waiting[0] for pid in pids)
    assert not files.exists(files.join(Artifact.of(store, "numbers", version=1).uri, lease.FILE))


def test_a_lease_is_created_once(store: str) -> None:
    def create(uri: str) -> bool:
        together.wait()
        return lease._created(uri, b"a lease")

    together = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            uri = files.join(store, f"{number}", lease.FILE)
            assert sum(threads.map(create, [uri] * 8)) == 1


@pytest.mark.parametrize("is_reaped", [True, False])
def test_the_lease_of_a_killed_process_on_this_host_is_taken_over_at_once(
    artifact: Artifact, store: str, tmp_path: Path, is_reaped: bool
) -> None:
    log, shown = tmp_path / "log", Shown()
    run = start(store, log, seconds=600)
    wait_until_computing(log)
    run.kill()
    if is_reaped:
        run.wait()
    else:
        os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)
    began = time.monotonic()
    with shown.hold(artifact) as mine:
        assert mine
    assert time.monotonic() - began < 5
    who = f"host {Holder.here(1).host}, pid {run.pid}"
    assert shown == [f"numbers: the run that computed it ({who}) has ended; taking over its lease"]
    run.wait()


def test_a_later_process_with_the_same_pid_is_another(artifact: Artifact) -> None:
    here = Holder.here(60.0)
    assert not here.is_gone()
    before = Holder(**{**vars(here), "process_start": "1"})
    assert before.is_gone()
    files.write(artifact.path(lease.FILE), before.lease())
    with Shown().hold(artifact) as mine:
        assert mine


def test_a_process_hidden_in_proc_counts_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        holder = Holder(**{**vars(Holder.here(60.0)), "pid": other.pid})
        read = Path.read_text

        def hiding(path: Path) -> str:
            # as on a machine whose /proc is mounted with hidepid=2
            if str(path).startswith(f"/proc/{other.pid}/"):
                raise FileNotFoundError(path)
            return read(path)

        def forbidden(pid: int, number: int) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "read_text", hiding)
        assert not holder.is_gone()
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", forbidden)
            assert not holder.is_gone(), "a process of another user"
    assert holder.is_gone()


def test_the_lease_of_another_host_expires(artifact: Artifact) -> None:
    elsewhere(artifact, expiry_seconds=0.5)
    shown, began = Shown(), time.monotonic()
    with shown.hold(artifact) as mine:
        assert mine
    assert time.monotonic() - began >= 0.5
    assert shown == [
        f"numbers: waiting for another run (host far, pid {os.getpid()}) that computes it",
        f"numbers: the run that computed it (host far, pid {os.getpid()}) has ended; taking over its lease",
    ]


def test_a_renewed_lease_of_another_host_is_waited_for(artifact: Artifact) -> None:
    there, ended = elsewhere(artifact, expiry_seconds=1.0), threading.Event()

    def compute() -> None:
        while not ended.wait(0.1):
            files.write(artifact.path(lease.FILE), there.lease())

    computing = threading.Thread(target=compute)
    computing.start()
    threading.Timer(2.5, ended.set).start()
    # the artifact becomes complete after the last renewal
    threading.Timer(2.7, lambda: artifact.publish(totals={}, parts=[], seconds=1.0)).start()
    shown = Shown()
    with shown.hold(artifact) as mine:
        assert not mine
    computing.join()
    assert len(shown) == 1


def test_an_incomplete_lease_file_expires(artifact: Artifact) -> None:
    files.write(artifact.path(lease.FILE), b'{"owner": ')
    with Shown().hold(artifact, expiry_seconds=0.3) as mine:
        assert mine


def test_a_lease_is_renewed_during_the_computation(artifact: Artifact) -> None:
    with Shown().hold(artifact, expiry_seconds=0.3):
        leases = []
        for _ in range(6):
            leases.append(files.read(artifact.path(lease.FILE)))
            time.sleep(0.15)
    assert len(set(leases)) > 2
    assert len({Holder.of(one) for one in leases}) == 1


def test_an_error_releases_the_lease(artifact: Artifact) -> None:
    with pytest.raises(RuntimeError, match="the build's"), Shown().hold(artifact):
        raise RuntimeError("the build's")
    assert not files.exists(artifact.path(lease.FILE))
    with Shown().hold(artifact) as mine:
        assert mine


def test_a_complete_artifact_needs_no_lease(artifact: Artifact) -> None:
    artifact.publish(totals={}, parts=[], seconds=0.0)
    found = files.names(artifact.uri)
    with Shown().hold(artifact) as mine:
        assert not mine
        assert files.names(artifact.uri) == found


def test_a_failing_renewal_is_reported_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, shown = Artifact.of(str(tmp_path), "numbers", version=1), Shown()

    def fail(uri: str, data: bytes) -> None:
        raise RuntimeError("no store")

    with shown.hold(artifact, expiry_seconds=0.1) as mine:
        assert mine
        monkeypatch.setattr(files, "write", fail)
        time.sleep(0.3)
    (line,) = shown
    assert "cannot renew" in line
    assert line.endswith("no store")


def test_a_run_that_lost_its_lease_stops_and_keeps_the_other_lease(artifact: Artifact) -> None:
    shown, stops = Shown(), list[str]()

    def lose() -> None:
        with shown.hold(artifact, expiry_seconds=3.0, on_lost=lambda: stops.append("lost")):
            elsewhere(artifact, expiry_seconds=60.0)
            time.sleep(0.8)

    with pytest.raises(UserError, match=r"another run \(host far, .*took over.*run the same command again to wait"):
        lose()
    assert stops == ["lost"]
    assert shown[0].endswith("stopping")
    found = Holder.of(files.read(artifact.path(lease.FILE)))
    assert found is not None
    assert found.owner == "other"


def test_a_removed_lease_is_created_again(artifact: Artifact) -> None:
    with Shown().hold(artifact, expiry_seconds=0.2):
        files.remove(artifact.path(lease.FILE))
        time.sleep(0.2)
        assert files.exists(artifact.path(lease.FILE))


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_an_error_leaves_the_store_folder(artifact: Artifact, store: str) -> None:
    Path(store).mkdir()
    with pytest.raises(RuntimeError), Shown().hold(artifact):
        raise RuntimeError
    assert list(Path(store).iterdir()) == []


def test_a_store_that_cannot_create_exclusively(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(files, "is_local", lambda uri: False)
    monkeypatch.setattr(lease, "_created_there", lambda uri, data: None)
    artifact, together, held = Artifact.of(store, "numbers", version=1), threading.Barrier(4), list[bool]()

    def run(_: int) -> None:
        together.wait()
        with Shown().hold(artifact) as mine:
            held.append(mine)
            if mine:
                time.sleep(0.3)
                artifact.publish(totals={}, parts=[], seconds=0.3)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
    assert sorted(held) == [False, False, False, True]


def test_an_unwritable_store_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    artifact = Artifact.of(str(tmp_path / "store"), "numbers", version=1)
    with pytest.raises(files.StoreError, match="cannot write"), Shown().hold(artifact):
        pass
