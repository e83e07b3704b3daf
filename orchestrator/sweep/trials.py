"""The trials of a sweep: a whole run for each point of the space and each seed, and the controls.

Settings that come to the same models are one trial."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from orchestrator.config import Config, PhaseConfig, SourceConfig
from orchestrator.config.paths import absolute_places
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact, fingerprint
from orchestrator.engine.role import TRAINING_ROLES, Role
from orchestrator.engine.stage import Stage
from orchestrator.pipeline import Pipeline, planned
from orchestrator.source import Source, open_source
from orchestrator.storage import files
from orchestrator.sweep.space import configured, ordered, points, settings_of
from orchestrator.sweep.trial_worker import TrialJob

Control = Literal["full", "random"]
TRAINED = (*TRAINING_ROLES, Role.EVALUATE)
TRIALS = "trials"
# a step that only some trials have is no place to fine-tune after
NO_STEP = {"finetune.after": None}
# a folder's name has at most 255 bytes, and what is written beside it a suffix of its own
MAX_NAME, HASH_CHARS = 180, 8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the sweep; `settings` are its values by dimension, none for a control."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    control: Control | None = None
    seed: int
    config: Config
    pipeline: Pipeline

    @property
    def out(self) -> str:
        """The run's folder."""
        return str(self.config.out)

    @property
    def shared(self) -> list[Stage]:
        """Its stages before training, which other trials may need too."""
        return [stage for stage in self.pipeline.stages if stage.role not in TRAINED]

    @property
    def num_samples(self) -> int | None:
        """Samples that pre-training sees; None where only its keep list will tell, and is not there yet."""
        return _samples(self.config.training, self.pipeline.kept)

    @property
    def num_finetune_samples(self) -> int | None:
        """Samples of the fine-tune epoch; None as of pre-training."""
        whole = [stage.artifact for stage in self.pipeline.stages if stage.role == Role.CAPTIONED]
        return _samples(self.config.finetune, whole[0]) if whole else 0

    @property
    def models(self) -> list[str]:
        """What it trains, by fingerprint: two trials with the same are one."""
        return [stage.artifact.uri for stage in self.pipeline.stages if stage.role in TRAINED]


def _samples(phase: PhaseConfig, kept: Artifact) -> int | None:
    if phase.samples:
        return phase.samples
    return phase.epochs * KeepList(kept).num_pairs if kept.is_complete() else None


def space_trials(config: Config) -> list[Trial]:
    """A trial for every point and seed; `config` is prepared.

    Errors: `UserError` for a space that is empty, has unknown keys, or values that the config refuses."""
    sweep = config.sweep
    return distinct(trial_at(config, point, seed=seed) for seed in sweep.seeds for point in points(sweep))


def trial_at(config: Config, point: Mapping[str, Any], *, seed: int) -> Trial:
    """The trial of one point of the space."""
    point = ordered(config.sweep, point)
    name = _point_name(point, seed)
    return _trial(config, settings_of(config.sweep, point), name=name, seed=seed, point=point)


def _point_name(point: Mapping[str, Any], seed: int) -> str:
    return label({**point, "seed": seed})


def job_of(trial: Trial, *, num_concurrent: int) -> TrialJob:
    """What a trial's process gets, `num_concurrent` of which run at once.

    A trial that may be stopped early is evaluated at least once for each stretch that it is sure of."""
    config, sweep = trial.config, trial.config.sweep
    samples, finetune_samples = trial.num_samples, trial.num_finetune_samples
    is_judged = sweep.early_stopping == "asha" and trial.control is None
    if is_judged and samples and config.training.evaluate_every_steps is None:
        steps = sweep.asha.grace_fraction * samples / config.training.global_batch_size
        config = configured(config, {"training.evaluate_every_steps": math.ceil(steps)})
    total = None if samples is None or finetune_samples is None else samples + finetune_samples
    return _job(trial.name, trial.settings, config, num_concurrent, total)


