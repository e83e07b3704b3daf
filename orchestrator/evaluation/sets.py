"""Open evaluation sets in WebDataset format: tars of image + `cls` (a class index) or image + `txt` (a caption).

Class names are in a text file beside the tar (`NAME.classnames.txt`, one class per line), prompt templates in
`NAME.templates.txt`. clip_benchmark's layout is supported too: `classnames.txt` and
`zeroshot_classification_templates.txt` in the set's folder, with the tars in `test/`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np

from orchestrator.config import EvaluationConfig
from orchestrator.engine.artifact import fingerprint
from orchestrator.errors import UserError
from orchestrator.source.schema import Shard
from orchestrator.source.shards import digest, find_shards, stem
from orchestrator.source.tar import DamagedTar, NotATar, members, open_tar, read_member
from orchestrator.source.webdataset import ENDINGS, IMAGE_EXTENSIONS
from orchestrator.storage import files

CLASS_NAMES = ("classnames.txt",)
TEMPLATES = ("templates.txt", "zeroshot_classification_templates.txt")
ZERO_SHOT = ("top1", "top5", "mean_per_class")
RETRIEVAL = tuple(f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))


class Sample(NamedTuple):
    """An image with its label, caption and group: the first number in its `npy` member, -1 if there is none."""

    key: str
    image: bytes
    label: int
    caption: str
    group: int


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The tars of a set, its class names and templates (empty if it has none), and a hash of all of them."""

    shard_uris: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    identity: str


def open_set(uri: str, *, needs_classes: bool) -> EvaluationSet:
    """Open the set at a URI. Errors: `UserError` if it has no tars, or no class names although they are needed."""
    uri = files.absolute(uri)
    if files.exists(files.join(uri, "test")):
        uri = files.join(uri, "test")
    setting = f"evaluation.{'zero_shot' if needs_classes else 'retrieval'}.uri"
    return set_of(find_shards(uri, endings=ENDINGS, setting=setting), uri, needs_classes=needs_classes)


def set_of(shards: Sequence[Shard], uri: str, *, needs_classes: bool) -> EvaluationSet:
    """Open the set in the given tars. Errors: `UserError`, with `uri`, if class names are needed and missing."""
    names, templates = (_lines(shards[0].uri, kind) if needs_classes else () for kind in (CLASS_NAMES, TEMPLATES))
    if needs_classes and not names:
        raise UserError(
            f"no class names for {uri}: expected {stem(shards[0].name, ENDINGS)}.classnames.txt beside "
            "the tar (a line a class), or classnames.txt in its folder"
        )
    return EvaluationSet(
        shard_uris=tuple(shard.uri for shard in shards),
        class_names=names,
        templates=templates,
        identity=fingerprint([digest(shards), names, templates]),
    )


def evaluation_sets(settings: EvaluationConfig) -> dict[str, EvaluationSet]:
    """Open the configured sets: `zero_shot`, `retrieval`, both or none."""
    return {
        name: open_set(node.uri, needs_classes=name == "zero_shot")
        for name, node in (("zero_shot", settings.zero_shot), ("retrieval", settings.retrieval))
        if node.uri
    }


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
    }


def _lines(shard_uri: str, endings: tuple[str, ...]) -> tuple[str, ...]:
    folder, name = shard_uri.rsplit("/", 1)
    parent = folder.rsplit("/", 1)[0]
    for ending in endings:
        beside = files.join(folder, f"{stem(name, ENDINGS)}.{ending}")
        for place in (beside, files.join(folder, ending), files.join(parent, ending)):
            if files.exists(place):
                return tuple(line.strip() for line in files.read(place).decode().splitlines() if line.strip())
    return ()


@contextmanager
def open_whole(shard_uri: str) -> Iterator[IO[bytes]]:
    """Open a tar of a set, for `members`. Errors: `UserError` if it is damaged, also in the body of the `with`."""
    try:
        with open_tar(shard_uri) as (file, _):
            yield file
    except (DamagedTar, NotATar) as error:
        raise UserError(f"{shard_uri} is damaged; an evaluation set must be whole") from error


def read_samples(shard_uri: str, *, needs_label: bool) -> Iterator[Sample]:
    """Yield the samples of a tar in order.

    Errors: `UserError` for a damaged tar, or a sample without an image, label or caption."""
    fields: dict[str, dict[str, bytes]] = {}
    with open_whole(shard_uri) as file:
        for member in members(file):
            if fields and member.key not in fields:
                yield _sample(shard_uri, *fields.popitem(), needs_label)
            kind = "image" if member.extension in IMAGE_EXTENSIONS else member.extension
            fields.setdefault(member.key, {})[kind] = read_member(file, member)
    if fields:
        yield _sample(shard_uri, *fields.popitem(), needs_label)


def _sample(shard_uri: str, key: str, found: dict[str, bytes], needs_label: bool) -> Sample:
    wanted = ("image", "cls" if needs_label else "txt")
    missing = [kind for kind in wanted if kind not in found]
    if missing:
        raise UserError(f"{shard_uri}/{key} has no {' and no '.join(missing)} member; expected {' and '.join(wanted)}")
    label = found.get("cls", b"0").decode().strip()
    if not label.isdigit():
        raise UserError(f"{shard_uri}/{key}: got class {label!r}, expected an index from 0")
    caption = found.get("txt", b"").decode(errors="replace").strip()
    return Sample(key, found["image"], int(label), caption, _group(shard_uri, key, found.get("npy")))


def _group(shard_uri: str, key: str, npy: bytes | None) -> int:
    if npy is None:
        return -1
    try:
        first = np.ravel(np.load(io.BytesIO(npy), allow_pickle=False)).astype(float)[0]
    except (ValueError, IndexError, EOFError) as error:
        raise UserError(f"{shard_uri}/{key}.npy: expected an array of numbers that starts with the group") from error
    return int(first) if np.isfinite(first) else -1


def has_member(shard_uri: str, extension: str) -> bool:
    """Whether the first sample of a tar has a member with this extension. Errors: `UserError` for a damaged tar."""
    first = None
    with open_whole(shard_uri) as file:
        for member in members(file):
            first = first or member.key
            if member.key != first or member.extension == extension:
                return member.key == first
    return False
