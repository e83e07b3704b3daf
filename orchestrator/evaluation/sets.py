"""Open evaluation sets in WebDataset format: tars of images with a class index (`cls`) or with captions, which are
where the pool may have them.

Class names are in a text file beside the tar (`NAME.classnames.txt`, one class per line), prompt templates in
`NAME.templates.txt`. clip_benchmark's layout is supported too: `classnames.txt` and
`zeroshot_classification_templates.txt` in the set's folder, with the tars in `test/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config import Config, EvaluationConfig, WebDatasetSource
from orchestrator.engine.artifact import fingerprint
from orchestrator.errors import UserError
from orchestrator.evaluation import text_files
from orchestrator.source import WebDataset
from orchestrator.source.schema import Shard
from orchestrator.source.shards import digest, find_shards, stem
from orchestrator.source.webdataset import ENDINGS
from orchestrator.storage import files, hub

CLASS_NAMES = ("classnames.txt",)
TEMPLATES = ("templates.txt", "zeroshot_classification_templates.txt")
ZERO_SHOT = ("top1", "top5", "mean_per_class")
RETRIEVAL = tuple(f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The tars of a set, its class names and templates (empty if it has none), and a hash of all of them.

    `source` reads the tars as it reads those of a pool."""

    source: WebDataset
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    identity: str

    @property
    def shard_uris(self) -> tuple[str, ...]:
        """The URIs of the tars."""
        return tuple(shard.uri for shard in self.source.shards)

    @property
    def has_classes(self) -> bool:
        """Whether the set is for classification. Otherwise it is for retrieval."""
        return bool(self.class_names)


def open_set(uri: str, *, needs_classes: bool, caption_column: str | None = None) -> EvaluationSet:
    """Open the set at a URI; `caption_column` names what holds the captions, None: usual names.

    Errors: `UserError` if it has no tars, or no class names although they are needed."""
    uri = files.absolute(uri)
    if files.exists(files.join(uri, "test")):
        uri = files.join(uri, "test")
    setting = f"evaluation.{'zero_shot' if needs_classes else 'retrieval'}.uri"
    # a Parquet file beside a tar has captions, which classification does not need
    shards = find_shards(uri, endings=ENDINGS, sidecars=not needs_classes, setting=setting)
    return set_of(shards, uri, needs_classes=needs_classes, caption_column=caption_column)


def set_of(
    shards: Sequence[Shard], uri: str, *, needs_classes: bool, caption_column: str | None = None
) -> EvaluationSet:
    """Open the set in the given tars. Errors: `UserError`, with `uri`, if class names are needed and missing."""
    names = _beside(shards[0].uri, CLASS_NAMES) if needs_classes else None
    if needs_classes and names is None:
        raise UserError(
            f"no class names for {uri}: expected {stem(shards[0].name, ENDINGS)}.classnames.txt beside "
            "the tar (a line a class), or classnames.txt in its folder"
        )
    templates = _beside(shards[0].uri, TEMPLATES) if needs_classes else None
    class_names = text_files.class_names(names) if names else ()
    prompts = text_files.templates(templates) if templates else ()
    source = WebDataset.of(shards, caption_column)
    # only if it is set, so that other sets keep their identity
    named = [] if caption_column is None else [source.caption_column]
    return EvaluationSet(
        source=source,
        class_names=class_names,
        templates=prompts,
        identity=fingerprint([digest(shards), class_names, prompts, *named]),
    )


def evaluation_sets(config: Config) -> dict[str, EvaluationSet]:
    """Open the configured sets: `zero_shot`, `retrieval`, both or none."""
    zero_shot, retrieval = config.evaluation.zero_shot, config.evaluation.retrieval
    found: dict[str, EvaluationSet] = {}
    if zero_shot.uri:
        found["zero_shot"] = open_set(zero_shot.uri, needs_classes=True)
    if retrieval.uri:
        # a held-out part of the pool has its captions where the pool has them
        of_pool = config.source.caption_column if isinstance(config.source, WebDatasetSource) else None
        named = retrieval.caption_column or of_pool
        found["retrieval"] = open_set(retrieval.uri, needs_classes=False, caption_column=named)
    return found


def metrics(settings: EvaluationConfig) -> list[str]:
    """Return the names of all metrics on the configured sets, as `SET/METRIC`."""
    names = [f"zero_shot/{name}" for name in ZERO_SHOT] if settings.zero_shot.uri else []
    return names + ([f"retrieval/{name}" for name in RETRIEVAL] if settings.retrieval.uri else [])


def named_results(settings: EvaluationConfig, measured: Mapping[str, Any]) -> dict[str, float]:
    """Flatten a model's results to `SET/METRIC` and, if there are benchmark tasks, `TASK/METRIC` and `average/GROUP`.

    Of each task only the main metric is included."""
    found = {name: measured[name.split("/")[0]][name.split("/")[1]] for name in metrics(settings)}
    tasks = measured.get("tasks", {"results": [], "averages": []})
    found |= {f"{task['key']}/{task['metric']}": task["value"] for task in tasks["results"]}
    return found | {f"average/{row['name']}": row["value"] for row in tasks["averages"] if row["value"] is not None}


def measured_on(settings: EvaluationConfig, sets: Mapping[str, EvaluationSet]) -> dict[str, Any]:
    """Return the part of the fingerprint that does not come from the model: the sets and the prompt templates."""
    return {
        "templates": settings.zero_shot.templates and list(settings.zero_shot.templates),
        "sets": {name: one.identity for name, one in sets.items()},
        **precision_of(settings),
    }


def precision_of(settings: EvaluationConfig) -> dict[str, str]:
    """Return the part of a fingerprint for the precision; fp32 has none, as earlier versions had no other precision."""
    return {} if settings.precision == "fp32" else {"precision": settings.precision}


def _beside(shard_uri: str, endings: tuple[str, ...]) -> str | None:
    folder, name = shard_uri.rsplit("/", 1)
    parent = folder.rsplit("/", 1)[0]
    # a dataset on the hub has no folder above it
    folders = [folder] if hub.is_owner(parent) else [folder, parent]
    for ending in endings:
        beside = files.join(folder, f"{stem(name, ENDINGS)}.{ending}")
        for place in (beside, *(files.join(one, ending) for one in folders)):
            if files.exists(place):
                return place
    return None
