"""Selection: steps in order, each narrowing the keep list it is handed. One module a method, all with one signature."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog
from orchestrator.config import Config
from orchestrator.record import RunRecord
from orchestrator.selection import all_pairs, random_draw, wfpp
from orchestrator.selection.valid import CAPTIONED, valid_stage
from orchestrator.source import Source
from orchestrator.stage import Stage
from orchestrator.step import Step

METHODS: dict[str, Callable[[Step], list[Stage]]] = {
    "wfpp": wfpp.stages,
    "random": random_draw.stages,
    "all": all_pairs.stages,
}


def selection_stages(config: Config, source: Source, catalog: Catalog) -> list[Stage]:
    """The stages from the catalog to the final keep list, which is the last stage's artifact."""
    stages = [valid_stage(config.store, catalog, has_images=source.has_images, needs_caption=False)]
    for name in config.selection.steps:
        settings = config.selection.settings[name]
        step = Step(
            name=name,
            settings=settings,
            store_uri=config.store,
            catalog=catalog,
            incoming=stages[-1].artifact,
            num_actors=config.cluster.scoring_actors,
        )
        stages += METHODS[settings.method](step)
    return stages


def selection_keep_lists(record: RunRecord) -> list[tuple[str, Artifact]]:
    """A run's keep lists by stage name, from the pool to the last step: the funnel of counts."""
    return [(stage.name, stage.artifact) for stage in record.stages if stage.kind == "keep" and stage.name != CAPTIONED]


def final_keep_list(record: RunRecord) -> Artifact | None:
    """What a run's selection came to; none where it selected nothing."""
    lists = selection_keep_lists(record)
    return lists[-1][1] if lists else None
