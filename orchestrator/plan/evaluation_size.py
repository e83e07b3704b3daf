"""What the run's models are evaluated on: how many pictures and captions, by the listings of the sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.config import EvaluationConfig
from orchestrator.evaluation.sets import EvaluationSet, evaluation_sets, open_whole
from orchestrator.evaluation.tasks import open_tasks
from orchestrator.source.tar import members
from orchestrator.storage import files

# of a set's first tar: what a picture takes of it is counted by these
NUM_SAMPLES = 100
# prompts of a class where a set has none of its own: OpenAI's for ImageNet
NUM_TEMPLATES = 80


@dataclass(frozen=True, kw_only=True)
class SetSize:
    """Of a set: its tars and their bytes, its images (about), the captions or prompts, and whether every actor embeds
    all of those."""

    num_bytes: int
    num_shards: int
    images: int
    texts: int
    shares_texts: bool


def set_sizes(settings: EvaluationConfig) -> list[SetSize]:
    """Of all sets and tasks. Errors: as of opening them; `UserError` for a damaged tar."""
    return [_size(one, settings) for one in _sets(settings)]


def _sets(settings: EvaluationConfig) -> Iterator[EvaluationSet]:
    yield from evaluation_sets(settings).values()
    for task in open_tasks(settings).found if settings.tasks else ():
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
    """What a sample takes of a tar, by its first ones."""
    keys: dict[str, int] = {}
    with open_whole(uri) as file:
        for member in members(file):
            if len(keys) == NUM_SAMPLES and member.key not in keys:
                # up to where the next one begins
                return (member.offset - next(iter(keys.values()))) / NUM_SAMPLES
            keys.setdefault(member.key, member.offset)
    return num_bytes / max(1, len(keys))
