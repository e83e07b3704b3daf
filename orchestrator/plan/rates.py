"""Measure the rates that whole stages do not show: training, decoding, the forward pass and the embedding writer.

Training runs a few steps of each phase. Its reading is ahead when the steps begin, so the rate of decoding is measured
separately. All measurements use the code of training, evaluation and embedding, in Ray tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from orchestrator.clip.tokens import ClipCaptions
from orchestrator.config import Config
from orchestrator.config.embedding import Tower
from orchestrator.data.catalog import Catalog
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json_lines
from orchestrator.engine.console import Display
from orchestrator.engine.stage import Stage
from orchestrator.plan import probe_config
from orchestrator.plan.measurements import ForwardPass, MeasuredPhase, Measurements
from orchestrator.plan.pace import STEP_PAIRS_CPU, STEP_PAIRS_GPU, TrainingPace, second_call
from orchestrator.source import PAIR_COLUMNS, Source, Status
from orchestrator.storage import files
from orchestrator.training.decoding import Decoding, decode_block

# the share of logged steps that count as warm-up
WARM_UP_SHARE = 0.25
NUM_DECODED = 256
# images and captions in a forward pass; a GPU needs more of them to be busy
NUM_ENCODED_CPU, NUM_ENCODED_GPU = 8, 256
# about one shard; one part for each thread of the writer
MAX_ROWS, NUM_PARTS = 10_000, 16
# the tokens of most models; a caption's time does not depend on it
CONTEXT = 77


@dataclass(frozen=True)
class ProbeRun:
    """A reduced config with the source and the catalog that it trains on."""

    config: Config
    source: Source
    catalog: Catalog


def measure_phases(
    run: ProbeRun, phases: Sequence[Stage], whole: Config, measurements: Measurements, display: Display
) -> Iterator[str]:
    """Train the phases of a reduced config and add their pace for the `whole` config; yield each one's name before.

    Also measures the forward pass if there are evaluation sets."""
    from orchestrator.evaluation.models import Models

    by_dropout: dict[float, MeasuredPhase] = {}
    config = run.config
    for stage, phase in zip(phases, (config.training, config.finetune), strict=False):
        # steps of both phases cost the same unless their patch dropout differs
        if phase.patch_dropout not in by_dropout:
            yield stage.name
            stage.build(display)
            full_share = probe_config.share_of_batch(whole, measurements.num_workers)
            seconds = decode_seconds(run, Models(references={"model": stage.artifact.path("model")}).image_size())
            by_dropout[phase.patch_dropout] = _phase(stage.artifact, config, full_share, seconds)
        measurements.phases[stage.name] = by_dropout[phase.patch_dropout]
    if measurements.sets:
        yield "evaluate"
        seconds = measurements.phases[phases[0].name].decode_seconds
        measurements.forward = forward_pass(phases[0].artifact.path("model"), seconds)


def extrapolated(
    run: ProbeRun, phases: Sequence[Stage], whole: Config, measurements: Measurements, pace: TrainingPace
) -> None:
    """Add the pace of the phases for the `whole` config from single steps, until or unless a phase is measured itself.

    On CPUs decoding takes its share of the same cores."""
    workers = measurements.num_workers
    share = probe_config.share_of_batch(whole, workers)
    decoding = decode_seconds(run, pace.image_size)
    seconds = pace.seconds(share)
    if not pace.gpu_bytes:
        seconds += share * decoding * workers / measurements.num_cores
    found = MeasuredPhase(
        samples_per_second=workers * share / seconds,
        num_workers=workers,
        batch_share=STEP_PAIRS_GPU[1] if pace.gpu_bytes else STEP_PAIRS_CPU[1],
        full_share=share,
        peak_bytes=pace.peak_bytes,
        gpu_bytes=pace.gpu_bytes,
        num_bytes=pace.num_bytes,
        decode_seconds=decoding,
        extrapolated=True,
    )
    measurements.phases |= {stage.name: found for stage in phases}


def _phase(artifact: Artifact, config: Config, full_share: int, decode_seconds: float) -> MeasuredPhase:
    lines = read_json_lines(artifact.path("metrics.jsonl"))
    warm = lines[int(len(lines) * WARM_UP_SHARE) :]
    num_workers = artifact.totals["num_workers"]
    gpu_bytes = max(line.get("gpu_memory_bytes", 0) for line in lines)
    # seconds per sample of a step, and the part of them spent waiting for data
    seconds = [1 / line["samples_per_second"] for line in warm]
    waits = [each * line["data_wait_share"] for each, line in zip(seconds, warm, strict=True)]
    # on CPUs decoding and computing share the cores, so waiting for data is part of the pace; and so it is on GPUs that
    # decode: more cores would not shorten it
    waits_for_cores = gpu_bytes > 0 and config.training.decode_in == "tasks"
    spent = sum(seconds) - (sum(waits) if waits_for_cores else 0.0)
    return MeasuredPhase(
        samples_per_second=len(warm) / spent,
        num_workers=num_workers,
        batch_share=probe_config.share_of_batch(config, num_workers),
        full_share=full_share,
        peak_bytes=max(line["memory_bytes"] for line in lines),
        gpu_bytes=gpu_bytes,
        num_bytes=files.num_bytes(artifact.path("model")),
        wait_share=sum(waits) / sum(seconds),
        waits_for_cores=waits_for_cores,
        decode_seconds=decode_seconds,
    )


def decode_seconds(run: ProbeRun, image_size: int) -> float:
    """Return the core seconds to decode an image of the pool to this size and to tokenise its caption."""
    # "DEFAULT": outside the placement group of a sweep's trial
    task: Any = ray.remote(scheduling_strategy="DEFAULT")(_decode_seconds)
    found: float = ray.get(task.remote(run, image_size))
    return found


def _decode_seconds(run: ProbeRun, image_size: int) -> float:
    training = run.config.training
    decoding = Decoding(
        image_size=image_size,
        augmentation=training.augmentation,
        seed=training.seed,
        decode_in=training.decode_in,
        draft_decoding=training.draft_decoding,
        max_image_pixels=training.max_image_pixels,
        captions=ClipCaptions(CONTEXT),
        resize_with=training.resize_with,
    )
    block = _pairs(run.source, run.catalog)
    return second_call(lambda: list(decode_block(block, decoding=decoding)), time.process_time) / max(1, block.num_rows)


def _pairs(source: Source, catalog: Catalog) -> pa.Table:
    """Return some pairs of the first part that is not empty, in the form that decoding gets from reading."""
    parts = catalog.parts_of(source)
    part = next(part for part, rows in zip(parts, catalog.rows_per_part, strict=True) if rows)
    table = catalog.table(part.index, PAIR_COLUMNS)
    usable = np.flatnonzero(table["status"].to_numpy() == Status.OK)[:NUM_DECODED]
    rows = table.take(usable)
    images = pa.array(list(source.images(part, rows)), pa.large_binary())
    columns = {"image": images, "caption": rows["caption"], "key": rows["key"]}
    return pa.table(columns | {"epoch": np.zeros(len(usable), np.int64), "ordinal": usable})


def forward_pass(model_uri: str, decode_seconds: float) -> ForwardPass:
    """Measure the model's forward pass in a process like an evaluation actor."""
    # Ray gives a task without GPUs one thread, as it does the actor
    task: Any = ray.remote(scheduling_strategy="DEFAULT", num_gpus=1 if ray_cluster.num_gpus() else 0)(_forward_pass)
    found: ForwardPass = ray.get(task.remote(model_uri, decode_seconds))
    return found


