"""What each verb does: the stages of a run in order, and what is shown, reported and tracked around them.

    catalog -> selection steps -> word counts for the report -> pre-train -> fine-tune -> evaluate -> report

The fingerprint of every stage is known before anything is computed. So `plan` shows the list of stages, and `run`
builds the same list in order (`engine.build`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.config import Config, WfppStep
from orchestrator.config.paths import absolute_paths
from orchestrator.data.catalog import Catalog, catalog_stage, check_catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.demo.source import embed_demo
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.build import build_run, raise_unfinished
from orchestrator.engine.console import Display
from orchestrator.engine.log import run_log
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.engine.stage import PairFlow, Stage
from orchestrator.errors import UserError
from orchestrator.evaluation.stage import checkpoint_stage, models_stage
from orchestrator.export import export_keep_list
from orchestrator.plan import cost_table
from orchestrator.plan.estimates import Estimates
from orchestrator.plan.gpu_memory import show_memory
from orchestrator.plan.probe import probe
from orchestrator.plan.rows import COLUMNS, Reach, check_budgets, plan_rows, reaches, training_cost
from orchestrator.selection import caption_reader, selection_stages
from orchestrator.selection.pool_mask import pool_mask_stage
from orchestrator.selection.word_counts import count_stage, words_stage
from orchestrator.source import Source, open_source, with_cache
from orchestrator.storage import files
from orchestrator.training.inputs import check_inputs
from orchestrator.training.stage import Phase, training_stage
from orchestrator.training.tracking.report import attach_report
from orchestrator.training.tracking.trackers import check_trackers

MIN_COUNT = 5
NOT_EVALUATED = (
    "the models will not be evaluated: to evaluate them, set evaluation.retrieval.uri=, evaluation.zero_shot.uri= or a "
    "list of tasks, for example evaluation=imagenet evaluation.root="
)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A source, the stages over it in order, and the final keep list of the selection.

    `caption_reader` names the first stage that reads captions, if one does."""

    config: Config
    source: Source
    catalog: Catalog
    stages: list[Stage]
    kept: Artifact
    caption_reader: str | None


# The verbs


def run(config: Config, *, on_lost: Callable[[], None] | None = None) -> None:
    """Select, train, evaluate and report. `on_lost` is called when another run takes over the lease of a stage."""
    check_trackers(config.tracking)
    execute(planned(prepare(config)), "run", Display(), on_lost=on_lost)


def select(config: Config, *, on_lost: Callable[[], None] | None = None) -> None:
    """Compute the keep list and report on the selection alone."""
    config = prepare(config)
    pipeline = _selection(config, open_source(config.source))
    execute(pipeline, "select", Display(), on_lost=on_lost)
    if not KeepList(pipeline.kept).num_pairs:
        raise UserError(
            f"the selection keeps none of the pairs; the report in {config.out} shows the pairs of each step"
        )


def plan(config: Config) -> None:
    """Show what `run` would do, what is complete already and, measured by a probe, what the rest would cost."""
    config, display = prepare(config), Display()
    source = open_source(config.source)
    pipeline = _plannable(config, source)
    found = _show_plan(pipeline, display)
    _check_catalog(pipeline)
    show_memory(config, display)
    left = [stage for stage in pipeline.stages if stage.role != Role.EVALUATE]
    if config.plan.probe and not all(stage.artifact.is_complete() for stage in left):
        _show_costs(pipeline, found, display)


def evaluate(config: Config, *, on_lost: Callable[[], None] | None = None) -> None:
    """Evaluate a checkpoint on the evaluation sets of the config."""
    config = prepare(config)
    # raises before anything is written
    stages = [checkpoint_stage(config)]
    with run_log(_out(config), config.log_level):
        _build_and_report(config, stages, "evaluate", Display(), on_lost)


def report(config: Config) -> None:
    """Rebuild the report of a finished run from its artifacts."""
    out = files.absolute(config.run) if config.run else _out(config)
    record = RunRecord.read(out)
    ray_cluster.connect(config.cluster)
    _write_report(out, record)
    Display().line(f"report: {files.join(out, 'report.html')}")


