"""Run trials under Ray Tune. Each trial is a process that runs the pipeline; its training is a Ray Train run.

The process of a trial asks for almost no resources. Its training workers ask for what they need, so as many trials run
at once as the cluster holds. A resumed sweep uses the state in the trials' folders and not Tune's own: that is a pickle
of this program's code, which another version could not read and which is not safe to load."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from orchestrator.storage import files
from orchestrator.sweep.state import TrialState, read_state, retry_failed, write_state
from orchestrator.sweep.trial_worker import SAMPLES, run_trial
from orchestrator.sweep.trials import TrialJob

logger = logging.getLogger(__name__)
# Tune reads these when it starts: no loggers, tables or signal handlers besides ours
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
TUNE_LOGGER = "ray.tune"
TRIAL_CPUS = 0.01
# CPUs of a trial beside its training workers: Ray Train's controller and the reading tasks
READING_CPUS = 2
# a trial's thread sends its evaluations, then None or the error that ended it
Messages = queue.SimpleQueue[dict[str, float] | BaseException | None]


@dataclass(frozen=True, kw_only=True)
class Search:
    """One experiment of Tune.

    Either `jobs`, the trials to run by name, or `suggest`, which makes a job from a point that Optuna chooses, for
    `num_suggested` points; `known`: points with their value of the metric, from an earlier start of the sweep. With
    `max_samples`, the most that any trial pre-trains on, ASHA may stop trials early."""

    name: str
    config: Config
    board: Any
    jobs: Mapping[str, TrialJob] = field(default_factory=dict)
    suggest: Callable[[dict[str, Any]], TrialJob] | None = None
    num_suggested: int = 0
    known: tuple[tuple[dict[str, Any], float], ...] = ()
    max_samples: int | None = None

    def job(self, chosen: dict[str, Any]) -> TrialJob:
        """Return the job of a trial from the configuration that Tune gives it."""
        return self.jobs[chosen["trial"]] if self.suggest is None else self.suggest(chosen)


def run_search(search: Search) -> list[Result]:
    """Run the trials to their ends; return Tune's result of each."""
    folder = files.join(str(search.config.out), "tune")
    files.remove(files.join(folder, search.name))
    for job in search.jobs.values():
        retry_failed(job.out)
    if search.suggest is None:
        space: dict[str, Any] = {"trial": tune.grid_search(list(search.jobs))}
    else:
        space = {name: domain(one) for name, one in search.config.sweep.space.items()}
    path, filesystem = _tune_storage(folder)
    run_config = RunConfig(
        name=search.name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=search.config.sweep.max_failures),
        callbacks=[_TrialEnds(search)],
        verbose=0,
    )
    trainable = tune.with_resources(tune.with_parameters(_train, search=search), {"CPU": TRIAL_CPUS})
    with _quiet_tune():
        grid = Tuner(trainable, param_space=space, tune_config=_tune_config(search), run_config=run_config).fit()
    return [grid[index] for index in range(len(grid))]


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Set Tune's environment variables and log level while the block runs, and restore them after it."""
    before, tune_logger = {name: os.environ.get(name) for name in QUIET}, logging.getLogger(TUNE_LOGGER)
    level = tune_logger.level
    os.environ.update(QUIET)
    tune_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        tune_logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _train(chosen: dict[str, Any], *, search: Search) -> None:
    """Tune's trainable: run the pipeline in a thread and report its evaluations from this one.

    Tune may stop a trial only in the thread that reports."""
    messages: Messages = queue.SimpleQueue()
    arguments = (search.job(chosen), search.board, messages)
    threading.Thread(target=_run_pipeline, args=arguments, daemon=True, name="pipeline").start()
    while (message := messages.get()) is not None:
        if isinstance(message, BaseException):
            raise message
        tune.report(message)


def _run_pipeline(job: TrialJob, board: Any, messages: Messages) -> None:
    try:
        messages.put(run_trial(job, board, messages.put))
        messages.put(None)
    except BaseException as error:  # noqa: BLE001 Tune's own thread raises it again
        messages.put(error)


