"""The story of a sweep: plan the trials, compute what they share, run them under Ray Tune, put the results together."""

from __future__ import annotations

from functools import partial
from typing import Any

from orchestrator.config import Config
from orchestrator.engine import ray_cluster
from orchestrator.engine.console import Display
from orchestrator.engine.run_record import library_versions
from orchestrator.errors import UserError
from orchestrator.evaluation.sets import metrics
from orchestrator.pipeline import prepare
from orchestrator.storage import files
from orchestrator.sweep.board import Board, Row, watched
from orchestrator.sweep.elapsed import Tally
from orchestrator.sweep.folder import check_folder, claim_folder
from orchestrator.sweep.page import render
from orchestrator.sweep.results import dimensions, has_ended, trial_result
from orchestrator.sweep.schema import JSON_FILE, PAGE_FILE, TABLE_FILE, SweepReport, TrialResult
from orchestrator.sweep.shared_stages import Shared
from orchestrator.sweep.space import check_space, num_points
from orchestrator.sweep.trial_table import parquet
from orchestrator.sweep.trial_worker import SETTINGS_FILE
from orchestrator.sweep.trials import (
    TRIALS,
    Trial,
    full_controls,
    job_of,
    opened,
    random_controls,
    space_trials,
    suggested_job,
    trial_at,
)
from orchestrator.sweep.tuner import Search, check_optuna, num_concurrent, search
from orchestrator.training.tracking import check_trackers


def sweep(config: Config) -> None:
    """Every trial, then the report of them all."""
    config, display = _prepared(config), Display()
    tally = Tally(str(config.out), resume=config.resume)
    _check(config)
    check_folder(config)
    opened.cache_clear()
    trials = _Trials(config)
    # with the dashboard off, Ray leaks the placement groups of trials that ASHA stops
    dashboard = ray_cluster.connect(config.cluster, dashboard=config.sweep.early_stopping == "asha")
    ray_cluster.check_shared({"out": str(config.out), "store": config.store})
    if dashboard:
        display.line(f"Ray's dashboard: http://{dashboard}")
    claim_folder(config, display)
    with tally.noted(trials.shared.counted):
        trials.share(display)
        results = trials.run(display)
    report = _report(config, results, tally)
    write_sweep(str(config.out), report)
    _summary(report, str(config.out), display)
    if all(trial.state == "failed" for trial in results):
        raise UserError(f"every trial failed, {results[0].name} because: {results[0].reason}")


def _report(config: Config, results: list[TrialResult], tally: Tally) -> SweepReport:
    spent = tally.spent()
    return SweepReport(
        name=config.name,
        started=spent.started,
        resumed=spent.resumed,
        wall_seconds=spent.wall_seconds,
        metric=config.sweep.metric,
        dimensions=dimensions(config, results),
        seeds=list(config.sweep.seeds),
        equal_samples=config.sweep.samples,
        equal_epochs=config.sweep.epochs,
        cores=ray_cluster.num_cores(),
        **_devices(config),
        trials=results,
        sharing=tally.shared(),
        versions=library_versions(),
        config=config.model_dump(mode="json"),
    )


def write_sweep(out: str, report: SweepReport) -> None:
    """Writes the numbers, the table and the page into the sweep's folder."""
    files.write(files.join(out, JSON_FILE), report.model_dump_json(indent=1).encode())
    files.write(files.join(out, TABLE_FILE), parquet(report))
    files.write(files.join(out, PAGE_FILE), render(report).encode())


def _prepared(config: Config) -> Config:
    # beside the run of the same experiment, not over it
    out = config.out or f"runs/{config.name.removesuffix('_sweep')}_sweep"
    return prepare(config.model_copy(update={"out": out}))


def _check(config: Config) -> None:
    wanted, known, stops = config.sweep, metrics(config.evaluation), config.sweep.early_stopping == "asha"
    if wanted.metric not in known:
        measured = f"expected one of {', '.join(known)}" if known else "no evaluation set is given"
        raise UserError(f"sweep.metric={wanted.metric} is never measured: {measured}")
    if stops and not wanted.samples:
        raise UserError("sweep.early_stopping=asha compares trials after as many samples each: set sweep.samples")
    check_trackers(config.tracking)
    if wanted.search == "optuna":
        check_optuna()
        if stops and not config.training.evaluate_every_steps:
            raise UserError("asha judges suggested trials on the way: set training.evaluate_every_steps")