def suggested_job(config: Config, point: Mapping[str, Any], *, num_concurrent: int) -> TrialJob:
    """What the process of a suggested trial gets, before anything of it is planned or computed."""
    seed, point = config.sweep.seeds[0], ordered(config.sweep, point)
    name = _point_name(point, seed)
    own = _trial_config(config, settings_of(config.sweep, point), name=name, seed=seed)
    return _job(name, point, own, num_concurrent, None)


def _job(name: str, settings: dict[str, Any], config: Config, num_concurrent: int, num_samples: int | None) -> TrialJob:
    # workers share the cores of a node with those of other trials
    sweep = config.sweep.model_copy(update={"max_concurrent": num_concurrent})
    config = config.model_copy(update={"sweep": sweep})
    return TrialJob(name=name, settings=settings, config=config, metric=sweep.metric, num_samples=num_samples)


def full_controls(config: Config) -> list[Trial]:
    """Training on every pair, for each seed."""
    if not config.sweep.controls.full:
        return []
    settings = {"selection.steps": ["all"], **NO_STEP}
    seeds = config.sweep.seeds
    return [_trial(config, settings, name=label({"full": "", "seed": s}), seed=s, control="full") for s in seeds]


def random_controls(config: Config, trials: Iterable[Trial]) -> list[Trial]:
    """For every number of pairs that trials of a seed keep, as many random ones with this seed; the trials' keep lists
    are there."""
    if not config.sweep.controls.random:
        return []
    counts: dict[int, set[int]] = {seed: set() for seed in config.sweep.seeds}
    for trial in trials:
        counts[trial.seed].add(KeepList(trial.pipeline.kept).num_pairs)
    return distinct(
        _trial(
            config,
            {"selection.steps": ["random"], "selection.random.keep_pairs": count, **NO_STEP},
            name=label({"random": count, "seed": seed}),
            seed=seed,
            control="random",
        )
        for seed, kept in counts.items()
        # a seed without trials of its own has those of another: it changes nothing but the control
        for count in sorted((kept or set().union(*counts.values())) - {0})
    )


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """The trials without those that come to the same models as an earlier one."""
    found: dict[tuple[str, ...], Trial] = {}
    for trial in trials:
        found.setdefault(tuple(trial.models), trial)
    return list(found.values())


def label(values: Mapping[str, Any]) -> str:
    """A name for a folder: `keep_fraction-0.5_seed-0`. What cannot stand in one is told apart by a hash: two values are
    two folders, however long."""
    words = [f"{name}-{text(value)}".rstrip("-") for name, value in values.items()]
    name = "_".join(map(_word, words))
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{fingerprint(words)[:HASH_CHARS]}"


def text(value: Any) -> str:
    """A value as people write it: 0.5, 1e-05, semdedup+dbp."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(text, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _word(name: str) -> str:
    fit = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name)
    return fit if fit == name else f"{fit}-{fingerprint(name)[:HASH_CHARS]}"


def _trial(
    config: Config,
    settings: Mapping[str, Any],
    *,
    name: str,
    seed: int,
    control: Control | None = None,
    point: dict[str, Any] | None = None,
) -> Trial:
    own = _trial_config(config, settings, name=name, seed=seed)
    pipeline = planned(own, opened(own.source))
    return Trial(name=name, settings=point or {}, control=control, seed=seed, config=own, pipeline=pipeline)


def _trial_config(config: Config, settings: Mapping[str, Any], *, name: str, seed: int) -> Config:
    changes = dict(_budget(config)) | dict.fromkeys(config.sweep.seed_keys, seed) | dict(settings)
    out = files.join(str(config.out), TRIALS, name)
    # a value may be a path
    changed = absolute_places(configured(config, changes))
    return changed.model_copy(update={"name": f"{config.name}/{name}", "out": out})


@lru_cache
def opened(source: SourceConfig) -> Source:
    """The source, listed once for all trials over it: they share its shards. A sweep starts with `cache_clear()`."""
    return open_source(source)


def _budget(config: Config) -> Iterator[tuple[str, Any]]:
    sweep = config.sweep
    if sweep.samples is not None:
        yield "training.samples", sweep.samples
    if sweep.epochs is not None:
        yield from (("training.samples", None), ("training.epochs", sweep.epochs))
