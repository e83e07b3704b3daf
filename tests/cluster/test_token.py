"""A cluster with token authentication, and commands without its token. The head and the commands are real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import run_process
from tests.support.local_cluster import local_cluster
from tests.support.pools import write_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RIGHT, WRONG = "b" * 40, "a" * 40
MODE = {"RAY_AUTH_MODE": "token"}


def test_a_refused_token_is_one_line_that_says_what_to_set(tmp_path: Path) -> None:
    pool = write_table(tmp_path / "pool", ["a red square", "a blue circle", "two green dots", "a line"])
    home = {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    command = (
        f"python -m orchestrator select source=table source.uri={pool} selection.steps=[random] "
        "selection.random.keep_fraction=0.5 out=OUT store=STORE"
    )
    with local_cluster(tmp_path, nodes=1, env={"RAY_AUTH_TOKEN": RIGHT}) as cluster:
        address = {"RAY_ADDRESS": cluster.address, **home}
        for given, found in {
            (): "RAY_AUTH_MODE is not `token`. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or copy the token",
            tuple(MODE.items()): "this process has no token. Set RAY_AUTH_TOKEN, or copy the token",
            (*MODE.items(), ("RAY_AUTH_TOKEN", WRONG)): "the token of this process is another one. Set RAY_AUTH_TOKEN",
        }.items():
            refused = run_process(command, cwd=tmp_path, env={**address, **dict(given)}, timeout=60)
            assert refused.returncode == 2, refused.stderr
            (line,) = refused.stderr.strip().splitlines()
            assert f"the Ray cluster at {cluster.address} needs its authentication token: {found}" in line
        done = run_process(command, cwd=tmp_path, env={**address, **MODE, "RAY_AUTH_TOKEN": RIGHT})
        assert done.returncode == 0, done.stderr
