"""The trials of a sweep: one run for each point of the space and each seed, and the controls.

Settings that lead to the same models are one trial."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.config import Config, PhaseConfig, SourceConfig
from orchestrator.config.paths import absolute_paths
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact, fingerprint
from orchestrator.engine.role import TRAINING_ROLES, Role
from orchestrator.engine.stage import Stage
from orchestrator.pipeline import Pipeline, planned
from orchestrator.source import Source, open_source
from orchestrator.storage import files
from orchestrator.sweep.space import configured, ordered, points, settings_of

Control = Literal["full", "random"]
# roles of stages that no other trial shares
TRAINED = (*TRAINING_ROLES, Role.EVALUATE)
TRIALS = "trials"
# controls have other selection steps, so they cannot fine-tune on what a step left
ANY_STEP = {"finetune.after": None}
# the name of a folder has at most 255 bytes, and temporary files beside it have longer names
MAX_NAME, HASH_CHARS = 180, 8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the sweep; `settings`: its value for each dimension, empty for a control."""

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
    def shared_stages(self) -> list[Stage]:
        """The stages before training, which other trials may need too."""
        return [stage for stage in self.pipeline.stages if stage.role not in TRAINED]

    @property
    def num_samples(self) -> int | None:
        """Samples that pre-training sees; None if that depends on a keep list that is not built yet."""
        return _num_samples(self.config.training, self.pipeline.kept)

    @property
    def num_finetune_samples(self) -> int | None:
        """Samples that the fine-tune epoch sees, 0 without one; None as for `num_samples`."""
        captioned = [stage.artifact for stage in self.pipeline.stages if stage.role == Role.CAPTIONED]
        return _num_samples(self.config.finetune, captioned[0]) if captioned else 0

    @property
    def model_uris(self) -> list[str]:
        """The artifacts that it trains and measures; two trials with the same ones are one."""
        return [stage.artifact.uri for stage in self.pipeline.stages if stage.role in TRAINED]


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What a trial's process needs: the whole configuration, the metric that trials are compared by, and the samples
    that the trial will see (None if not known yet)."""

    name: str
    settings: dict[str, Any]
    config: Config
    metric: str
    num_samples: int | None

    @property
    def out(self) -> str:
        """The run's folder."""
        return str(self.config.out)


