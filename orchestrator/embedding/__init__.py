"""Embeddings of the pool, each with a name: computed by an encoder in one pass over the pool (`encode`), or precomputed
and joined with it (`precomputed`).

Imports `data` and the layers below it."""

from __future__ import annotations

from orchestrator.config import ClipRetrievalEmbedding, ColumnEmbedding, Config
from orchestrator.data.catalog import Catalog
from orchestrator.engine.stage import Stage
from orchestrator.source import Source


def embedding_stages(config: Config, name: str, source: Source, catalog: Catalog) -> list[Stage]:
    """The stages that make the embedding `config.embedding[name]` of the whole pool: the artifact of the last one.

    Errors: `UserError` for settings that do not fit the pool or the precomputed files."""
    if isinstance(config.embedding[name], (ClipRetrievalEmbedding, ColumnEmbedding)):
        from orchestrator.embedding.precomputed import precomputed_stages

        return precomputed_stages(config, name, catalog)
    from orchestrator.embedding.encode import encode_stage

    return [encode_stage(config, name, source, catalog)]
