"""The verb `sweep`: plan the trials, build what they share, run them under Ray Tune and write the report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from ray.tune import Result

from orchestrator.config import Config
from orchestrator.engine import ray_cluster
from orchestrator.engine.console import Display
from orchestrator.engine.log import run_log
from orchestrator.engine.run_record import library_versions
from orchestrator.errors import UserError
from orchestrator.evaluation.sets import metrics
from orchestrator.pipeline import prepare
from orchestrator.storage import files
from orchestrator.sweep.board import Board, TrialRow, shown
from orchestrator.sweep.elapsed import SweepTimer
from orchestrator.sweep.folder import check_folder, claim_folder
from orchestrator.sweep.report.page import render
from orchestrator.sweep.report.results import dimensions, trial_result
from orchestrator.sweep.report.schema import JSON_FILE, PAGE_FILE, TABLE_FILE, SweepReport, TrialResult
from orchestrator.sweep.report.trial_table import parquet
from orchestrator.sweep.shared_stages import SharedStages
from orchestrator.sweep.space import check_space, num_points
from orchestrator.sweep.state import ended_state, read_state
from orchestrator.sweep.trials import TRIALS, Trial, TrialPlanner, job_of, suggested_job
from orchestrator.sweep.tuner import Search, check_optuna, num_concurrent, run_search
from orchestrator.training.inputs import check_inputs
from orchestrator.training.tracking.trackers import check_trackers

logger = logging.getLogger(__name__)


def sweep(config: Config, *, on_lost: Callable[[], None] | None = None) -> None:
    """Run every trial, then write the report of all. `on_lost` is called when another run takes over a lease.

    Errors: `UserError` for settings that cannot work, before anything is computed, and if every trial failed."""
    config, display = _prepared(config), Display()
    timer = SweepTimer(str(config.out), resume=config.resume)
    _check(config)
    check_folder(config)
    trials = SweepTrials(config, on_lost)
    with run_log(str(config.out), config.log_level):
        _run(trials, timer, display)


def _run(trials: SweepTrials, timer: SweepTimer, display: Display) -> None:
    config = trials.config
    # with the dashboard off, Ray leaks the placement groups of trials that ASHA stops
    dashboard = ray_cluster.connect(config.cluster, dashboard=config.sweep.early_stopping == "asha")
    ray_cluster.check_shared({"out": str(config.out), "store": config.store})
    if dashboard:
        display.line(f"Ray's dashboard: http://{dashboard}")
    claim_folder(config, display)
    check_inputs(config, [stage for trial in trials.space for stage in trial.pipeline.stages], display)
    with timer.recording(trials.shared.counts):
        trials.share(display)
        results = trials.run(display)
    report = _report(config, results, timer)
    write_sweep(str(config.out), report)
    _summary(report, str(config.out), display)
    if all(trial.state == "failed" for trial in results):
        raise UserError(f"every trial failed; the reason of {results[0].name}: {results[0].reason}")


def _prepared(config: Config) -> Config:
    # beside the run of the same experiment, not in its folder
    out = config.out or f"runs/{config.name.removesuffix('_sweep')}_sweep"
    return prepare(config.model_copy(update={"out": out}))


def _check(config: Config) -> None:
    settings, known, stops = config.sweep, metrics(config.evaluation), config.sweep.early_stopping == "asha"
    if settings.metric not in known:
        measured = f"expected one of {', '.join(known)}" if known else "no evaluation set is configured"
        raise UserError(f"sweep.metric={settings.metric} is never measured: {measured}")
    if stops and not settings.samples:
        raise UserError("sweep.early_stopping=asha compares trials at equal numbers of samples: set sweep.samples")
    check_trackers(config.tracking)
    if settings.search == "optuna":
        check_optuna()
        if stops and not config.training.evaluate_every_steps:
            raise UserError("asha judges suggested trials during training: set training.evaluate_every_steps")


class SweepTrials:
    """The trials of a sweep: those of the space, and the controls that they are compared with.

    If Optuna suggests the trials one by one, the space holds one trial with the unchanged configuration: the suggested
    trials share most of its stages."""

    def __init__(self, config: Config, on_lost: Callable[[], None] | None = None):
        self.config = config
        self.planner = TrialPlanner(config)
        self.suggests = config.sweep.search == "optuna"
        self.space = [self._at({})] if self.suggests else self.planner.space_trials()
        if self.suggests:
            check_space(config)
        self.controls = self.planner.full_controls()
        self.shared = SharedStages(on_lost)

    def share(self, display: Display) -> None:
        """Build the stages before training. The sizes of random controls depend on the trials' keep lists, so the
        controls come second."""
        num_trials = len(self.space) + len(self.controls)
        display.line(f"{num_trials} trials, random controls not counted; building the stages that they share")
        same = 0 if self.suggests else num_points(self.config.sweep) * len(self.config.sweep.seeds) - len(self.space)
        if same:
            display.line(f"{same} settings lead to the same models as others and run once")
        self._share([*self.space, *self.controls], display)
        drawn = self.planner.random_controls([one for one in self.space if one.name not in self.shared.failed])
        self._share(drawn, display)
        self.controls += drawn
        for one in self.shared.counts():
            display.line(f"shared {one.kind}: {one.distinct} for {one.needed} uses, {one.computed} computed")

    def _share(self, trials: list[Trial], display: Display) -> None:
        self.shared.add(trials)
        self.shared.build(trials, display)

    def run(self, display: Display) -> list[TrialResult]:
        """Run all trials; return how each ended."""
        board = Board.remote()  # type: ignore[attr-defined]
        names = [trial.name for trial in (*([] if self.suggests else self.space), *self.controls)]
        with shown(board, names, self.config.sweep.metric, display):
            if self.suggests:
                return [*self._suggested(board), *self._planned("controls", self.controls, board)]
            if self.config.sweep.early_stopping == "none":
                return self._planned("trials", [*self.space, *self.controls], board)
            most = max(trial.num_samples or 0 for trial in self.space)
            # a search of their own, without early stopping: a control must train to its end
            controls = self._planned("controls", self.controls, board)
            return [*self._planned("trials", self.space, board, max_samples=most), *controls]

    def _planned(
        self, name: str, trials: list[Trial], board: Any, *, max_samples: int | None = None
    ) -> list[TrialResult]:
        failed = self.shared.failed
        ended = {trial.name: ended_state(trial.out) for trial in trials} if self.config.resume else {}
        left = []
        for trial in trials:
            if trial.name not in failed and not ended.get(trial.name):
                left.append(trial)
                continue
            stage = "failed" if trial.name in failed else f"already {ended[trial.name]}"
            logger.info("%s: %s", trial.name, stage)
            board.update.remote(trial.name, TrialRow(stage=stage))
        jobs = {trial.name: job_of(trial, num_concurrent=num_concurrent(self.config)) for trial in left}
        search = Search(name=name, config=self.config, board=board, jobs=jobs, max_samples=max_samples)
        ends = {end.config["trial"]: end.error for end in (run_search(search) if jobs else []) if end.config}
        return [trial_result(trial, ends.get(trial.name), not_prepared=failed.get(trial.name)) for trial in trials]

    def _suggested(self, board: Any) -> list[TrialResult]:
        metric, stops = self.config.sweep.metric, self.config.sweep.early_stopping == "asha"
        before = self._planned("interrupted", self._suggested_before(), board) if self.config.resume else []
        known = [(one.settings, one.models["pretrain"].metrics[metric]) for one in before if one.models]
        search = Search(
            name="suggested",
            config=self.config,
            board=board,
            suggest=partial(suggested_job, self.config, num_concurrent=num_concurrent(self.config)),
            num_suggested=self.config.sweep.num_samples - len(before),
            known=tuple(known),
            max_samples=self.config.sweep.samples if stops else None,
        )
        ends: list[Result] = run_search(search) if search.num_suggested > 0 else []
        results = before + [trial_result(self._at(end.config or {}), end.error) for end in ends]
        # Optuna may suggest a point twice
        return list({result.name: result for result in results}.values())

    def _suggested_before(self) -> list[Trial]:
        folder = files.join(str(self.config.out), TRIALS)
        states = [read_state(files.join(folder, name)) for name in files.names(folder)]
        found = [self._at(state.settings) for state in states if state is not None and state.settings]
        # an earlier version may have named the folder of the same point otherwise
        return list({trial.name: trial for trial in found}.values())

    def _at(self, point: dict[str, Any]) -> Trial:
        return self.planner.trial_at(point, seed=self.config.sweep.seeds[0])


def _report(config: Config, results: list[TrialResult], timer: SweepTimer) -> SweepReport:
    elapsed = timer.elapsed()
    return SweepReport(
        name=config.name,
        started=elapsed.started,
        resumed=elapsed.resumed,
        wall_seconds=elapsed.wall_seconds,
        metric=config.sweep.metric,
        dimensions=dimensions(config, results),
        seeds=list(config.sweep.seeds),
        equal_samples=config.sweep.samples,
        equal_epochs=config.sweep.epochs,
        cores=ray_cluster.num_cores(),
        **_devices(config),
        trials=results,
        sharing=timer.shared(),
        versions=library_versions(),
        config=config.model_dump(mode="json"),
    )


def _devices(config: Config) -> dict[str, Any]:
    workers = ray_cluster.num_train_workers(config.training)
    if ray_cluster.num_gpus():
        return {"devices": workers, "device": "GPU"}
    # the threads of a trial's workers take an equal share of the cores, even if the workers ask for fewer
    cores = ray_cluster.num_cores()
    share = max(workers * ray_cluster.cpus_per_worker(config.training.cpus_per_worker), cores // num_concurrent(config))
    return {"devices": min(cores, share), "device": "core"}


def write_sweep(out: str, report: SweepReport) -> None:
    """Write the numbers, the table and the page into the sweep's folder."""
    files.write(files.join(out, JSON_FILE), report.model_dump_json(indent=1).encode())
    files.write(files.join(out, TABLE_FILE), parquet(report))
    files.write(files.join(out, PAGE_FILE), render(report).encode())


def _summary(report: SweepReport, out: str, display: Display) -> None:
    rows = [
        (trial.name, trial.state, f"{trial.pairs:,}" if trial.pairs else "", *_values(trial, report.metric))
        for trial in report.trials
    ]
    columns = ("trial", "state", "pairs", f"{report.metric}, pre-trained", "fine-tuned")
    display.table(f"{report.name}: done in {report.wall_seconds:,.0f} s", columns, rows)
    for trial in report.trials:
        if trial.state == "failed":
            display.line(f"{trial.name} failed: {trial.reason}")
    for what, file in (("report", PAGE_FILE), ("numbers", JSON_FILE), ("table", TABLE_FILE)):
        display.line(f"{what}: {files.join(out, file)}")


def _values(trial: TrialResult, metric: str) -> list[str]:
    models = [trial.models.get(phase) for phase in ("pretrain", "finetune")]
    values = [model.metrics.get(metric) if model else None for model in models]
    return ["" if value is None else f"{value:.1%}" for value in values]
