"""Two users of one machine who share a store: each reuses and resumes the work of the other if permissions allow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# numbers are enough: the users and the group need no entry in /etc/passwd or /etc/group
USERS, GROUP = {"ann": 60001, "ben": 60002}, 60000
SHARED, OWN = 0o002, 0o022
NUM_PARTS = 3
# a stage of a run: parts, then the manifest. It may be killed after its first part, or write a lease of another host.
# It changes its user after the imports, because only root may be able to read the interpreter
STAGE = """
import os, signal, sys
from orchestrator.engine import lease
from orchestrator.storage import files
from orchestrator.engine.artifact import Artifact
from orchestrator.errors import UserError, one_line
from orchestrator.engine.parts import done_summaries, part_path

store, does, user, group, umask = sys.argv[1:3] + [int(number) for number in sys.argv[3:]]
os.umask(umask)
os.setgroups([group])
os.setgid(user)
os.setuid(user)
artifact = Artifact.of(store, "numbers", version=1)
if does == "is far away":
    here = vars(lease.Holder.here(0.5)) | {"owner": "other", "host": "far", "machine": "far"}
    files.write(artifact.path(lease.FILE), lease.Holder(**here).lease())
    sys.exit()
try:
    with lease.held(artifact, name="numbers", show=print, poll_seconds=0.05) as mine:
        if not mine:
            print("reuses", artifact.totals["rows"])
            sys.exit()
        done = done_summaries(artifact)
        for index in sorted({*range(NUM_PARTS)} - {*done}):
            print("computes", index, flush=True)
            files.write(part_path(artifact, index, "txt"), b"rows")
            files.write_json(part_path(artifact, index, "json"), {"index": index, "rows": 10})
            if does == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
        artifact.publish(totals={"rows": 10 * NUM_PARTS}, parts=[], seconds=1.0)
except UserError as error:
    sys.exit(one_line(error))
""".replace("NUM_PARTS", str(NUM_PARTS))


@pytest.fixture
def shared() -> Iterator[Path]:
    """A store whose files belong to the common group. (Other users cannot enter the temporary folders of pytest.)"""
    if os.geteuid():
        pytest.skip("only root can run processes as other users")
    folder = Path(tempfile.mkdtemp(prefix="users-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "STORE").mkdir()
    os.chown(folder / "STORE", 0, GROUP)
    (folder / "STORE").chmod(0o2775)
    yield folder / "STORE"
    shutil.rmtree(folder)


def run(name: str, store: Path, does: str = "", *, umask: int = SHARED) -> subprocess.CompletedProcess[str]:
    identity = [str(number) for number in (USERS[name], GROUP, umask)]
    return subprocess.run(
        [sys.executable, "-c", STAGE, str(store), does, *identity],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_user_reuses_an_artifact_of_the_other(shared: Path) -> None:
    assert lines(run("ann", shared)) == ["computes 0", "computes 1", "computes 2"]
    assert lines(run("ben", shared)) == ["reuses 30"]
    made = list(shared.rglob("*"))
    assert {path.stat().st_uid for path in made} == {USERS["ann"]}
    assert {path.stat().st_gid for path in made} == {GROUP}
    assert {oct(path.stat().st_mode & 0o7777) for path in made} == {"0o2775", "0o664"}


def test_a_user_resumes_a_stage_of_the_other(shared: Path) -> None:
    assert run("ann", shared, "is killed").returncode < 0
    taken, *computed = lines(run("ben", shared))
    assert taken.endswith("has ended; taking over its lease")
    assert computed == ["computes 1", "computes 2"]
    assert lines(run("ann", shared)) == ["reuses 30"]
    assert not list(shared.rglob("lease.json"))


def test_a_user_takes_over_an_expired_lease_of_the_other(shared: Path) -> None:
    lines(run("ann", shared, "is far away"))
    waits, taken, *computed = lines(run("ben", shared))
    assert "another run (host far" in waits
    assert taken.endswith("has ended; taking over its lease")
    assert computed == ["computes 0", "computes 1", "computes 2"]


def test_files_without_group_permission_can_be_reused_but_not_resumed(shared: Path) -> None:
    assert run("ann", shared, "is killed", umask=OWN).returncode < 0
    refused(run("ben", shared), "cannot remove", "lease.json", shared)
    (lease,) = shared.rglob("lease.json")
    lease.unlink()
    refused(run("ben", shared), "cannot write", "lease.json", shared)
    lines(run("ann", shared, umask=OWN))
    assert lines(run("ben", shared)) == ["reuses 30"]


def test_a_private_store_is_an_error_for_others(shared: Path) -> None:
    shared.chmod(0o755)
    refused(run("ben", shared), "cannot write", "lease.json", shared)
    shared.chmod(0o2775)
    lines(run("ann", shared, umask=0o077))
    refused(run("ben", shared), "cannot write", "lease.json", shared)


def refused(done: subprocess.CompletedProcess[str], doing: str, name: str, store: Path) -> None:
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{doing} {store}/numbers/")
    assert f"{name}: Permission denied; expected a folder or bucket that this user may write" in line
    assert "umask 002" in line
