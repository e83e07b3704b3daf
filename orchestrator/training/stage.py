"""The training stage: one phase (pre-training or fine-tuning) as a Ray Train run of DDP workers.

The artifact has the model folder that open_clip loads, the curve, and, until the phase is done, the checkpoints.
`worker.py` has the work of the workers. The order of the pairs is a function (`sample_order.py`), so a killed phase
resumes from its last checkpoint with exactly the next global batch."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import Config, PhaseConfig
from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine import ray_cluster, stop_signals
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json
from orchestrator.engine.console import Display
from orchestrator.engine.role import Role
from orchestrator.engine.stage import PairFlow, Stage
from orchestrator.errors import Stopped, UserError
from orchestrator.evaluation.sets import evaluation_sets, measured_on, metrics
from orchestrator.source import Source
from orchestrator.storage import files
from orchestrator.training.job import Job
from orchestrator.training.phase_signals import start_signals
from orchestrator.training.sample_order import SampleOrder
from orchestrator.training.tracking.trackers import check_installed

VERSION = 2
# folders that a finished phase does not need
REMOVED_AT_END = ("checkpoints", "ray", "best")
# the number of workers, how they compute and read, and where they report. These settings change only rounding and, for
# towers with batch norm or dropout, which pairs of a batch share statistics and random numbers. What `auto` chooses for
# them is not part of it either: it is the same training on a device with another memory
NOT_IN_FINGERPRINT = {
    "num_workers",
    "cpus_per_worker",
    "max_failures",
    "accumulation",
    "local_loss",
    "loss_rows",
    "tf32",
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
    # only a value other than the default, see `training_stage`
    "resize_with",
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase: its name, its settings, the keep list of its pairs, and the phase whose weights it starts from."""

    name: str
    config: PhaseConfig
    keep: Artifact
    start: Artifact | None


def training_stage(config: Config, phase: Phase, source: Source, catalog: Catalog) -> Stage:
    """Return the stage of a phase; nothing is computed before it is built."""
    training = config.training
    check_evaluation(config)
    shared = training.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT | set(PhaseConfig.model_fields))
    if training.resize_with != "pillow":
        shared["resize_with"] = training.resize_with
    if training.keep_model == "best":
        evaluated = measured_on(config.evaluation, evaluation_sets(config))
        shared["best"] = [training.best_metric, training.evaluate_every_steps, evaluated]
        if config.model.pretrained or ":" in (config.model.name or ""):
            # an earlier version evaluated with a bicubic centre crop, which published weights may not use
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

    epochs = f"{phase.config.epochs} epoch{'s' if phase.config.epochs > 1 else ''}"
    how_long = f"{phase.config.samples:,} samples" if phase.config.samples else epochs
    what = config.model.name or "the configured model"
    return Stage(
        name=phase.name,
        role=Role(phase.name),
        does=f"train {what} for {how_long} at lr {phase.config.lr:g}, batches of {config.training.global_batch_size:,}",
        artifact=artifact,
        build=TrainPhase(config=config, phase=phase, source=source, catalog=catalog, artifact=artifact),
        flow=PairFlow(epochs=phase.config.epochs, samples=phase.config.samples, on_whole_pool=phase.start is not None),
    )


def check_evaluation(config: Config) -> None:
    """Check the settings of evaluation during training.

    Errors: `UserError` if there is no evaluation set, or the best model's metric is not measured."""
    training, known = config.training, metrics(config.evaluation)
    if training.evaluate_every_steps is None:
        return
    if not known:
        raise UserError(
            "training.evaluate_every_steps is set, but there is no evaluation set: set evaluation.retrieval.uri "
            "or evaluation.zero_shot.uri"
        )
    if training.keep_model == "best" and training.best_metric not in known:
        raise UserError(f"training.best_metric={training.best_metric}: expected one of {', '.join(known)}")


def phase_order(config: Config, phase: Phase) -> SampleOrder:
    """Return the sample order of a phase. Errors: `UserError` if there are fewer kept pairs than a global batch."""
    training = config.training
    kept_per_part = KeepList(phase.keep).kept_per_part
    return SampleOrder(
        kept_per_part=kept_per_part,
        num_samples=phase.config.samples or phase.config.epochs * sum(kept_per_part),
        global_batch_size=training.global_batch_size,
        num_lanes=training.lanes,
        window=training.window,
        seed=training.seed,
    )


@dataclass(frozen=True, kw_only=True)
class TrainPhase:
    """The work of a training stage."""

    config: Config
    phase: Phase
    source: Source
    catalog: Catalog
    artifact: Artifact

    def __call__(self, display: Display) -> Artifact:
        """Train the phase to its end and publish its artifact.

        Errors: `UserError` with the workers' error; `Stopped` after a stop request."""
        # imported here: it loads Ray Train and torch, which a plan does not need
        from orchestrator.training.driver import fit

        check_installed(self.config.tracking)
        training, artifact = self.config.training, self.artifact
        num_workers = ray_cluster.num_train_workers(training)
        stop_requested = fit(self._job(), num_workers, display)
        summary = read_json(artifact.path("summary.json"))
        artifact.publish(totals={**summary, "num_workers": num_workers}, parts=[], seconds=summary["seconds"])
        for name in REMOVED_AT_END:
            files.remove(artifact.path(name))
        if stop_requested:
            by = stop_signals.name()
            raise Stopped(f"{self.phase.name}: done, then stopped by {by}; run the same command again to continue")
        return artifact

    def _job(self) -> Job:
        config, phase = self.config, self.phase
        return Job(
            config=config,
            phase=phase.config,
            name=phase.name,
            artifact=self.artifact,
            start_uri=phase.start.path("model") if phase.start else None,
            source=self.source,
            parts=tuple(self.catalog.parts_of(self.source)),
            catalog=self.catalog,
            keep=KeepList(phase.keep),
            order=phase_order(config, phase),
            # opened here: workers have another working folder, and relative paths must be those of the driver
            sets=evaluation_sets(config) if config.training.evaluate_every_steps else {},
            signals=start_signals(),
        )
