"""The input of a selection step, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import StepConfig
from orchestrator.data.catalog import Catalog
from orchestrator.engine.artifact import Artifact


@dataclass(frozen=True, kw_only=True)
class Step:
    """`incoming` is the keep list that reaches the step and may not be computed yet. `embedding` is the one that the
    settings name. `num_actors` None means one per CPU."""

    name: str
    settings: StepConfig
    store_uri: str
    catalog: Catalog
    incoming: Artifact
    num_actors: int | None
    embedding: Artifact | None = None