@dataclass(frozen=True)
class TrialPlanner:
    """Plans the trials of one sweep; `config` is prepared, `sources` are those opened so far.

    Trials over the same source share one listing of its shards."""

    config: Config
    sources: dict[SourceConfig, Source] = field(default_factory=dict)

    def space_trials(self) -> list[Trial]:
        """Return a trial for every point of the space and every seed.

        Errors: `UserError` for a space that is empty, has unknown keys, or values that the config refuses."""
        sweep = self.config.sweep
        return distinct(self.trial_at(point, seed=seed) for seed in sweep.seeds for point in points(sweep))

    def trial_at(self, point: Mapping[str, Any], *, seed: int) -> Trial:
        """Return the trial of one point of the space."""
        point = ordered(self.config.sweep, point)
        settings = settings_of(self.config.sweep, point)
        return self._trial(settings, name=_point_name(point, seed), seed=seed, point=point)

    def full_controls(self) -> list[Trial]:
        """Return a trial for each seed that trains on every pair."""
        sweep = self.config.sweep
        settings = {"selection.steps": ["all"], **ANY_STEP}
        seeds = sweep.seeds if sweep.controls.full else ()
        return [
            self._trial(settings, name=folder_name({"full": "", "seed": seed}), seed=seed, control="full")
            for seed in seeds
        ]

    def random_controls(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return, for every number of pairs that trials of a seed keep, a control with as many random pairs.

        The keep lists of `trials` must be built."""
        sweep = self.config.sweep
        if not sweep.controls.random:
            return []
        counts: dict[int, set[int]] = {seed: set() for seed in sweep.seeds}
        for trial in trials:
            counts[trial.seed].add(KeepList(trial.pipeline.kept).num_pairs)
        every_count = set().union(*counts.values())
        return distinct(
            self._trial(
                {"selection.steps": ["random"], "selection.random.keep_pairs": count, **ANY_STEP},
                name=folder_name({"random": count, "seed": seed}),
                seed=seed,
                control="random",
            )
            for seed, kept in counts.items()
            # a seed has no trials here if they equal those of another seed: its controls then have all sizes
            for count in sorted((kept or every_count) - {0})
        )

    def _trial(
        self,
        settings: Mapping[str, Any],
        *,
        name: str,
        seed: int,
        control: Control | None = None,
        point: dict[str, Any] | None = None,
    ) -> Trial:
        config = _trial_config(self.config, settings, name=name, seed=seed)
        pipeline = planned(config, self._source(config.source))
        return Trial(name=name, settings=point or {}, control=control, seed=seed, config=config, pipeline=pipeline)

    def _source(self, source: SourceConfig) -> Source:
        if source not in self.sources:
            self.sources[source] = open_source(source)
        return self.sources[source]


def job_of(trial: Trial, *, num_concurrent: int) -> TrialJob:
    """Return what a trial's process gets, `num_concurrent` of which run at once.

    A trial that may be stopped early is measured at least once before the scheduler first judges it."""
    config, sweep = trial.config, trial.config.sweep
    samples, finetune_samples = trial.num_samples, trial.num_finetune_samples
    may_stop = sweep.early_stopping == "asha" and trial.control is None
    if may_stop and samples and config.training.evaluate_every_steps is None:
        steps = sweep.asha.grace_fraction * samples / config.training.global_batch_size
        config = configured(config, {"training.evaluate_every_steps": math.ceil(steps)})
    total = None if samples is None or finetune_samples is None else samples + finetune_samples
    return _job(trial.name, trial.settings, config, num_concurrent, total)


def suggested_job(config: Config, point: Mapping[str, Any], *, num_concurrent: int) -> TrialJob:
    """Return what the process of a suggested trial gets, before anything of the trial is planned or computed."""
    seed, point = config.sweep.seeds[0], ordered(config.sweep, point)
    name = _point_name(point, seed)
    changed = _trial_config(config, settings_of(config.sweep, point), name=name, seed=seed)
    return _job(name, point, changed, num_concurrent, None)


def _job(name: str, settings: dict[str, Any], config: Config, num_concurrent: int, num_samples: int | None) -> TrialJob:
    # the training workers of a trial share the cores of a node with those of other trials
    sweep = config.sweep.model_copy(update={"max_concurrent": num_concurrent})
    config = config.model_copy(update={"sweep": sweep})
    return TrialJob(name=name, settings=settings, config=config, metric=sweep.metric, num_samples=num_samples)


def _num_samples(phase: PhaseConfig, kept: Artifact) -> int | None:
    if phase.samples:
        return phase.samples
    return phase.epochs * KeepList(kept).num_pairs if kept.is_complete() else None


def _trial_config(config: Config, settings: Mapping[str, Any], *, name: str, seed: int) -> Config:
    changes = dict(_budget(config)) | dict.fromkeys(config.sweep.seed_keys, seed) | dict(settings)
    out = files.join(str(config.out), TRIALS, name)
    # the value of a dimension may be a path
    changed = absolute_paths(configured(config, changes))
    return changed.model_copy(update={"name": f"{config.name}/{name}", "out": out})


def _budget(config: Config) -> Iterator[tuple[str, Any]]:
    sweep = config.sweep
    if sweep.samples is not None:
        yield "training.samples", sweep.samples
    if sweep.epochs is not None:
        yield from (("training.samples", None), ("training.epochs", sweep.epochs))


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials without those that lead to the same models as an earlier one."""
    found: dict[tuple[str, ...], Trial] = {}
    for trial in trials:
        found.setdefault(tuple(trial.model_uris), trial)
    return list(found.values())


def _point_name(point: Mapping[str, Any], seed: int) -> str:
    return folder_name({**point, "seed": seed})


def folder_name(values: Mapping[str, Any]) -> str:
    """Return a name for a folder, such as `keep_fraction-0.5_seed-0`.

    A hash replaces what cannot stand in a name, so different values always have different folders."""
    words = [f"{name}-{_value_text(value)}".rstrip("-") for name, value in values.items()]
    name = "_".join(map(_safe, words))
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{fingerprint(words)[:HASH_CHARS]}"


def _value_text(value: Any) -> str:
    # 0.5, 1e-05, semdedup+dbp
    if isinstance(value, (list, tuple)):
        return "+".join(map(_value_text, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _safe(word: str) -> str:
    fit = re.sub(r"[^A-Za-z0-9_.+-]+", "_", word)
    return fit if fit == word else f"{fit}-{fingerprint(word)[:HASH_CHARS]}"
