"""The embedded pool as a run's source: written into the store as LAION-shaped shards, so that the demo takes the road
that a user's own shards take."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config import Config, DemoSource, MetaClipStep, WebDatasetSource
from orchestrator.errors import UserError
from orchestrator.storage import files

DEMO = "demo"
METADATA_PATH = Path(__file__).parent / "pool" / "metadata.txt"


def embed_demo(config: Config) -> Config:
    """The config with the demo source and the evaluation sets named `demo` replaced by shards in the store, and the
    metadata named `demo` by the shipped entries.

    Errors: `UserError` when the store is not on this machine's disk."""
    config = _with_metadata(config)
    sets = config.evaluation
    wants_set = DEMO in (sets.zero_shot.uri, sets.retrieval.uri)
    if not isinstance(config.source, DemoSource) and not wants_set:
        return config
    if not files.is_local(config.store):
        raise UserError(
            f"the demo writes its shards into the store, which must be a local folder; got store={config.store}"
        )
    from orchestrator.demo.shards import write_shards

    per_shard = config.source.pairs_per_shard if isinstance(config.source, DemoSource) else 1000
    pool = write_shards(files.join(config.store, f"demo-{per_shard}"), pairs_per_shard=per_shard)
    zero_shot = pool.zero_shot_uri if sets.zero_shot.uri == DEMO else sets.zero_shot.uri
    retrieval = pool.retrieval_uri if sets.retrieval.uri == DEMO else sets.retrieval.uri
    sets = sets.model_copy(
        update={
            "zero_shot": sets.zero_shot.model_copy(update={"uri": zero_shot}),
            "retrieval": sets.retrieval.model_copy(update={"uri": retrieval}),
        }
    )
    source = config.source
    if isinstance(source, DemoSource):
        source = WebDatasetSource(uri=pool.train_uri, limits=source.limits)
    return config.model_copy(update={"source": source, "evaluation": sets})


def _with_metadata(config: Config) -> Config:
    named = {
        name: step.model_copy(update={"metadata": str(METADATA_PATH)})
        for name, step in config.selection.settings.items()
        if isinstance(step, MetaClipStep) and step.metadata == DEMO
    }
    selection = config.selection.model_copy(update={"settings": {**config.selection.settings, **named}})
    return config.model_copy(update={"selection": selection})
