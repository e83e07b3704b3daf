"""Training in a probe: a few steps of each phase, and their pace once they are warm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from orchestrator import store
from orchestrator.artifacts import Artifact
from orchestrator.config import Config
from orchestrator.plan import smaller
from orchestrator.plan.measured import Probe, Trained
from orchestrator.progress import Display
from orchestrator.stage import Stage

WARM_UP_SHARE = 0.25


def measure_phases(
    config: Config, phases: Sequence[Stage], whole: Config, probed: Probe, display: Display
) -> Iterator[str]:
    """Trains the phases of a cut-down config and measures them for those of the whole one; gives each one's name."""
    alike: dict[float, Trained] = {}
    for stage, phase in zip(phases, (config.training, config.finetune), strict=False):
        # but for the patches that are left out, the steps of both phases are the same
        if phase.patch_dropout not in alike:
            stage.build(display)
            full_share = smaller.share_of_batch(whole, probed.num_workers)
            alike[phase.patch_dropout] = _trained(stage.artifact, config, full_share)
        probed.phases[stage.name] = alike[phase.patch_dropout]
        yield stage.name


def _trained(artifact: Artifact, config: Config, full_share: int) -> Trained:
    lines = [json.loads(line) for line in store.read(artifact.path("metrics.jsonl")).splitlines()]
    warm = lines[int(len(lines) * WARM_UP_SHARE) :]
    num_workers = artifact.totals["num_workers"]
    return Trained(
        samples_per_second=len(warm) / sum(1 / line["samples_per_second"] for line in warm),
        num_workers=num_workers,
        batch_share=smaller.share_of_batch(config, num_workers),
        full_share=full_share,
        peak_bytes=max(line["memory_bytes"] for line in lines),
        gpu_bytes=max(line.get("gpu_memory_bytes", 0) for line in lines),
        num_bytes=store.num_bytes(artifact.path("model")),
    )
