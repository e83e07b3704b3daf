"""Whole runs of the command line on the demo pool: prune, train, evaluate; killed and resumed; an embedding stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.clip import model
from tests.gpu.harness import Check, at_least, at_most, equal, figure
from tests.gpu.lab import Lab
from tests.gpu.models import TINY

# on a CPU, a few steps of a small model, without evaluation
TINY_RUN = (
    "training.samples=128", "training.global_batch_size=16", "training.window=16", "training.warmup_epochs=0",
    "evaluation.zero_shot.uri=null", "evaluation.retrieval.uri=null",
)  # fmt: skip
RUN = ("training.epochs=2", "training.warmup_epochs=0.2")
# the whole run, which the killed one must equal
WHOLE = "whole"


def demo(lab: Lab) -> Iterator[Check]:
    """The demo with random pruning trains and evaluates on the GPU."""
    start = time.monotonic()
    done = _run(lab, WHOLE, "selection.steps=[random]")
    yield equal("exit code", done.returncode, 0)
    yield figure("time", time.monotonic() - start, "s")
    yield from _trained(lab, WHOLE)
    records = _curve(lab, WHOLE)
    yield figure("rate of the last logged steps", records[-1]["samples_per_second"], "samples/s")
    yield figure("share of the time that waits for data", records[-1]["data_wait_share"])


def nvjpeg(lab: Lab) -> Iterator[Check]:
    """The demo with decoding in the training workers."""
    done = _run(lab, "nvjpeg", "selection.steps=[random]", "training.decode_in=workers")
    yield equal("exit code", done.returncode, 0)
    yield from _trained(lab, "nvjpeg")
    whole, other = (_summary(lab, name)["loss"] for name in (WHOLE, "nvjpeg"))
    yield at_most("loss, relative to that of decoding in tasks", abs(other / whole - 1), 0.1)


def killed(lab: Lab) -> Iterator[Check]:
    """A run that is killed after a checkpoint and started again ends with the loss of the whole run."""
    arguments = ("selection.steps=[random]",)
    process = subprocess.Popen(_command(lab, "killed", *arguments), start_new_session=True)
    while not (written := sorted(_folder(lab, "killed").glob("checkpoints/step_*.pt"))):
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with exit code {process.returncode} before its first checkpoint")
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    yield figure("killed after the checkpoint", written[-1].name)
    done = _run(lab, "killed", *arguments)
    yield equal("exit code of the second start", done.returncode, 0)
    resumed = [line for line in _log(lab, "killed").splitlines() if "resuming after step" in line]
    yield equal("starts that resume from a checkpoint", len(resumed), 1)
    whole, other = (_summary(lab, name)["loss"] for name in (WHOLE, "killed"))
    yield at_most("final loss, relative to the whole run's", abs(other / whole - 1), lab.size(0.02, 0.0))


def embedded(lab: Lab) -> Iterator[Check]:
    """An embedding stage computes the vectors of a pool with a model on the GPU, and a step selects by them."""
    folder = lab.scratch / "encoder"
    given: dict[str, Any] = {"name": None, "config": TINY} if lab.is_dry else {"name": "ViT-B-32", "config": None}
    model.save(model.build(**given, pretrained=None, image_size=None, context_length=None, seed=0), folder)
    start = time.monotonic()
    done = _run(
        lab, "embedded", f"embedding.clip.model={folder}", "embedding.clip.pretrained=null",
        "selection.steps=[clip_score]", "selection.clip_score.embedding=clip",
        "selection.clip_score.keep_fraction=0.5", verb="select",
    )  # fmt: skip
    yield equal("exit code", done.returncode, 0)
    yield figure("time", time.monotonic() - start, "s")
    manifests = list((lab.scratch / "embedded" / "store").glob("embedding*/*/manifest.json"))
    yield at_least("finished embeddings", len(manifests), 1)


def _run(lab: Lab, name: str, *arguments: str, verb: str = "run") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(_command(lab, name, *arguments, verb=verb), check=False)


def _command(lab: Lab, name: str, *arguments: str, verb: str = "run") -> list[str]:
    folder = lab.scratch / name
    # each has its own store: an artifact of another run would be reused
    own = (f"out={folder / 'out'}", f"store={folder / 'store'}", "finetune.enabled=false")
    steps = ("training.checkpoint_every_steps=4", "training.log_every_steps=1", "training.num_workers=1")
    return [
        sys.executable, "-m", "orchestrator", verb, "+exp=demo", *own, *steps, *lab.size(RUN, TINY_RUN), *arguments,
    ]  # fmt: skip


def _folder(lab: Lab, name: str) -> Path:
    """Return the folder of a run's pre-training, or one that does not exist."""
    return next((lab.scratch / name / "store" / "pretrain").glob("*"), lab.scratch / "none")


def _summary(lab: Lab, name: str) -> dict[str, Any]:
    return json.loads((_folder(lab, name) / "summary.json").read_text())


def _curve(lab: Lab, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (_folder(lab, name) / "metrics.jsonl").read_text().splitlines()]


def _log(lab: Lab, name: str) -> str:
    return (lab.scratch / name / "out" / "run.log").read_text()


def _trained(lab: Lab, name: str) -> Iterator[Check]:
    records, summary = _curve(lab, name), _summary(lab, name)
    yield figure("precision", summary["precision"])
    on_gpu = any(record.get("gpu_memory_bytes", 0) > 0 for record in records)
    yield equal("trained on a GPU", str(on_gpu), str(not lab.is_dry))
    yield at_most("last loss / first loss", records[-1]["loss"] / records[0]["loss"], lab.size(0.9, 1.1))
