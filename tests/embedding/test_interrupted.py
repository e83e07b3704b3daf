"""An embedding stage that is killed, or loses a process, in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.parts import done_summaries
from tests.support.embedding_bench import (
    ROUNDING,
    Bench,
    clip_settings,
    one_by_one,
    times,
    whole,
)
from tests.support.pools import (
    make_pairs,
    write_tars,
)
from tests.support.processes import kill, started, wait_for

DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from orchestrator.engine import ray_cluster
from orchestrator.config import ClusterConfig
from tests.support.embedding_bench import Bench, clip_settings

ray_cluster.connect(ClusterConfig(num_cpus=4))
settings = clip_settings({clip!r}, batch_size=2)
Bench.of({{"format": "webdataset", "uri": {uri!r}}}, Path({folder!r}), clip=settings).build()
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_embedding_continues(clip_folder: str, tmp_path: Path, ray_cluster: str) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(240), num_shards=24)
    tests = str(Path(__file__).parents[2])
    script = tmp_path / "embed.py"
    script.write_text(DRIVER.format(tests=tests, clip=clip_folder, uri=uri, folder=str(tmp_path)))
    with started(f"{sys.executable} {script}", tmp_path) as process:
        wait_for(lambda: len(list((tmp_path / "store" / "embedding").glob("*/parts/*.json"))) >= 5, process)
        kill(process)
    bench = Bench.of({"format": "webdataset", "uri": uri}, tmp_path, clip=clip_settings(clip_folder, batch_size=2))
    artifact = bench.stage().artifact
    assert not artifact.is_complete(), "killed in the middle"
    marks = [f"{index:06d}" for index in done_summaries(artifact)]
    before = {path: at for path, at in times(Embedding(artifact)).items() if path.name.split(".")[0] in marks}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = times(Embedding(artifact))
    assert 5 * 4 <= len(before) < len(after)
    assert {path: after[path] for path in before} == before, "what was whole was not done again"
    expected = one_by_one(bench.config.embedding["clip"], make_pairs(240))
    np.testing.assert_allclose(whole(Embedding(artifact), "image"), expected["image"], atol=ROUNDING)


def writers() -> list[psutil.Process]:
    """This session's processes that write parts: Ray names them by what they run."""
    return [one for one in psutil.Process().children(recursive=True) if "Writer" in " ".join(one.cmdline())]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_writer_that_dies_costs_only_its_open_parts(clip_folder: str, tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(400), num_shards=10)
    bench = Bench.of({"format": "webdataset", "uri": uri}, tmp_path, clip=clip_settings(clip_folder, batch_size=3))
    artifact, killed = bench.stage().artifact, list[int]()

    def kill_the_writer() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not killed:
            if len(done_summaries(artifact)) >= 2:
                for process in writers():
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill_the_writer)
    thread.start()
    embedding = bench.build()
    thread.join()
    assert len(killed) == 1
    expected = one_by_one(bench.config.embedding["clip"], make_pairs(400))
    np.testing.assert_allclose(whole(embedding, "text"), expected["text"], atol=ROUNDING)
    assert [part["rows"] for part in artifact.parts] == [40] * 10