def export(config: Config) -> None:
    """Export the keep list of a finished run for other tools."""
    if config.run is None or config.to is None:
        raise UserError("export needs run= (a finished run's folder) and to= (a .parquet or .npy file, or a folder)")
    record, to = RunRecord.read(files.absolute(config.run)), files.absolute(config.to)
    ray_cluster.check_outlive_job({"to": to})
    ray_cluster.connect(config.cluster)
    # tasks write parts into the folder, or beside the file: every node has to see that folder
    ray_cluster.check_shared({"to": os.path.dirname(to) if os.path.splitext(to)[1] else to})
    export_keep_list(record, to, Display())


def prepare(config: Config) -> Config:
    """Return the config with absolute paths and URIs, valid from any folder; the demo's pool is written to the store.

    Errors: `UserError` for paths that disappear with a submitted job."""
    paths = {"store": files.absolute(config.store), "out": _out(config)}
    ray_cluster.check_outlive_job(paths)
    return absolute_paths(embed_demo(config.model_copy(update=paths)))


def _out(config: Config) -> str:
    return files.absolute(config.out or f"runs/{config.name}")


# The stages


def planned(config: Config, source: Source | None = None) -> Pipeline:
    """Return the stages of `run` for a prepared config; computes nothing. `source`: the config's, if already open."""
    return _training(_selection(config, source or open_source(config.source), trains=True))


def _plannable(config: Config, source: Source) -> Pipeline:
    # a caption table can be pruned, but not trained on
    pipeline = _selection(config, source, trains=source.has_images)
    return _training(pipeline) if source.has_images else pipeline


def _selection(config: Config, source: Source, *, trains: bool = False) -> Pipeline:
    reader = caption_reader(config, trains=trains)
    read = catalog_stage(config.store, source, config.source.limits, caption_reader=reader)
    catalog = Catalog(read.artifact)
    steps = selection_stages(config, source, catalog)
    words = _report_words(config, catalog, steps)
    stages = [read, *steps, *words]
    kept = steps[-1].artifact
    return Pipeline(config=config, source=source, catalog=catalog, stages=stages, kept=kept, caption_reader=reader)


def _report_words(config: Config, catalog: Catalog, steps: Sequence[Stage]) -> list[Stage]:
    """The stages that count words before and after selection; if WFPP comes first, it has counted those before."""
    pool, kept = steps[0].artifact, steps[-1].artifact
    first = config.selection.settings[config.selection.steps[0]] if config.selection.steps else None
    min_count = first.min_count if isinstance(first, WfppStep) else MIN_COUNT
    count = count_stage(config.store, catalog, pool, label="before", role=Role.COUNT_WORDS_BEFORE)
    before: list[Stage] = []
    if count.artifact not in [stage.artifact for stage in steps]:
        words = words_stage(
            config.store, catalog, count.artifact, min_count=min_count, label="before", role=Role.SUM_WORDS_BEFORE
        )
        before = [replace(stage, flow=PairFlow(on_whole_pool=True)) for stage in (count, words)]
    count = count_stage(config.store, catalog, kept, label="after", role=Role.COUNT_WORDS_AFTER)
    words = words_stage(config.store, catalog, count.artifact, min_count=1, label="after", role=Role.SUM_WORDS_AFTER)
    return [*before, count, words]


def _training(pipeline: Pipeline) -> Pipeline:
    config, source, catalog = pipeline.config, pipeline.source, pipeline.catalog
    if not source.has_images:
        raise UserError(
            "a caption table has no images to train on: use select and export, download the kept pairs "
            "with img2dataset, then run on the shards"
        )
    # only training reads the same pairs again and again
    cached = with_cache(source, config.source)
    first = Phase(name="pretrain", config=config.training, keep=pipeline.kept, start=None)
    phases = [training_stage(config, first, cached, catalog)]
    stages = [*pipeline.stages, *phases]
    if config.finetune.enabled:
        among = _kept_by(config.finetune.after, pipeline.stages)
        captioned = pool_mask_stage(config.store, catalog, has_images=True, needs_caption=True, among=among)
        second = Phase(name="finetune", config=config.finetune, keep=captioned.artifact, start=phases[0].artifact)
        phases.append(training_stage(config, second, cached, catalog))
        for stage in (captioned, phases[1]):
            flow = replace(stage.flow, on_whole_pool=among is None, follows=config.finetune.after)
            stages.append(replace(stage, flow=flow))
    stages += models_stage(config, {phase.name: phase.artifact for phase in phases})
    return replace(pipeline, stages=stages)


