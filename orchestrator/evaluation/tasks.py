"""Open benchmark tasks in clip_benchmark's WebDataset layout, which DataComp's evaluation sets use.

A task is a folder with `test/N.tar` (and `train/N.tar`), their number in `nshards.txt`, `classnames.txt` and
`zeroshot_classification_templates.txt`. A task is skipped, with a reason, if its folder is missing or its files lack
what its main metric needs. The reason is hashed into the evaluation's fingerprint, so its text must not change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config import EvaluationConfig, TaskConfig
from orchestrator.errors import UserError
from orchestrator.evaluation.samples import has_member
from orchestrator.evaluation.sets import EvaluationSet, set_of
from orchestrator.source.shards import find_shards
from orchestrator.source.webdataset import ENDINGS
from orchestrator.storage import files, hub
from orchestrator.storage.files import StoreError
from orchestrator.storage.retry import tried

RETRIEVAL_METRIC = "mean_recall@1"
# accuracy of the worst group of images; the group is the first number in a sample's npy, as in DataComp's sets
GROUPED_METRICS = ("acc_wg", "acc_top5_wg", "acc_worst_region")
NOT_IN_THE_LAYOUT = {
    "jaccard_score_10-12": "the layout has no form for its samples, each a cue and the pictures to choose from"
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task with its files; `train` is the split for the linear probe, None if no probe is fitted."""

    key: str
    config: TaskConfig
    test: EvaluationSet
    train: EvaluationSet | None


@dataclass(frozen=True)
class Tasks:
    """A list of tasks: the `found` ones, and the reason for each `skipped` one, by key."""

    found: tuple[Task, ...]
    skipped: Mapping[str, str]


def open_tasks(settings: EvaluationConfig) -> Tasks:
    """Open the configured tasks below `evaluation.root`.

    Errors: `UserError` if none of them can be measured; `StoreError` if the storage fails."""
    found, skipped = [], {}
    root = files.absolute(settings.root or "")
    folders = set(_folders(root)) if settings.tasks else set()
    for key, config in settings.tasks.items():
        try:
            found.append(_open(root, folders, key, config, probe=settings.linear_probe))
        except StoreError:
            # a failed read says nothing about the task
            raise
        except UserError as reason:
            skipped[key] = str(reason)
    if settings.tasks and not found:
        first = next(iter(skipped))
        raise UserError(
            f"evaluation.root={root}: none of the {len(skipped)} tasks can be measured; {first}: {skipped[first]}"
        )
    return Tasks(tuple(found), skipped)


def _folders(root: str) -> list[str]:
    # on the hub, each task may be a dataset of its own
    return tried(lambda: hub.datasets_of(root), root) if hub.is_owner(root) else files.names(root)


def _open(root: str, folders: set[str], key: str, config: TaskConfig, *, probe: bool) -> Task:
    if config.metric in NOT_IN_THE_LAYOUT:
        raise UserError(NOT_IN_THE_LAYOUT[config.metric])
    expected = folder_names(key, config)
    folder = next((name for name in expected if name in folders), None)
    if folder is None:
        raise UserError(f"not there, expected a folder such as {expected[0]}")
    uri = files.join(root, folder)
    is_classification = config.metric != RETRIEVAL_METRIC
    test = _split(uri, "test", needs_classes=is_classification)
    if config.metric in GROUPED_METRICS and not has_member(test.shard_uris[0], "npy"):
        raise UserError(f"{config.metric} needs the group of each picture, an npy beside it, and the tars have none")
    has_train = probe and is_classification and files.exists(files.join(uri, "train"))
    train = _split(uri, "train", needs_classes=True) if has_train else None
    return Task(key=key, config=config, test=test, train=train)


def folder_names(key: str, config: TaskConfig) -> list[str]:
    """Return the possible names of a task's folder: DataComp's, clip_benchmark's, or the key itself."""
    return [name for one in (key, *config.folders) for name in (f"wds_{one}_test", f"wds_{one}", one)]


def _split(folder: str, split: str, *, needs_classes: bool) -> EvaluationSet:
    place = files.join(folder, split)
    shards = find_shards(place, endings=ENDINGS, sidecars=not needs_classes, setting="evaluation.root")
    counted = files.join(place, "nshards.txt")
    if files.exists(counted):
        text = files.read(counted).decode(errors="replace").strip()
        if not re.fullmatch("0*[1-9][0-9]*", text):
            raise UserError(f"{counted}: got {text!r}, expected the number of tars")
        names = {f"{number}{ending}" for number in range(int(text)) for ending in ENDINGS}
        shards = [shard for shard in shards if shard.name in names]
        if len(shards) != int(text):
            raise UserError(f"{place} has {len(shards)} of the {text} tars that its nshards.txt counts")
    return set_of(shards, place, needs_classes=needs_classes)
