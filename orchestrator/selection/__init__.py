"""Selection: steps in order, each of which narrows the keep list that reaches it.

A method is one module with two functions: `stages(step)` gives its stages, the last of which makes the keep list, and
`score_column(finished)` the score that it used, if it has one. `filter` and `budget` make keep lists for all of them.
The algorithms are in `pruning`. Imports `clustering` and the layers below it."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from types import ModuleType

from orchestrator.config import BasicStep, ClipScoreStep, Config, MetaClipStep, WfppStep
from orchestrator.data.catalog import Catalog
from orchestrator.data.step import Step
from orchestrator.embedding import embedding_stages
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.engine.stage import Stage
from orchestrator.selection.pool_mask import pool_mask_stage
from orchestrator.selection.score_column import FinishedStep, ScoreColumn
from orchestrator.source import Source

CONTROLS = ("all", "random")
READ_CAPTIONS = (BasicStep, ClipScoreStep, MetaClipStep, WfppStep)


def _module(method: str) -> ModuleType:
    # imported once a step needs it: a run without language detection or clusters needs neither fastText nor faiss
    return import_module(f"{__name__}.{'controls' if method in CONTROLS else method}")


def _stages(step: Step) -> list[Stage]:
    stages: list[Stage] = _module(step.settings.method).stages(step)
    return stages


def caption_reader(config: Config, *, trains: bool) -> str | None:
    """What reads captions first, as a message names it: a step or the training; None if nothing needs them."""
    steps = config.selection.steps
    name = next((name for name in steps if isinstance(config.selection.settings[name], READ_CAPTIONS)), None)
    return f"the step {name}" if name else "training" if trains else None


def selection_stages(config: Config, source: Source, catalog: Catalog) -> list[Stage]:
    """The stages from the catalog to the final keep list, which is the last stage's artifact."""
    stages = [pool_mask_stage(config.store, catalog, has_images=source.has_images, needs_caption=False)]
    embeddings: dict[str, Artifact] = {}
    incoming = stages[0].artifact
    for name in config.selection.steps:
        embedding = config.selection.embedding_of(name)
        if embedding is not None and embedding not in embeddings:
            made = embedding_stages(config, embedding, source, catalog)
            stages += made
            embeddings[embedding] = made[-1].artifact
        step = Step(
            name=name,
            settings=config.selection.settings[name],
            store_uri=config.store,
            source=source,
            catalog=catalog,
            incoming=incoming,
            embedding=embeddings[embedding] if embedding else None,
            num_actors=config.cluster.scoring_actors,
        )
        stages += _stages(step)
        incoming = stages[-1].artifact
    return stages


def selection_keep_lists(record: RunRecord) -> list[tuple[str, Artifact]]:
    """A run's keep lists by stage name, from the pool to the last step: the funnel of counts."""
    return [(stage.name, stage.artifact) for stage in record.stages if stage.role in (Role.POOL, Role.KEEP)]


def final_keep_list(record: RunRecord) -> Artifact | None:
    """The keep list that a run's selection ended with; None if it selected nothing."""
    lists = selection_keep_lists(record)
    return lists[-1][1] if lists else None


def finished_steps(record: RunRecord) -> list[FinishedStep]:
    """The steps of a finished run, in order. A step without a keep list of its own (`all`) passes on the one that
    reached it."""
    incoming = record.find(Role.POOL)
    if incoming is None:
        return []
    catalog = Catalog(record.of_kind("catalog")[0])
    lists = {stage.step: stage.artifact for stage in record.with_role(Role.KEEP)}
    artifacts = {stage.artifact.fingerprint: stage.artifact for stage in record.stages}
    selection, steps = record.config["selection"], []
    for name in selection["steps"]:
        outgoing = lists.get(name, incoming)
        steps.append(
            FinishedStep(
                name=name,
                settings=selection["settings"][name],
                catalog=catalog,
                incoming=incoming,
                outgoing=outgoing,
                artifacts=artifacts,
            )
        )
        incoming = outgoing
    return steps


def score_of(step: FinishedStep) -> ScoreColumn | None:
    """The score by which a finished step ranked its pairs or compared them with a threshold; None if it has none."""
    column: ScoreColumn | None = _module(step.settings["method"]).score_column(step)
    return column


def score_columns(record: RunRecord) -> list[ScoreColumn]:
    """All scores of a run, by step. A single one is named `score`, several are named `score_STEP`."""
    found = [column for column in map(score_of, finished_steps(record)) if column is not None]
    return [replace(column, name="score") for column in found] if len(found) == 1 else found