def _forward_pass(model_uri: str, decode_seconds: float) -> ForwardPass:
    import torch

    from orchestrator.clip.features import encode_images, encode_texts
    from orchestrator.engine.metering import peak_bytes
    from orchestrator.evaluation.models import Models

    clip = Models(references={"model": model_uri}).load()["model"]
    num = NUM_ENCODED_GPU if torch.cuda.is_available() else NUM_ENCODED_CPU
    images = torch.zeros((num, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
    captions = ["a photo of something"] * num
    return ForwardPass(
        image_seconds=second_call(lambda: encode_images(clip, images, batch_size=num), time.perf_counter) / num,
        text_seconds=second_call(lambda: encode_texts(clip, captions, batch_size=num), time.perf_counter) / num,
        decode_seconds=decode_seconds,
        peak_bytes=peak_bytes(),
    )


@dataclass(frozen=True, kw_only=True)
class WriterLoad:
    """Vectors to write: their lengths, the batch size, and the number of rows in a part."""

    dims: Mapping[Tower, int]
    batch_size: int
    rows_per_part: int


def writer_seconds(artifact: Artifact, load: WriterLoad) -> float:
    """Return the wall-clock seconds per pair of an embedding's writer: one process that all vectors pass through.

    The parts are written below `artifact`."""
    task: Any = ray.remote(scheduling_strategy="DEFAULT")(_writer_seconds)
    seconds: float = ray.get(task.remote(artifact, load))
    return seconds


def _writer_seconds(artifact: Artifact, load: WriterLoad) -> float:
    from orchestrator.embedding.writer import Writer

    rows, seconds = min(MAX_ROWS, max(1, load.rows_per_part)), 0.0
    # the first round opens the connections and does not count
    for num_parts in (1, NUM_PARTS):
        writer, started = Writer(artifact, (rows,) * num_parts, load.dims, range(num_parts)), time.perf_counter()
        for part in range(num_parts):
            for start in range(0, rows, load.batch_size):
                writer(_batch(part, np.arange(start, min(rows, start + load.batch_size)), rows, load.dims))
        seconds = time.perf_counter() - started
    return seconds / (rows * NUM_PARTS)


def _batch(part: int, positions: np.ndarray, rows: int, dims: Mapping[Tower, int]) -> dict[str, Any]:
    num = len(positions)
    return {
        "part": np.full(num, part),
        "row": positions,
        "expected": np.full(num, rows),
        "key": np.full(num, "", object),
        "problem": np.full(num, "", object),
        "clip_score": np.zeros(num, np.float32),
        **{tower: np.zeros((num, dim), np.float16) for tower, dim in dims.items()},
    }
