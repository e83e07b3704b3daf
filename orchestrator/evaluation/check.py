"""Check evaluation sets before anything is computed: every tar is whole, and enough samples can be used.

The limit is that of the pool, `source.limits.max_broken_pairs`. Images are not decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from orchestrator.config import Config, Limits
from orchestrator.engine.console import Display
from orchestrator.errors import UserError, one_line
from orchestrator.evaluation.samples import Listing, extensions, list_samples
from orchestrator.evaluation.sets import EvaluationSet, evaluation_sets
from orchestrator.evaluation.tasks import GROUPED_METRICS, Task, open_tasks
from orchestrator.storage.files import StoreError

NUM_THREADS = 8
MAX_EXAMPLES = 3


def check_configured(config: Config, display: Display) -> None:
    """Open and check all sets and tasks of a configuration; show what is left out.

    A task that cannot be measured is skipped later, with its reason. Errors: `UserError` for a set that cannot be
    used, or if no task can be measured."""
    limits = config.source.limits
    check_sets(evaluation_sets(config), limits, display)
    tasks = open_tasks(config.evaluation).found
    reasons = {task.key: reason for task in tasks if (reason := problem_of(task, limits))}
    for task in tasks:
        if task.key in reasons:
            display.warn(f"{task.config.name} will be skipped: {reasons[task.key]}")
    if tasks and len(reasons) == len(tasks):
        first = tasks[0].key
        raise UserError(f"none of the {len(tasks)} tasks can be measured; {first}: {reasons[first]}")


def check_sets(sets: Mapping[str, EvaluationSet], limits: Limits, display: Display) -> None:
    """Check the sets; show how many of their samples are left out. Errors: those of `check_listings`."""
    for name, dataset in sets.items():
        listings = _listings(dataset)
        check_listings(f"evaluation.{name}.uri", dataset, listings, limits)
        num_unusable = sum(listing.num_unusable for listing in listings)
        if num_unusable:
            display.warn(f"{name}: {num_unusable:,} samples are left out ({_examples(listings)})")


def problem_of(task: Task, limits: Limits) -> str | None:
    """Return why a task cannot be measured; None if it can. Errors: `StoreError` if the storage fails."""
    try:
        for split in filter(None, (task.test, task.train)):
            check_listings("", split, _listings(split), limits, needs_group=task.config.metric in GROUPED_METRICS)
    except StoreError:
        # a failed read says nothing about the task
        raise
    except UserError as error:
        return one_line(error).removeprefix(": ")
    return None


def _listings(dataset: EvaluationSet) -> list[Listing]:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(partial(list_samples, dataset), dataset.source.parts()))


def check_listings(
    name: str, dataset: EvaluationSet, listings: Sequence[Listing], limits: Limits, *, needs_group: bool = False
) -> None:
    """Check the samples of a set; `name` is what messages begin with.

    Errors: `UserError` for a set without samples, more unusable samples than allowed, a label without a class, a
    missing group, or captions that are all blank."""
    samples = [sample for listing in listings for sample in listing.samples]
    num_unusable = sum(listing.num_unusable for listing in listings)
    total = len(samples) + num_unusable
    first = dataset.shard_uris[0]
    if not samples or num_unusable > limits.max_broken_pairs * total:
        wanted = (
            "an image and a cls member" if dataset.has_classes else f"an image and a caption ({_captions(dataset)})"
        )
        raise UserError(
            f"{name}: {num_unusable:,} of {total:,} samples cannot be used, at most {limits.max_broken_pairs:.1%} "
            f"allowed ({_examples(listings)}); expected {wanted} for each key, got members {_seen(first)} in {first}; "
            "fix the set or raise source.limits.max_broken_pairs"
        )
    if not dataset.has_classes:
        if not any(sample.caption for sample in samples):
            raise UserError(f"{name}: all {len(samples):,} captions are blank, as that of {samples[0].key} in {first}")
        return
    highest = max(samples, key=lambda sample: sample.label)
    if highest.label >= len(dataset.class_names):
        raise UserError(
            f"{name}: {highest.key} has label {highest.label}, expected 0 to {len(dataset.class_names) - 1}: there are "
            f"{len(dataset.class_names)} class names, one per line"
        )
    num_alone = sum(sample.group < 0 for sample in samples)
    if needs_group and num_alone:
        raise UserError(f"{name}: {num_alone} of {len(samples)} images have no group; expected one in each npy")


def _captions(dataset: EvaluationSet) -> str:
    named = dataset.source.caption_column
    return "txt or json" if named is None else f"in {named}; evaluation.retrieval.caption_column names another place"


def _examples(listings: Sequence[Listing]) -> str:
    examples = [example for listing in listings for example in listing.problems.examples]
    return "; ".join(examples[:MAX_EXAMPLES]) or "its tars are empty"


def _seen(shard_uri: str) -> str:
    return ", ".join(extensions(shard_uri)) or "of no kind"
