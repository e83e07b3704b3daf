"""Selection: steps in order, each of which narrows the keep list it receives; one module per method.

Imports `clustering` and the layers below it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from orchestrator.config import Config
from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.embedding import embedding_stages
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.engine.stage import Stage
from orchestrator.selection.pool_mask import valid_stage
from orchestrator.source import Source

# a method's module, imported once a step needs it: faiss, fastText and the like are no business of the others
MODULES = {"all": "all_pairs", "random": "random_draw"}


def _method(name: str) -> Callable[[Step], list[Stage]]:
    stages: Callable[[Step], list[Stage]] = import_module(f"{__name__}.{MODULES.get(name, name)}").stages
    return stages


def selection_stages(config: Config, source: Source, catalog: Catalog) -> list[Stage]:
    """The stages from the catalog to the final keep list, which is the last stage's artifact."""
    stages = [valid_stage(config.store, catalog, has_images=source.has_images, needs_caption=False)]
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
            catalog=catalog,
            incoming=incoming,
            embedding=embeddings[embedding] if embedding else None,
            num_actors=config.cluster.scoring_actors,
        )
        stages += _method(step.settings.method)(step)
        incoming = stages[-1].artifact
    return stages


def selection_keep_lists(record: RunRecord) -> list[tuple[str, Artifact]]:
    """A run's keep lists by stage name, from the pool to the last step: the funnel of counts."""
    return [(stage.name, stage.artifact) for stage in record.stages if stage.role in (Role.POOL, Role.KEEP)]


def final_keep_list(record: RunRecord) -> Artifact | None:
    """What a run's selection came to; none where it selected nothing."""
    lists = selection_keep_lists(record)
    return lists[-1][1] if lists else None


def score_columns(record: RunRecord) -> dict[str, tuple[Artifact, KeepList]]:
    """A run's scores by the name their column gets, each with the keep list that reached the step: `score`, or
    `score_1`, `score_2` where more than one step gave scores."""
    lists = {artifact.fingerprint: KeepList(artifact) for artifact in record.of_kind("keep")}
    scored = [(artifact, lists[artifact.made_from["keep"]]) for artifact in record.of_kind("scores")]
    names = ["score"] if len(scored) == 1 else [f"score_{number}" for number in range(1, len(scored) + 1)]
    return dict(zip(names, scored, strict=True))