def _kept_by(step: str | None, stages: Sequence[Stage]) -> Artifact | None:
    keeps = {stage.step or stage.role: stage.artifact for stage in stages if stage.role in (Role.POOL, Role.KEEP)}
    if step is not None and step not in keeps:
        raise UserError(f"finetune.after={step}: no such step; this run's steps: {', '.join(keeps)}")
    return keeps[step] if step else None


# What happens around the stages


def execute(
    pipeline: Pipeline,
    verb: str,
    display: Display,
    *,
    on_lost: Callable[[], None] | None = None,
    checks_inputs: bool = True,
) -> None:
    """Show the plan, build the stages in order, then write the record and the report of the run; log it all.

    `checks_inputs`: check the model and the evaluation sets first. Errors: those of the stages. If the evaluation
    fails, its error is raised after the model and the report are written."""
    config = pipeline.config
    with run_log(_out(config), config.log_level):
        _show_plan(pipeline, display)
        _check_catalog(pipeline)
        if checks_inputs:
            check_inputs(config, [stage for stage in pipeline.stages if not stage.artifact.is_complete()], display)
        _build_and_report(config, pipeline.stages, verb, display, on_lost)


def _check_catalog(pipeline: Pipeline) -> None:
    if pipeline.catalog.artifact.is_complete():
        check_catalog(pipeline.catalog.artifact, pipeline.config.source.limits, pipeline.caption_reader)


def _build_and_report(
    config: Config, stages: Sequence[Stage], verb: str, display: Display, on_lost: Callable[[], None] | None
) -> None:
    out = _out(config)
    record, failure = build_run(config, stages, verb=verb, out=out, display=display, on_lost=on_lost)
    trained = record.find(Role.FINETUNE) or record.find(Role.PRETRAIN)
    if trained is not None:
        files.copy(trained.path("model"), files.join(out, "model"))
    record.write(out)
    with display.stage("report", unit="pages"):
        headline = _write_report(out, record)
    attach_report(config, out, record, display.warn)
    rows = [*headline, ("report", files.join(out, "report.html")), ("numbers", files.join(out, "report.json"))]
    if files.exists(files.join(out, "model")):
        rows.append(("model", files.join(out, "model")))
    rows.append(("shared artifacts", config.store))
    done = "done" if failure is None else "done but for the evaluation"
    display.table(f"{record.name}: {done} in {record.wall_seconds:,.0f} s", ("what", "where"), rows)
    if failure is not None:
        raise_unfinished(failure, out, display)


def _write_report(out: str, record: RunRecord) -> list[tuple[str, str]]:
    # imported here: matplotlib, faiss and jinja2 take 1.5 s of CPU time, which a plan or an export can do without
    from orchestrator.report.write import headline, write_report

    write_report(out, record)
    return headline(out)


def _show_plan(pipeline: Pipeline, display: Display) -> list[Reach]:
    found = reaches(pipeline.stages, pipeline.source, pipeline.catalog)
    check_budgets(found)
    display.table(f"plan of {pipeline.config.name}", COLUMNS, plan_rows(found))
    if cost := training_cost(found, pipeline.source, pipeline.catalog):
        display.line(cost)
    if cost and not any(stage.role == Role.EVALUATE for stage in pipeline.stages):
        display.line(NOT_EVALUATED)
    return found


def _show_costs(pipeline: Pipeline, found: list[Reach], display: Display) -> None:
    config, source = pipeline.config, pipeline.source
    display.line("measuring the stages on a few parts of the pool (plan.probe=false skips this)")
    measured = probe(config, source, _plannable, found, display)
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
