"""Ray Tune runs the trials: each a process that runs the pipeline, whose training is a Ray Train run of its own.

A trial's process asks for next to nothing; its training workers ask for what they need, and as many trials run at once
as the cluster holds. What a sweep goes on with after an interruption is what trials have left in their folders, not
Tune's own state: that is a pickle of this program's code, which another version could not read and nobody should."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs
import ray
from ray import tune
from ray.tune import Callback, FailureConfig, Result, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler

from orchestrator.config import AshaConfig, Config, Dimension
from orchestrator.engine import ray_cluster
from orchestrator.errors import UserError
from orchestrator.report.files import JSON_FILE
from orchestrator.storage import files
from orchestrator.sweep.trial_worker import FAILURE_FILE, SAMPLES, STOPPED_FILE, TrialJob, run_trial

# of Tune's driver, read when it starts: no loggers, tables, or signal handlers of its own
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
TRIAL_CPUS = 0.01
# beside a trial's workers, on CPUs: Ray Train's controller and the reading tasks
READING_CPUS = 2


@dataclass(frozen=True, kw_only=True)
class Search:
    """One experiment of Tune's: the jobs to run by name, or `suggest`, which makes one of a point that Optuna chooses;
    `known` are points that it has the metric of.

    With `max_samples`, the most that a trial pre-trains on, trials may be stopped early."""

    name: str
    config: Config
    board: Any
    jobs: Mapping[str, TrialJob] = field(default_factory=dict)
    suggest: Callable[[dict[str, Any]], TrialJob] | None = None
    num_suggested: int = 0
    known: tuple[tuple[dict[str, Any], float], ...] = ()
    max_samples: int | None = None


def search(wanted: Search) -> list[Result]:
    """Runs the trials to their ends; how each did."""
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    folder, storage = _storage(files.join(str(wanted.config.out), "tune"))
    trainable = tune.with_resources(tune.with_parameters(_train, wanted=wanted), {"CPU": TRIAL_CPUS})
    files.remove(files.join(str(wanted.config.out), "tune", wanted.name))
    for job in wanted.jobs.values():
        files.remove(files.join(job.out, FAILURE_FILE))
    if wanted.suggest is None:
        space: dict[str, Any] = {"trial": tune.grid_search(list(wanted.jobs))}
    else:
        space = {name: domain(one) for name, one in wanted.config.sweep.space.items()}
    run_config = RunConfig(
        name=wanted.name,
        storage_path=folder,
        storage_filesystem=storage,
        failure_config=FailureConfig(max_failures=wanted.config.sweep.max_failures),
        callbacks=[_Ends(wanted)],
        verbose=0,
    )
    grid = Tuner(trainable, param_space=space, tune_config=_tune_config(wanted), run_config=run_config).fit()
    return [grid[index] for index in range(len(grid))]


def _train(chosen: dict[str, Any], *, wanted: Search) -> None:
    """Tune's trainable. The pipeline runs in a thread; this one passes on what it measures, and is where Tune stops a
    trial."""
    job = wanted.jobs[chosen["trial"]] if wanted.suggest is None else wanted.suggest(chosen)
    said: queue.SimpleQueue[dict[str, float] | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            said.put(run_trial(job, wanted.board, said.put))
            said.put(None)
        except BaseException as error:  # noqa: BLE001 it is raised again in Tune's own thread
            said.put(error)

    threading.Thread(target=work, daemon=True, name="pipeline").start()
    while (item := said.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        tune.report(item)


def _tune_config(wanted: Search) -> TuneConfig:
    sweep = wanted.config.sweep
    suggests = wanted.suggest is not None
    return TuneConfig(
        metric=sweep.metric,
        mode="max",
        scheduler=_asha(sweep.asha, wanted.max_samples) if wanted.max_samples else None,
        search_alg=_optuna(wanted) if suggests else None,
        num_samples=wanted.num_suggested if suggests else 1,
        max_concurrent_trials=num_concurrent(wanted.config),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _asha(settings: AshaConfig, max_samples: int) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr=SAMPLES,
        # who gets there is stopped, too, and would neither be fine-tuned nor evaluated
        max_t=max_samples + 1,
        grace_period=max(1, int(settings.grace_fraction * max_samples)),
        reduction_factor=settings.reduction_factor,
    )


def num_concurrent(config: Config) -> int:
    """Trials at once: as asked, else as many as the cluster has room for."""
    if config.sweep.max_concurrent is not None:
        return config.sweep.max_concurrent
    training = config.training
    workers = ray_cluster.num_train_workers(training.num_workers, lanes=training.lanes)
    if ray_cluster.num_gpus():
        return max(1, ray_cluster.num_gpus() // workers)
    return max(1, ray_cluster.num_cpus() // (workers * training.cpus_per_worker + READING_CPUS))


def _optuna(wanted: Search) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    points, values = ([list(column) for column in zip(*wanted.known, strict=True)]) if wanted.known else (None, None)
    # the same seed again would suggest what is known again
    seed = wanted.config.sweep.search_seed + len(wanted.known)
    return OptunaSearch(seed=seed, points_to_evaluate=points, evaluated_rewards=values)


def check_optuna() -> None:
    """Errors: `UserError` when it is asked for and not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("sweep.search=optuna needs optuna: pip install optuna") from None


def domain(dimension: Dimension) -> Any:
    """A dimension as Tune's searchers take it; they choose from a grid, too."""
    if dimension.uniform is not None:
        return tune.uniform(*dimension.uniform)
    if dimension.log_uniform is not None:
        return tune.loguniform(*dimension.log_uniform)
    if dimension.int_uniform is not None:
        low, high = dimension.int_uniform
        return tune.randint(low, high + 1)
    return tune.choice(list(dimension.grid or dimension.choice or ()))


def _storage(uri: str) -> tuple[str, Any]:
    if files.is_local(uri):
        return uri, None
    fs, path = files.filesystem(uri)
    return path, pafs.PyFileSystem(pafs.FSSpecHandler(fs))


class _Ends(Callback):
    """Tells the board, and leaves in the trial's folder, which trials Tune has ended."""

    def __init__(self, wanted: Search):
        self.wanted = wanted

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        job = self._job(trial)
        if not files.exists(files.join(job.out, JSON_FILE)):
            last = trial.last_result
            told = {SAMPLES: last.get(SAMPLES), "value": last.get(job.metric), "seconds": last.get("time_total_s")}
            files.write_json(files.join(job.out, STOPPED_FILE), told)
        # the trial's own last word comes first
        ray.get(self.wanted.board.end.remote(job.name, "stopped early"))

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        ray.get(self.wanted.board.end.remote(self._job(trial).name, "failed"))

    def _job(self, trial: Any) -> TrialJob:
        return self.wanted.suggest(trial.config) if self.wanted.suggest else self.wanted.jobs[trial.config["trial"]]
