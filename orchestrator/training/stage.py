"""Training as a stage: one phase (pre-training, or the fine-tune epoch) as a Ray Train run of DDP workers.

The artifact is the model folder that open_clip loads, the curve, and the checkpoints until it is done. What the workers
do is in `worker.py`; the order they see pairs in is a function (`stream.py`), so a phase that was killed goes on from
its last checkpoint with the very next global batch."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import Config, PhaseConfig
from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.role import Role
from orchestrator.engine.stage import PairFlow, Stage
from orchestrator.errors import Stopped, UserError
from orchestrator.evaluation.sets import evaluation_sets, measured_on, metrics
from orchestrator.source import Source
from orchestrator.storage import files
from orchestrator.training.job import Job
from orchestrator.training.phase_signals import start_ticker
from orchestrator.training.sample_order import Stream
from orchestrator.training.tracking import check_installed

VERSION = 2
# of no use once a phase is done
LEFT_BEHIND = ("checkpoints", "ray", "best")
# how many workers there are, how they compute and read and where they report: what that changes is rounding (and, for
# towers with batch norm or dropout, which of a batch's pairs share statistics and draws)
NOT_IN_FINGERPRINT = {
    "num_workers",
    "cpus_per_worker",
    "max_failures",
    "accumulation",
    "local_loss",
    "grad_checkpointing",
    "compile",
    "trim_captions",
    "parallel",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "evaluate_every_steps",
    "keep_model",
    "best_metric",
    "record_batches",
    "log_every_steps",
    "max_bad_pairs",
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What tells one phase from the other: its name, its length and speed, its pairs, the weights it starts from."""

    name: str
    config: PhaseConfig
    keep: Artifact
    start: Artifact | None


def training_stage(config: Config, phase: Phase, source: Source, catalog: Catalog) -> Stage:
    """The stage of a phase; nothing is computed before its `build`."""
    training = config.training
    check_evaluation(config)
    shared = training.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT | set(PhaseConfig.model_fields))
    if training.keep_model == "best":
        evaluated = measured_on(config.evaluation, evaluation_sets(config.evaluation))
        shared["best"] = [training.best_metric, training.evaluate_every_steps, evaluated]
        if config.model.pretrained or ":" in (config.model.name or ""):
            # before, the best was told by a bicubic centre crop, which published weights may not take
            shared["best"].append("own preprocessing")
    length = phase.config.model_dump(mode="json", include=set(PhaseConfig.model_fields) - {"epochs", "samples"})
    length |= {"samples": phase.config.samples} if phase.config.samples else {"epochs": phase.config.epochs}
    artifact = Artifact.of(
        config.store,
        phase.name,
        version=VERSION,
        catalog=catalog.artifact,
        keep=phase.keep,
        start=phase.start and phase.start.fingerprint,
        model=config.model.model_dump(mode="json"),
        shared=shared,
        length=length,
    )

    def build(display: Display) -> Artifact:
        return _train(config, phase, source, catalog, artifact, display)

    epochs = f"{phase.config.epochs} epoch{'s' if phase.config.epochs > 1 else ''}"
    how_long = f"{phase.config.samples:,} samples" if phase.config.samples else epochs
    what = config.model.name or "the configured model"
    return Stage(
        name=phase.name,
        role=Role(phase.name),
        does=f"train {what} for {how_long} at lr {phase.config.lr:g}, batches of {config.training.global_batch_size:,}",
        artifact=artifact,
        build=build,
        flow=PairFlow(epochs=phase.config.epochs, samples=phase.config.samples, on_whole_pool=phase.start is not None),
    )


def check_evaluation(config: Config) -> None:
    """Errors: `UserError` when there is nothing to evaluate on the way on, or the best model's metric is none of
    those."""
    training, known = config.training, metrics(config.evaluation)
    if training.evaluate_every_steps is None:
        return
    if not known:
        raise UserError(
            "training.evaluate_every_steps is set, but there is no set: give evaluation.retrieval.uri= or "
            "evaluation.zero_shot.uri="
        )
    if training.keep_model == "best" and training.best_metric not in known:
        raise UserError(f"training.best_metric={training.best_metric}: expected one of {', '.join(known)}")


def phase_stream(config: Config, phase: Phase) -> Stream:
    """The order of a phase. Errors: `UserError` when the pool keeps fewer pairs than a global batch."""
    training = config.training
    kept_per_part = KeepList(phase.keep).kept_per_part
    return Stream(
        kept_per_part=kept_per_part,
        num_samples=phase.config.samples or phase.config.epochs * sum(kept_per_part),
        global_batch_size=training.global_batch_size,
        num_lanes=training.lanes,
        window=training.window,
        seed=training.seed,
    )


def _train(
    config: Config, phase: Phase, source: Source, catalog: Catalog, artifact: Artifact, display: Display
) -> Artifact:
    # with it Ray Train and torch, which a plan can do without
    from orchestrator.training.driver import fit

    check_installed(config.tracking)
    num_workers = ray_cluster.num_train_workers(config.training.num_workers, lanes=config.training.lanes)
    job = Job(
        config=config,
        phase=phase.config,
        name=phase.name,
        artifact=artifact,
        start_uri=phase.start.path("model") if phase.start else None,
        source=source,
        parts=tuple(catalog.parts_of(source)),
        catalog=catalog,
        keep=KeepList(phase.keep),
        stream=phase_stream(config, phase),
        # a worker has another working folder: relative places are made absolute here
        sets=evaluation_sets(config.evaluation) if config.training.evaluate_every_steps else {},
        ticker=start_ticker(),
    )
    stop_asked = fit(job, num_workers, display)
    summary = files.read_json(artifact.path("summary.json"))
    artifact.publish(totals={**summary, "num_workers": num_workers}, parts=[], seconds=summary["seconds"])
    for name in LEFT_BEHIND:
        files.remove(artifact.path(name))
    if stop_asked:
        raise Stopped(f"{phase.name}: done, then stopped by SIGTERM; the same command goes on from there")
    return artifact
