"""The story of a run: catalog, select, pre-train, fine-tune, evaluate, report.

Every stage is known by its fingerprint before anything is computed, so the plan is the list of stages and the run is
the same list, built in order."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

from orchestrator.config import Config, WfppStep
from orchestrator.config.paths import absolute_places
from orchestrator.data.catalog import Catalog, catalog_stage, check_catalog
from orchestrator.demo.source import embed_demo
from orchestrator.engine import lease, ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.log import UPLOAD, run_log
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.engine.stage import PairFlow, Stage
from orchestrator.errors import UserError
from orchestrator.plan.rows import COLUMNS, Reach, plan_rows, reaches, training_cost
from orchestrator.selection import selection_stages
from orchestrator.selection.pool_mask import pool_mask_stage
from orchestrator.selection.word_counts import count_stage, words_stage
from orchestrator.source import Source, open_source, with_cache
from orchestrator.storage import files

logger = logging.getLogger(__name__)

LIBRARIES = ("open_clip_torch", "polars", "pyarrow", "ray", "timm", "torch")
MIN_COUNT = 5
NOT_EVALUATED = (
    "the models will not be evaluated: that takes evaluation.retrieval.uri=, evaluation.zero_shot.uri=, or a list of "
    "tasks, evaluation=imagenet evaluation.root= say"
)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A source, the stages over it in order, and the keep list that selection comes to."""

    config: Config
    source: Source
    catalog: Catalog
    stages: list[Stage]
    kept: Artifact


def run(config: Config, *, on_lost: Callable[[], None] | None = None) -> None:
    """Build every stage, then write the report. `on_lost` is called when another run takes over a lease."""
    from orchestrator.training.tracking.trackers import check_trackers

    check_trackers(config.tracking)
    execute(planned(prepare(config)), "run", Display(), on_lost=on_lost)


def planned(config: Config, source: Source | None = None) -> Pipeline:
    """What `run` does with a prepared config, in order; computes nothing. `source`: the config's, where it is open
    already."""
    return _training(_selection(config, source or open_source(config.source)))


def select(config: Config, *, on_lost: Callable[[], None] | None = None) -> None:
    """Build the stages up to the keep list, then write their report."""
    config = prepare(config)
    execute(_selection(config, open_source(config.source)), "select", Display(), on_lost=on_lost)


def plan(config: Config) -> None:
    """What `run` would do and what is there already; by a probe, what the rest would cost."""
    config, display = prepare(config), Display()
    pipeline = _stages(config, open_source(config.source))
    found = _show_plan(pipeline, display)
    left = [stage for stage in pipeline.stages if stage.role != Role.EVALUATE]
    if config.plan.probe and not all(stage.artifact.is_complete() for stage in left):
        _show_costs(pipeline, found, display)


def evaluate(config: Config, *, on_lost: Callable[[], None] | None = None) -> None:
    """Evaluate a checkpoint on the evaluation sets of the config."""
    from orchestrator.evaluation.stage import checkpoint_stage

    config = prepare(config)
    with run_log(_out(config), config.log_level):
        _finish(config, [checkpoint_stage(config)], "evaluate", Display(), on_lost)


def report(config: Config) -> None:
    """Rebuilds the report of a finished run from its artifacts."""
    from orchestrator.report.write import write_report

    out = files.absolute(config.run) if config.run else _out(config)
    record = RunRecord.read(out)
    ray_cluster.connect(config.cluster)
    write_report(out, record)
    Display().line(f"report: {files.join(out, 'report.html')}")


def export(config: Config) -> None:
    """The keep list of a finished run, for other tools."""
    from orchestrator.export import export_keep_list

    if config.run is None or config.to is None:
        raise UserError("export needs run= (a finished run's folder) and to= (a .parquet or .npy file, or a folder)")
    record, to = RunRecord.read(files.absolute(config.run)), files.absolute(config.to)
    ray_cluster.check_outlive_job({"to": to})
    ray_cluster.connect(config.cluster)
    # in the folder, or beside the file, lie the parts that tasks write
    ray_cluster.check_shared({"to": os.path.dirname(to) if os.path.splitext(to)[1] else to})
    export_keep_list(record, to, Display())


