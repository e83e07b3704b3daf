"""Make the demo pool the source of a run: write it into the store as LAION-shaped shards, like a user's own data."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config import Config, DemoSource, MetaClipStep, WebDatasetSource
from orchestrator.errors import UserError
from orchestrator.storage import files

DEMO = "demo"
METADATA_PATH = Path(__file__).parent / "pool" / "metadata.txt"


def embed_demo(config: Config) -> Config:
    """Return the config with every `demo` replaced by files: the source and the evaluation sets by shards in the store,
    the metadata of MetaCLIP by the list that ships with the package.

    Raises:
        UserError: The store is not a local folder."""
    config = _with_metadata(config)
    sets = config.evaluation
    wants_set = DEMO in (sets.zero_shot.uri, sets.retrieval.uri)
    if not isinstance(config.source, DemoSource) and not wants_set:
        return config
    if not files.is_local(config.store):
        raise UserError(
            f"the demo writes shards into the store, so the store must be a local folder, got store={config.store}"
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
