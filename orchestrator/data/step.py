"""The inputs that every selection method gets."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import StepConfig
from orchestrator.data.catalog import Catalog
from orchestrator.engine.artifact import Artifact
from orchestrator.source import Source


@dataclass(frozen=True, kw_only=True)
class Step:
    """One selection step: its settings and its inputs.

    `source` is the pool, for a step that needs more than its catalog. `incoming` is the keep list of the step before;
    it may not be computed yet. `embedding` is the embedding that the settings name, if they name one. `num_actors` is
    the size of the actor pool; None means one actor per CPU."""

    name: str
    settings: StepConfig
    store_uri: str
    source: Source
    catalog: Catalog
    incoming: Artifact
    num_actors: int | None
    embedding: Artifact | None = None
