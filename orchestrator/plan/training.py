"""Training in a probe: a few steps of each phase, their pace once they are warm, and what goes with it: how fast
pictures are decoded for it, and how fast the model looks at those that it is evaluated on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.config import Config
from orchestrator.data.catalog import Catalog
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.stage import Stage
from orchestrator.plan import probe_config
from orchestrator.plan.decode_rates import decode_seconds, forward
from orchestrator.plan.measurements import Probe, Trained
from orchestrator.source import Source
from orchestrator.storage import files

WARM_UP_SHARE = 0.25


@dataclass(frozen=True)
class Pictured:
    """A cut-down config, and the pairs that it trains on."""

    config: Config
    source: Source
    catalog: Catalog


def measure_phases(
    few: Pictured, phases: Sequence[Stage], whole: Config, probed: Probe, display: Display
) -> Iterator[str]:
    """Trains the phases of a cut-down config and measures them for those of the whole one; gives each one's name."""
    alike: dict[float, Trained] = {}
    config = few.config
    for stage, phase in zip(phases, (config.training, config.finetune), strict=False):
        # but for the patches that are left out, the steps of both phases are the same
        if phase.patch_dropout not in alike:
            stage.build(display)
            full_share = probe_config.share_of_batch(whole, probed.num_workers)
            seconds = decode_seconds(config, few.source, few.catalog, stage.artifact.path("model"))
            alike[phase.patch_dropout] = _trained(stage.artifact, config, full_share, seconds)
        probed.phases[stage.name] = alike[phase.patch_dropout]
        yield stage.name
    if probed.sets:
        probed.forward = forward(phases[0].artifact.path("model"), probed.phases[phases[0].name].decode_seconds)
        yield "evaluate"


def _trained(artifact: Artifact, config: Config, full_share: int, decode_seconds: float) -> Trained:
    lines = [json.loads(line) for line in files.read(artifact.path("metrics.jsonl")).splitlines()]
    warm = lines[int(len(lines) * WARM_UP_SHARE) :]
    num_workers = artifact.totals["num_workers"]
    gpu_bytes = max(line.get("gpu_memory_bytes", 0) for line in lines)
    # seconds for each sample of a step, and of them those of waiting
    seconds = [1 / line["samples_per_second"] for line in warm]
    waits = [each * line["data_wait_share"] for each, line in zip(seconds, warm, strict=True)]
    # on CPUs decoding and computing share the cores: what is waited for is part of the pace
    spent = sum(seconds) - (sum(waits) if gpu_bytes else 0.0)
    return Trained(
        samples_per_second=len(warm) / spent,
        num_workers=num_workers,
        batch_share=probe_config.share_of_batch(config, num_workers),
        full_share=full_share,
        peak_bytes=max(line["memory_bytes"] for line in lines),
        gpu_bytes=gpu_bytes,
        num_bytes=files.num_bytes(artifact.path("model")),
        wait_share=sum(waits) / sum(seconds),
        decode_seconds=decode_seconds,
    )