def _tune_config(search: Search) -> TuneConfig:
    sweep = search.config.sweep
    suggests = search.suggest is not None
    return TuneConfig(
        metric=sweep.metric,
        mode="max",
        scheduler=_asha(sweep.asha, search.max_samples) if search.max_samples else None,
        search_alg=_optuna(search) if suggests else None,
        num_samples=search.num_suggested if suggests else 1,
        max_concurrent_trials=num_concurrent(search.config),
        trial_dirname_creator=_trial_dirname,
    )


def _trial_dirname(trial: Any) -> str:
    return str(trial.trial_id)


def _asha(settings: AshaConfig, max_samples: int) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr=SAMPLES,
        # ASHA stops a trial that reaches max_t, before it is fine-tuned and evaluated: no trial may reach it
        max_t=max_samples + 1,
        grace_period=max(1, int(settings.grace_fraction * max_samples)),
        reduction_factor=settings.reduction_factor,
    )


def num_concurrent(config: Config) -> int:
    """Return how many trials run at once: as configured, otherwise as many as the cluster has room for."""
    if config.sweep.max_concurrent is not None:
        return config.sweep.max_concurrent
    training = config.training
    workers = ray_cluster.num_train_workers(training)
    if ray_cluster.num_gpus():
        return max(1, ray_cluster.num_gpus() // workers)
    worker_cpus = ray_cluster.cpus_per_worker(training.cpus_per_worker)
    return max(1, ray_cluster.num_cpus() // (workers * worker_cpus + READING_CPUS))


def _optuna(search: Search) -> Any:
    # optional dependency
    from ray.tune.search.optuna import OptunaSearch

    points, values = ([list(column) for column in zip(*search.known, strict=True)]) if search.known else (None, None)
    # with the seed of the first start, Optuna would suggest the known points again
    seed = search.config.sweep.search_seed + len(search.known)
    return OptunaSearch(seed=seed, points_to_evaluate=points, evaluated_rewards=values)


def check_optuna() -> None:
    """Raise `UserError` if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("sweep.search=optuna needs optuna: pip install optuna") from None


def domain(dimension: Dimension) -> Any:
    """Return a dimension as Tune's searchers take it; from a grid they choose values too."""
    if dimension.uniform is not None:
        return tune.uniform(*dimension.uniform)
    if dimension.log_uniform is not None:
        return tune.loguniform(*dimension.log_uniform)
    if dimension.int_uniform is not None:
        low, high = dimension.int_uniform
        return tune.randint(low, high + 1)
    return tune.choice(list(dimension.grid or dimension.choice or ()))


def _tune_storage(uri: str) -> tuple[str, Any]:
    if files.is_local(uri):
        return uri, None
    fs, path = files.filesystem(uri)
    return path, pafs.PyFileSystem(pafs.FSSpecHandler(fs))


class _TrialEnds(Callback):
    """Logs how trials start and end, and writes to the board and to a trial's folder how Tune ended it."""

    def __init__(self, search: Search):
        self.search = search

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        logger.info("%s: started", self.search.job(trial.config).name)

    def on_trial_recover(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        job = self.search.job(trial.config)
        logger.warning("%s: failed, trying again: %s", job.name, _reason(job))

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        job = self.search.job(trial.config)
        state = read_state(job.out)
        if state is not None and state.state == "finished":
            logger.info("%s: finished", job.name)
        else:
            last = trial.last_result
            stopped = TrialState(
                state="stopped",
                settings=job.settings,
                samples_seen=last.get(SAMPLES),
                value=last.get(job.metric),
                seconds=last.get("time_total_s"),
            )
            write_state(job.out, stopped)
            logger.info("%s: stopped early after %s samples", job.name, stopped.samples_seen)
        # wait for the board, so that the table shown last has the trial's end
        ray.get(self.search.board.end.remote(job.name, "stopped early"))

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        job = self.search.job(trial.config)
        logger.error("%s: failed: %s", job.name, _reason(job))
        ray.get(self.search.board.end.remote(job.name, "failed"))


def _reason(job: TrialJob) -> str:
    state = read_state(job.out)
    return state.reason if state is not None and state.reason is not None else "its process died"