def prepare(config: Config) -> Config:
    """The config with absolute places, which are found from any folder, and, for the demo, the embedded pool written
    into the store as shards.

    Errors: `UserError` for places that would be gone with the job."""
    places = {"store": files.absolute(config.store), "out": _out(config)}
    ray_cluster.check_outlive_job(places)
    return absolute_places(embed_demo(config.model_copy(update=places)))


def _out(config: Config) -> str:
    return files.absolute(config.out or f"runs/{config.name}")


def _stages(config: Config, source: Source) -> Pipeline:
    pipeline = _selection(config, source)
    return _training(pipeline) if source.has_images else pipeline


def _selection(config: Config, source: Source) -> Pipeline:
    read = catalog_stage(config.store, source, config.source.limits)
    catalog = Catalog(read.artifact)
    steps = selection_stages(config, source, catalog)
    words = _report_words(config, catalog, steps)
    stages = [read, *steps, *words]
    return Pipeline(config=config, source=source, catalog=catalog, stages=stages, kept=steps[-1].artifact)


def _report_words(config: Config, catalog: Catalog, steps: Sequence[Stage]) -> list[Stage]:
    # the report shows word frequencies before and after: WFPP has counted them before, other methods have not
    stages, pool, kept = [], steps[0].artifact, steps[-1].artifact
    first = config.selection.settings[config.selection.steps[0]] if config.selection.steps else None
    min_count = first.min_count if isinstance(first, WfppStep) else MIN_COUNT
    before = count_stage(config.store, catalog, pool, label="before", role=Role.COUNT_WORDS_BEFORE)
    if before.artifact not in [stage.artifact for stage in steps]:
        summed = words_stage(
            config.store,
            catalog,
            before.artifact,
            min_count=min_count,
            label="before",
            role=Role.SUM_WORDS_BEFORE,
        )
        stages += [replace(stage, flow=PairFlow(on_whole_pool=True)) for stage in (before, summed)]
    after = count_stage(config.store, catalog, kept, label="after", role=Role.COUNT_WORDS_AFTER)
    summed = words_stage(config.store, catalog, after.artifact, min_count=1, label="after", role=Role.SUM_WORDS_AFTER)
    return [*stages, after, summed]


def _training(pipeline: Pipeline) -> Pipeline:
    from orchestrator.evaluation.stage import models_stage
    from orchestrator.training.stage import Phase, training_stage

    config, source, catalog = pipeline.config, pipeline.source, pipeline.catalog
    if not source.has_images:
        raise UserError(
            "a caption table has no images to train on: use select and export, download the kept pairs "
            "with img2dataset, then run on the shards"
        )
    first = Phase(name="pretrain", config=config.training, keep=pipeline.kept, start=None)
    # it alone reads the same pairs again and again
    cached = with_cache(source, config.source)
    pretrain = training_stage(config, first, cached, catalog)
    stages = [*pipeline.stages, pretrain]
    if config.finetune.enabled:
        among = _left_by(config.finetune.after, pipeline.stages)
        whole = pool_mask_stage(config.store, catalog, has_images=True, needs_caption=True, among=among)
        phase = Phase(name="finetune", config=config.finetune, keep=whole.artifact, start=pretrain.artifact)
        for stage in (whole, training_stage(config, phase, cached, catalog)):
            flow = replace(stage.flow, on_whole_pool=among is None, follows=config.finetune.after)
            stages.append(replace(stage, flow=flow))
    trained = [stage for stage in stages if stage.trains]
    stages += models_stage(config, {stage.name: stage.artifact for stage in trained})
    return replace(pipeline, stages=stages)


def _left_by(step: str | None, stages: Sequence[Stage]) -> Artifact | None:
    keeps = {stage.step or stage.role: stage.artifact for stage in stages if stage.role in (Role.POOL, Role.KEEP)}
    if step is not None and step not in keeps:
        raise UserError(f"finetune.after={step}: no such step; this run's steps: {', '.join(keeps)}")
    return keeps[step] if step else None


def execute(pipeline: Pipeline, verb: str, display: Display, *, on_lost: Callable[[], None] | None = None) -> None:
    """Build the stages in order, then write the run's record and report; everything is logged to `run.log`."""
    with run_log(_out(pipeline.config), pipeline.config.log_level):
        _show_plan(pipeline, display)
        if pipeline.catalog.artifact.is_complete():
            check_catalog(pipeline.catalog.artifact, pipeline.config.source.limits)
        _finish(pipeline.config, pipeline.stages, verb, display, on_lost)


