"""Call 1, without Ray: five minutes on a GPU, the most important sections first.

    python -m tests.gpu.without_ray --out runs/gpu/without_ray

It needs torch, torchvision, timm and open_clip, and writes `results.json` and `results.md` into the folder. With
`--dry-run` every section runs on the CPU with tiny sizes."""

from __future__ import annotations

import sys

from tests.gpu import clusters, encoders, environment, jpegs, memory, numerics, ranks, speed
from tests.gpu.command import run_call
from tests.gpu.harness import Section

# seconds: when a section is stopped. Together they are more than the call may take; the last ones may get no time
SECTIONS = (
    Section(name="environment", run=environment.environment, seconds=30),
    Section(name="numerics", run=numerics.against_cpu, seconds=45),
    Section(name="jpeg_race", run=jpegs.race, seconds=30),
    Section(name="no_waits", run=numerics.no_waits, seconds=25),
    Section(name="loader", run=jpegs.loader, seconds=25),
    Section(name="b32", run=speed.b32, seconds=60),
    Section(name="two_processes", run=ranks.two_processes, seconds=60),
    Section(name="resume", run=numerics.resume, seconds=30),
    Section(name="shares", run=ranks.shares, seconds=20),
    Section(name="b32_short", run=speed.b32_short, seconds=25),
    Section(name="b16", run=speed.b16, seconds=25),
    Section(name="memory", run=memory.memory, seconds=30),
    Section(name="b32_large", run=speed.b32_large, seconds=25),
    Section(name="encoders", run=encoders.encoders, seconds=30),
    Section(name="one_rank", run=ranks.one_rank, seconds=25),
    Section(name="jpeg_speed", run=jpegs.speed, seconds=15),
    Section(name="compiled", run=speed.compiled, seconds=75),
    Section(name="tf32", run=speed.tf32, seconds=20),
    Section(name="clusters", run=clusters.clusters, seconds=30),
)

if __name__ == "__main__":
    sys.exit(run_call("GPU, without Ray", SECTIONS, seconds=290))
