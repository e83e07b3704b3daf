"""The embedding by an encoder as a stage: its inputs, passes over the missing parts, and the limit on bad pairs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import xxhash
from ray.exceptions import RayTaskError

from orchestrator.config import Config, OpenClipEncoder, TimmEncoder
from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.data.catalog import Catalog
from orchestrator.data.image_decode import ImageDecoder
from orchestrator.embedding.actor import Description, describe
from orchestrator.embedding.execution import Pass
from orchestrator.embedding.pool import Pool
from orchestrator.embedding.vectors import BOTH_VERSION, embedding_totals
from orchestrator.engine import gpus
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display, StageProgress
from orchestrator.engine.parts import Summary, done_summaries
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, PairFlow, Size, Stage
from orchestrator.engine.stopwatch import Stopwatch
from orchestrator.errors import UserError
from orchestrator.source import Source
from orchestrator.storage import files

logger = logging.getLogger(__name__)
VERSION = 1
# read at once when a file of weights is hashed
HASH_BYTES = 2**24
# settings that do not change the vectors, so they are no part of the fingerprint
NOT_IDENTITY = {"batch_size", "max_bad_pairs", "compile"}
# settings that are part of the fingerprint unless they have this value, which earlier versions computed
DEFAULTS = {"draft_decoding": False}
# passes in a row that complete no part: a writer that dies at the end of a short pass may lose all parts of it
MAX_FRUITLESS = 3


def encode_stage(config: Config, name: str, source: Source, catalog: Catalog) -> Stage:
    """The stage that embeds the whole pool with the encoder `config.embedding[name]`.

    Errors: `UserError` for an image tower and a source without images."""
    settings = config.embedding[name]
    assert isinstance(settings, EncoderConfig)
    settings = _with_absolute_files(settings)
    if settings.precision == "auto":
        # known before anything is computed: it is part of the fingerprint
        settings = settings.model_copy(update={"precision": gpus.native_precision(config.cluster)})
    towers = _towers(name, settings)
    if "image" in towers and not source.has_images:
        raise UserError(
            f"embedding.{name} embeds images, but the source is a caption table, which has none; use only the text "
            f"tower of an open_clip model (embedding.{name}.towers=[text])"
        )
    artifact = Artifact.of(
        config.store,
        "embedding",
        version=VERSION if len(towers) == 1 else BOTH_VERSION,
        catalog=catalog.artifact,
        settings=_identity(settings),
        towers=list(towers),
        files=_digests(settings),
    )
    inputs = " and ".join(f"{tower}s" for tower in towers)
    return Stage(
        name=f"embed, {name}",
        role=Role.EMBED,
        step=name,
        does=f"embed the {inputs} by {getattr(settings, 'model', settings.kind)}",
        artifact=artifact,
        build=BuildEmbedding(artifact, name, settings, towers, source, catalog),
        flow=PairFlow(on_whole_pool=True),
        scaling=CostScaling(num_tasks=partial(_num_batches, settings.batch_size)),
    )


def _identity(settings: EncoderConfig) -> dict[str, Any]:
    found = settings.model_dump(mode="json", exclude={*NOT_IDENTITY, "towers"})
    return {key: value for key, value in found.items() if key not in DEFAULTS or value != DEFAULTS[key]}


def _num_batches(batch_size: int, size: Size) -> int:
    return max(1, -(-size.pairs // batch_size))


@dataclass(frozen=True)
class BuildEmbedding:
    """Builds the vectors of the whole pool."""

    artifact: Artifact
    name: str
    settings: EncoderConfig
    towers: tuple[Tower, ...]
    source: Source
    catalog: Catalog

    def __call__(self, display: Display) -> Artifact:
        """Embeds the missing parts, checks the number of bad pairs, and publishes.

        Errors: `UserError` for an encoder that cannot be built, or for more bad pairs than `max_bad_pairs`."""
        elapsed = Stopwatch(self.artifact)
        described = _describe(self.name, self.settings)
        pool = Pool(
            source=self.source,
            parts=tuple(self.catalog.parts_of(self.source)),
            catalog=self.catalog,
            towers=self.towers,
            decoder=ImageDecoder(*described.image_input, max_pixels=self.settings.max_image_pixels),
            tokenize=described.tokenize,
            draft=self.settings.draft_decoding,
        )
        unit, num_rows = "images" if "image" in self.towers else "captions", sum(self.catalog.rows_per_part)
        with display.stage(f"embed, {self.name}", unit=unit, total=num_rows) as progress:
            summaries = _embed(Pass(self.artifact, self.settings, pool, described.dims), progress, elapsed)
            _check_bad_pairs(self.name, self.settings, summaries)
            totals = embedding_totals(summaries, described.dims)
            self.artifact.publish(totals=totals, parts=summaries, seconds=elapsed.seconds)
            elapsed.remove()
        counts = (num_rows, totals["problems"])
        logger.info("embedding.%s: vectors of %d pairs written; bad pairs by reason: %s", self.name, *counts)
        return self.artifact


def _embed(execution: Pass, progress: StageProgress, elapsed: Stopwatch) -> list[Summary]:
    """Pass over the missing parts until none is missing: a writer that restarted has lost the parts it held."""
    num_parts = len(execution.pool.parts)
    done, fruitless = done_summaries(execution.artifact), 0
    while missing := [index for index in range(num_parts) if index not in done]:
        rows = sum(summary["rows"] for summary in done.values())
        progress.update(rows)
        for num_rows in execution.run(missing):
            rows += num_rows
            progress.update(rows)
            elapsed.save()
        before, done = len(done), done_summaries(execution.artifact)
        fruitless = fruitless + 1 if len(done) == before else 0
        logger.info("pass over %d missing parts: %d of them are complete", len(missing), len(done) - before)
        if fruitless == MAX_FRUITLESS:
            raise RuntimeError(
                f"{fruitless} whole passes over {len(missing)} parts completed none: the writer died each time"
            )
    return [done[index] for index in range(num_parts)]


def _describe(name: str, settings: EncoderConfig) -> Description:
    # in a task: the driver then needs neither the weights nor their memory, and a wrong setting fails before any actor
    # starts
    try:
        # outside the placement group of a sweep's trial, which has no room for the task
        return ray.get(ray.remote(scheduling_strategy="DEFAULT")(describe).remote(settings))
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise UserError(f"embedding.{name}: {error.cause}") from error
        raise


def _check_bad_pairs(name: str, settings: EncoderConfig, summaries: list[Summary]) -> None:
    rows = sum(summary["rows"] for summary in summaries)
    bad = sum(sum(summary["problems"].values()) for summary in summaries)
    if bad > settings.max_bad_pairs * rows:
        examples = [example for summary in summaries for example in summary["examples"]]
        raise UserError(
            f"embedding.{name}: {bad:,} of {rows:,} pairs could not be decoded or embedded, at most "
            f"{settings.max_bad_pairs:.1%} allowed ({'; '.join(examples[:3])}); "
            f"fix the data or raise embedding.{name}.max_bad_pairs"
        )


def _towers(name: str, settings: EncoderConfig) -> tuple[Tower, ...]:
    if not isinstance(settings, OpenClipEncoder):
        return ("image",)
    if not settings.towers:
        raise UserError(f"embedding.{name}.towers is empty: expected image, text or both")
    return tuple(sorted(set(settings.towers)))


def _with_absolute_files(settings: EncoderConfig) -> EncoderConfig:
    # actors run in other working directories
    return settings.model_copy(update={key: files.absolute(place) for key, place in _files(settings).items()})


def _files(settings: EncoderConfig) -> dict[str, str]:
    places: dict[str, str | None] = {}
    if isinstance(settings, OpenClipEncoder):
        places = {"model": settings.model, "pretrained": settings.pretrained}
    elif isinstance(settings, TimmEncoder):
        places = {"checkpoint": settings.checkpoint}
    return {key: place for key, place in places.items() if place is not None and files.is_path(place)}


def _digests(settings: EncoderConfig) -> dict[str, str]:
    # by content: copied weights have the same fingerprint, and other weights at the same path have another one
    digests: dict[str, Any] = {}
    for key, place in _files(settings).items():
        root = Path(place)
        paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        state = xxhash.xxh3_128()
        for path in paths:
            state.update(str(path.relative_to(root)).encode())
            with path.open("rb") as file:
                while data := file.read(HASH_BYTES):
                    state.update(data)
        digests[key] = state.hexdigest()
    return digests
