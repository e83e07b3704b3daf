"""Estimate the number of images and texts in the evaluation sets, from file listings and a few samples."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config import Config, EvaluationConfig
from orchestrator.evaluation.samples import open_whole
from orchestrator.evaluation.sets import EvaluationSet, evaluation_sets
from orchestrator.evaluation.tasks import open_tasks
from orchestrator.plan.measurements import SetSize
from orchestrator.source.tar import members
from orchestrator.storage import files

# samples of a set's first tar that give the bytes per image
NUM_SAMPLES = 100
# prompts per class if a set has no templates: OpenAI's templates for ImageNet
NUM_TEMPLATES = 80


def set_sizes(config: Config) -> list[SetSize]:
    """Return the size of every set and task. Errors: those of opening them; `UserError` for a damaged tar."""
    return [_size(one, config.evaluation) for one in _sets(config)]


def _sets(config: Config) -> Iterator[EvaluationSet]:
    yield from evaluation_sets(config).values()
    for task in open_tasks(config.evaluation).found if config.evaluation.tasks else ():
        yield task.test
        if task.train is not None:
            yield task.train


def _size(one: EvaluationSet, settings: EvaluationConfig) -> SetSize:
    sizes = [files.num_bytes(uri) for uri in one.shard_uris]
    images = round(sum(sizes) / _sample_bytes(one.shard_uris[0], sizes[0]))
    templates = len(settings.zero_shot.templates or one.templates) or NUM_TEMPLATES
    return SetSize(
        num_bytes=sum(sizes),
        num_shards=len(sizes),
        images=images,
        texts=len(one.class_names) * templates if one.class_names else images,
        shares_texts=bool(one.class_names),
    )


def _sample_bytes(uri: str, num_bytes: int) -> float:
    """Return the bytes per sample in a tar, from its first samples."""
    keys: dict[str, int] = {}
    with open_whole(uri) as file:
        for member in members(file):
            if len(keys) == NUM_SAMPLES and member.key not in keys:
                # the offset of the next sample ends the last one
                return (member.offset - next(iter(keys.values()))) / NUM_SAMPLES
            keys.setdefault(member.key, member.offset)
    return num_bytes / max(1, len(keys))
