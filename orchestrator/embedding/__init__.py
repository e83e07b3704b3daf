"""Embeddings by name: computed by an encoder in one pass over the pool, or precomputed and joined with it.

Imports `data` and the layers below it."""

from __future__ import annotations

from orchestrator.config import ClipRetrievalEmbedding, ColumnEmbedding, Config
from orchestrator.data.catalog import Catalog
from orchestrator.engine.stage import Stage
from orchestrator.source import Source


def embedding_stages(config: Config, name: str, source: Source, catalog: Catalog) -> list[Stage]:
    """The stages that make, with the last one's artifact, the embedding `config.embedding[name]` of the whole pool.

    Errors: `UserError` for settings that the pool, or what was brought along, cannot meet."""
    if isinstance(config.embedding[name], (ClipRetrievalEmbedding, ColumnEmbedding)):
        from orchestrator.embedding.precomputed import brought_stages

        return brought_stages(config, name, catalog)
    from orchestrator.embedding.encode import encode_stage

    return [encode_stage(config, name, source, catalog)]