def _show_plan(pipeline: Pipeline, display: Display) -> list[Reach]:
    found = reaches(pipeline.stages, pipeline.source, pipeline.catalog)
    display.table(f"plan of {pipeline.config.name}", COLUMNS, plan_rows(found))
    cost = training_cost(found, pipeline.source, pipeline.catalog)
    if cost:
        display.line(cost)
    if cost and not any(stage.role == Role.EVALUATE for stage in pipeline.stages):
        display.line(NOT_EVALUATED)
    return found


def _show_costs(pipeline: Pipeline, found: list[Reach], display: Display) -> None:
    from orchestrator.plan import cost_table
    from orchestrator.plan.estimates import Estimates
    from orchestrator.plan.probe import probe

    config, source = pipeline.config, pipeline.source
    display.line("measuring the stages on a few parts of the pool (plan.probe=false skips this)")
    measured = probe(config, source, _stages, found, display)
    estimates = Estimates(
        measured,
        len(source.parts()),
        found,
        pipeline.catalog.artifact,
        batch_size=config.training.global_batch_size,
        window=config.training.window,
    )
    rows = cost_table.cost_rows(estimates, found, config.plan)
    display.table("estimated cost of the remaining stages", cost_table.columns(config.plan), rows)
    for line in cost_table.notes(measured, estimates, found):
        display.line(line)


def _finish(
    config: Config, stages: Sequence[Stage], verb: str, display: Display, on_lost: Callable[[], None] | None
) -> None:
    from orchestrator.report.write import write_report
    from orchestrator.training.tracking.report import attach_report

    started, clock = datetime.now(UTC), time.monotonic()
    # a folder that cannot be written is an error before hours of work, not after
    files.write_json(files.join(_out(config), "config.json"), config.model_dump(mode="json"))
    ray_cluster.connect(config.cluster)
    ray_cluster.check_shared({"out": _out(config), "store": config.store})
    if any(stage.trains and not stage.artifact.is_complete() for stage in stages):
        # and so are more workers than the cluster can hold
        ray_cluster.num_train_workers(config.training.num_workers, lanes=config.training.lanes)
    records = [build(stage, display, on_lost) for stage in stages]
    record = RunRecord(
        name=config.name,
        verb=verb,
        config=config.model_dump(mode="json"),
        stages=records,
        versions={name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        started=started.isoformat(timespec="seconds"),
        wall_seconds=round(time.monotonic() - clock, 1),
    )
    out = _out(config)
    trained = record.find(Role.FINETUNE) or record.find(Role.PRETRAIN)
    if trained is not None:
        files.copy(trained.path("model"), files.join(out, "model"))
    record.write(out)
    with display.stage("report", unit="pages"):
        write_report(out, record)
    attach_report(config, out, record, display.warn)
    _summary(record, out, display)


def build(stage: Stage, display: Display, on_lost: Callable[[], None] | None = None) -> StageRecord:
    """Build a stage, or reuse its artifact. `on_lost` is called when another run takes over the lease."""
    clock = time.monotonic()
    with lease.held(stage.artifact, name=stage.name, show=display.line, on_lost=on_lost) as mine:
        if mine:
            logger.info("%s: building %s", stage.name, stage.artifact.uri)
            stage.build(display)
            logger.info("%s: complete", stage.name, extra=UPLOAD)
        else:
            logger.info("%s: cache hit, %s", stage.name, stage.artifact.uri)
            display.line(f"{stage.name}: reused")
    return StageRecord.of(stage, reused=not mine, seconds=round(time.monotonic() - clock, 2))


def _summary(record: RunRecord, out: str, display: Display) -> None:
    from orchestrator.report.write import headline

    rows = [*headline(out), ("report", files.join(out, "report.html")), ("numbers", files.join(out, "report.json"))]
    if files.exists(files.join(out, "model")):
        rows.append(("model", files.join(out, "model")))
    rows.append(("shared artifacts", str(record.config["store"])))
    display.table(f"{record.name}: done in {record.wall_seconds:,.0f} s", ("what", "where"), rows)