class _Trials:
    """The trials of a sweep: those of the space, and the controls they are compared with. Where trials are suggested
    one by one, the space holds the config's own, unchanged: what it needs the others mostly share."""

    def __init__(self, config: Config):
        self.config = config
        self.suggests = config.sweep.search == "optuna"
        self.space = [self._at({})] if self.suggests else space_trials(config)
        if self.suggests:
            check_space(config)
        self.controls = full_controls(config)
        self.shared = Shared()

    def share(self, display: Display) -> None:
        """Computes what comes before training; random controls need the trials' keep lists for it."""
        display.line(f"{len(self.space) + len(self.controls)} trials and random controls; first what they share")
        same = 0 if self.suggests else num_points(self.config.sweep) * len(self.config.sweep.seeds) - len(self.space)
        if same:
            display.line(f"{same} settings come to the same models as others and are not run again")
        self._share([*self.space, *self.controls], display)
        drawn = random_controls(self.config, [one for one in self.space if one.name not in self.shared.refused])
        self._share(drawn, display)
        self.controls += drawn
        for one in self.shared.counted():
            display.line(f"shared, {one.kind}: {one.distinct} for {one.needed} uses, {one.computed} computed")

    def _share(self, trials: list[Trial], display: Display) -> None:
        self.shared.add(trials)
        self.shared.build(trials, display)

    def run(self, display: Display) -> list[TrialResult]:
        """Runs them all; how each ended."""
        board = Board.remote()  # type: ignore[attr-defined]
        names = [trial.name for trial in (*([] if self.suggests else self.space), *self.controls)]
        with watched(board, names, self.config.sweep.metric, display):
            if self.suggests:
                return [*self._suggested(board), *self._fixed("controls", self.controls, board)]
            if self.config.sweep.early_stopping == "none":
                return self._fixed("trials", [*self.space, *self.controls], board)
            most = max(trial.num_samples or 0 for trial in self.space)
            # what the others are compared with is not stopped early
            controls = self._fixed("controls", self.controls, board)
            return [*self._fixed("trials", self.space, board, max_samples=most), *controls]

    def _fixed(
        self, name: str, trials: list[Trial], board: Any, *, max_samples: int | None = None
    ) -> list[TrialResult]:
        refused = self.shared.refused
        over = [trial for trial in trials if self.config.resume and has_ended(trial)]
        left = [trial for trial in trials if trial not in over and trial.name not in refused]
        for trial in trials:
            if trial not in left:
                board.tell.remote(trial.name, Row(stage="ended before" if trial in over else "cannot be"))
        jobs = {trial.name: job_of(trial, num_concurrent=num_concurrent(self.config)) for trial in left}
        wanted = Search(name=name, config=self.config, board=board, jobs=jobs, max_samples=max_samples)
        ends = {end.config["trial"]: end for end in (search(wanted) if jobs else []) if end.config}
        return [trial_result(trial, ends.get(trial.name), refused=refused.get(trial.name)) for trial in trials]

    def _suggested(self, board: Any) -> list[TrialResult]:
        metric, stops = self.config.sweep.metric, self.config.sweep.early_stopping == "asha"
        before = self._fixed("interrupted", self._suggested_before(), board) if self.config.resume else []
        known = [(one.settings, one.models["pretrain"].metrics[metric]) for one in before if one.models]
        wanted = Search(
            name="suggested",
            config=self.config,
            board=board,
            suggest=partial(suggested_job, self.config, num_concurrent=num_concurrent(self.config)),
            num_suggested=self.config.sweep.num_samples - len(before),
            known=tuple(known),
            max_samples=self.config.sweep.samples if stops else None,
        )
        ends = search(wanted) if wanted.num_suggested > 0 else []
        results = before + [trial_result(self._at(end.config or {}), end) for end in ends]
        # a point may be suggested twice
        return list({result.name: result for result in results}.values())

    def _suggested_before(self) -> list[Trial]:
        folder = files.join(str(self.config.out), TRIALS)
        places = [files.join(folder, name, SETTINGS_FILE) for name in files.names(folder)]
        points = [files.read_json(place) for place in places if files.exists(place)]
        found = [self._at(point) for point in points if point]
        # one point may lie in two folders, by names that an earlier version gave it
        return list({trial.name: trial for trial in found}.values())

    def _at(self, point: dict[str, Any]) -> Trial:
        return trial_at(self.config, point, seed=self.config.sweep.seeds[0])


def _devices(config: Config) -> dict[str, Any]:
    workers = ray_cluster.num_train_workers(config.training.num_workers, lanes=config.training.lanes)
    if ray_cluster.num_gpus():
        return {"devices": workers, "device": "GPU"}
    # a trial's workers take their share of the cores, however few they ask for
    cores = ray_cluster.num_cores()
    share = max(workers * config.training.cpus_per_worker, cores // num_concurrent(config))
    return {"devices": min(cores, share), "device": "core"}


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
