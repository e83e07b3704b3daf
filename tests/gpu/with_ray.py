"""Call 2, with Ray: four minutes on a GPU, the most important sections first.

    python -m tests.gpu.with_ray --out runs/gpu/with_ray

It needs all of the orchestrator's dependencies but faiss, and writes `results.json` and `results.md` into the folder.
With `--dry-run` every section runs on the CPU with tiny sizes."""

from __future__ import annotations

import os
import sys

from tests.gpu import environment, placement, ray_head, runs
from tests.gpu.command import run_call
from tests.gpu.harness import Section

# seconds: when a section is stopped. `killed` and `nvjpeg` compare with the run of `demo`
SECTIONS = (
    Section(name="environment", run=environment.environment, seconds=30),
    Section(name="hidden", run=placement.hidden, seconds=40),
    Section(name="trainer", run=placement.trainer, seconds=60),
    Section(name="demo", run=runs.demo, seconds=80),
    Section(name="killed", run=runs.killed, seconds=80),
    Section(name="embedded", run=runs.embedded, seconds=60),
    Section(name="nvjpeg", run=runs.nvjpeg, seconds=60),
)


def main() -> int:
    """Run the sections on one cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ray_head.cluster(max(6, os.cpu_count() or 1)) as address:
        # Ray made a token for the cluster that it started; other processes use it only with this mode
        os.environ |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
        return run_call("GPU, with Ray", SECTIONS, seconds=225)


if __name__ == "__main__":
    sys.exit(main())
