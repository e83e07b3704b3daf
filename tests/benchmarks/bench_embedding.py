"""Measure the overhead of the embedding stage: images/s of the stage and of bare loops with the same encoder.

The bare loops run without Ray. They read the same shards, decode with the same function and run the same encoder with
the same batch size. They use as many torch threads as all actors of the stage together. One loop is a single process;
the other has a PyTorch DataLoader with `NUM_WORKERS` processes that decode in parallel. All figures are the steady
state, between 20% and 100% of the pairs. The start-up of the stage is shown separately. On a GPU the script also shows
the utilisation.

    python tests/benchmarks/bench_embedding.py --encoder lite --pairs 6000
    python tests/benchmarks/bench_embedding.py --encoder vit_b_32 --pairs 1000

With `--put-ms` the script measures the writer alone, with a store where every put takes that long. It compares parts
written one after another with parts written in parallel (vectors of both towers, 512 dimensions, parts of
`--part-pairs`):

    python tests/benchmarks/bench_embedding.py --put-ms 50 --pairs 100000
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import ray
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from orchestrator.clip import model
from orchestrator.config import ClusterConfig, EfficientNetLite0Encoder, Limits, OpenClipEncoder, WebDatasetSource
from orchestrator.config.embedding import EncoderConfig
from orchestrator.data.catalog import Catalog, catalog_stage
from orchestrator.data.image_decode import ImageDecoder, decode
from orchestrator.embedding.actor import Description, build_encoder, describe
from orchestrator.embedding.execution import Pass, num_actors, threads_per_actor
from orchestrator.embedding.pool import Pool, Rows
from orchestrator.embedding.writer import Writer
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import num_done
from orchestrator.source import Part, Source, open_source
from orchestrator.storage import files

DEMO_TABLE = Path(__file__).parents[2] / "orchestrator" / "demo" / "pool" / "train.parquet"
SHARD_PAIRS, SIDE = 500, 256
SKIPPED_SHARE = 0.2
NUM_WORKERS = 2
GPU_POLL_MS = 200
DIM = 512

Marks = list[tuple[float, int]]


def write_pool(folder: Path, num_pairs: int) -> str:
    """Write the demo's images as JPEGs of 256 pixels with their captions, in tars like those of img2dataset."""
    folder.mkdir()
    table = pl.read_parquet(DEMO_TABLE, columns=["image", "caption"])
    for first in range(0, num_pairs, SHARD_PAIRS):
        with tarfile.open(folder / f"{first // SHARD_PAIRS:05d}.tar", "w") as tar:
            for number in range(first, min(first + SHARD_PAIRS, num_pairs)):
                data, caption = table.row(number % len(table))
                out = io.BytesIO()
                Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE)).save(out, "JPEG", quality=95)
                for ending, content in (("jpg", out.getvalue()), ("txt", (caption or "").encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder)


class Stream(IterableDataset):
    """Batches of pixels and captions. With N loader processes, each process takes every N-th shard."""

    def __init__(self, source: Source, parts: list[Part], decoder: ImageDecoder, batch_size: int):
        self.source, self.parts, self.decoder, self.batch_size = source, parts, decoder, batch_size

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[str]]]:
        worker = get_worker_info()
        crop, waiting = self.decoder.cropper(), list[tuple[np.ndarray, str]]()
        for part in self.parts[worker.id :: worker.num_workers] if worker else self.parts:
            table = self.source.catalog(part).table
            for data, caption in zip(self.source.images(part, table), table["caption"].to_pylist(), strict=True):
                pixels = decode(data or b"", size=self.decoder.size, crop=crop, max_pixels=self.decoder.max_pixels)
                waiting.append((pixels, caption))
                if len(waiting) == self.batch_size:
                    yield np.stack([one for one, _ in waiting]), [text for _, text in waiting]
                    waiting = []
        if waiting:
            yield np.stack([one for one, _ in waiting]), [text for _, text in waiting]


def bare_loop(settings: EncoderConfig, uri: str, decoder: ImageDecoder, num_threads: int, num_workers: int) -> Marks:
    """Embed the pool in this process. Return pairs of (time, number of pairs embedded so far)."""
    torch.set_num_threads(num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = build_encoder(settings).place(device, settings.precision)
    source = open_source(WebDatasetSource(uri=uri))
    stream = Stream(source, source.parts(), decoder, settings.batch_size)
    fork = "fork" if num_workers else None
    marks, vectors = [(time.monotonic(), 0)], []
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers, multiprocessing_context=fork)
    for pixels, captions in loader:
        images = torch.as_tensor(pixels).permute(0, 3, 1, 2)
        vectors.append(encoder.encode_images(images).half())
        if "text" in encoder.dims:
            vectors.append(encoder.encode_texts(captions).half())
        marks.append((time.monotonic(), marks[-1][1] + len(pixels)))
    return marks


def stage_marks(
    settings: EncoderConfig, uri: str, decoder: ImageDecoder, described: Description, scratch: Path
) -> Marks:
    """Run the stage. Return pairs of (time, number of pairs that have reached the writer)."""
    source = open_source(WebDatasetSource(uri=uri))
    read = catalog_stage(str(scratch / "store"), source, Limits())
    read.build(Display())
    dims = described.dims
    pool = Pool(
        source=source,
        parts=tuple(source.parts()),
        catalog=Catalog(read.artifact),
        towers=tuple(dims),
        decoder=decoder,
        tokenize=described.tokenize,
    )
    artifact = Artifact.of(str(scratch / "store"), "embedding", version=1)
    marks = [(time.monotonic(), 0)]
    for num_rows in Pass(artifact, settings, pool, dims).run(range(len(pool.parts))):
        marks.append((time.monotonic(), marks[-1][1] + num_rows))
    return marks


def steady(marks: Marks) -> tuple[float, float]:
    """Return pairs/s after the first 20%, and the start-up: the seconds that the first 20% took beyond that rate."""
    total = marks[-1][1]
    began, first = next(mark for mark in marks if mark[1] >= SKIPPED_SHARE * total)
    rate = (total - first) / (marks[-1][0] - began)
    return rate, (began - marks[0][0]) - first / rate


class GpuUse(threading.Thread):
    """A thread that samples the utilisation of the GPUs, in percent, until `mean` is called."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={GPU_POLL_MS}"]
        self.process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        """Read samples until the nvidia-smi process ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.samples.append((time.monotonic(), float(line)))

    def mean(self, marks: Marks) -> float:
        """Stop sampling. Return the mean utilisation over the steady state, in percent."""
        self.process.terminate()
        self.join()
        began = next(at for at, done in marks if done >= SKIPPED_SHARE * marks[-1][1])
        return float(np.mean([use for at, use in self.samples if began <= at <= marks[-1][0]]))


def vectors_of(num_pairs: int, part_pairs: int, batch_size: int) -> Iterator[Rows]:
    """Yield batches as embedders send them: in order, across the borders of parts."""
    block = np.random.default_rng(0).normal(size=(batch_size, DIM)).astype(np.float16)
    for first in range(0, num_pairs, batch_size):
        part, row = np.divmod(np.arange(first, min(first + batch_size, num_pairs)), part_pairs)
        texts = {name: np.full(len(part), "", object) for name in ("key", "problem")}
        towers = {tower: block[: len(part)] for tower in ("image", "text")}
        scores = {"clip_score": np.ones(len(part), np.float32)}
        yield {
            "part": part,
            "row": row,
            "expected": np.full(len(part), part_pairs),
            **texts,
            **towers,
            "clip_score": scores,
        }


def writer_alone(num_pairs: int, part_pairs: int, batch_size: int, put_seconds: float) -> None:
    """Print a row for a writer that waits for each part, and a row for the real writer."""
    num_pairs -= num_pairs % part_pairs
    parts, put, took = range(num_pairs // part_pairs), files.write, list[float]()

    def slow_put(uri: str, data: bytes) -> None:
        time.sleep(put_seconds)
        put(uri, data)

    for name, one_by_one in (("one part after another", True), ("parallel puts", False)):
        with tempfile.TemporaryDirectory() as folder, patch.object(files, "write", slow_put):
            artifact = Artifact.of(folder, "embedding", version=1)
            write = Writer(artifact, (part_pairs,) * len(parts), {"image": DIM, "text": DIM}, parts)
            # a restarted writer waits for its writes at every call
            write.has_restarted = one_by_one
            began = time.monotonic()
            for batch in vectors_of(num_pairs, part_pairs, batch_size):
                write(batch)
            took.append(time.monotonic() - began)
            assert num_done(artifact) == len(parts)
        rates = f"{len(parts) / took[-1]:.1f} parts/s | {num_pairs / took[-1]:,.0f} pairs/s | {took[0] / took[-1]:.1f}"
        print(f"| {name} | {rates} |", flush=True)


def settings_of(encoder: str, scratch: Path, batch_size: int) -> EncoderConfig:
    """Return the settings of the encoder. ViT-B-32 gets random weights: their arithmetic costs the same."""
    if encoder == "lite":
        return EfficientNetLite0Encoder(batch_size=batch_size)
    sizes: dict[str, Any] = {"image_size": None, "context_length": None}
    model.save(model.build(name="ViT-B-32", config=None, pretrained=None, seed=0, **sizes), scratch / "vit_b_32")
    return OpenClipEncoder(model=str(scratch / "vit_b_32"), pretrained=None, batch_size=batch_size)


def alone(function: Any, environment: Mapping[str, str]) -> Any:
    """Call a function in a new process, so that its memory holds nothing else. Return the result."""
    with patch.dict(os.environ, environment), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function).result()


def main() -> None:
    """Print a Markdown row for each way of embedding, in every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=["lite", "vit_b_32"], default="lite")
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--put-ms", type=float, help="measure the writer alone, with puts that take this long")
    parser.add_argument("--part-pairs", type=int, default=1000)
    asked = parser.parse_args()
    if asked.put_ms is not None:
        writer_alone(asked.pairs, asked.part_pairs, asked.batch_size, asked.put_ms / 1000)
        return
    with tempfile.TemporaryDirectory() as folder:
        uri = write_pool(Path(folder) / "pool", asked.pairs)
        settings = settings_of(asked.encoder, Path(folder), asked.batch_size)
        for number in range(asked.rounds):
            one_round(asked.encoder, settings, uri, Path(folder) / f"round{number}")


def one_round(encoder: str, settings: EncoderConfig, uri: str, scratch: Path) -> None:
    """Measure the stage, then each bare loop."""
    described: Description = alone(partial(describe, settings), {})
    decoder = ImageDecoder(*described.image_input, max_pixels=settings.max_image_pixels)
    ray_cluster.connect(ClusterConfig())
    num_threads = num_actors() * threads_per_actor()
    environment = {} if ray_cluster.num_gpus() else ray_cluster.CPU_ALLOCATOR
    use = GpuUse() if ray_cluster.num_gpus() else None
    if use:
        use.start()
    marks = stage_marks(settings, uri, decoder, described, scratch)
    ours, start = steady(marks)
    gpu_use = f", GPU {use.mean(marks):.0f}%" if use else ""
    print(f"| {encoder} | stage | {ours:.1f}/s | start {start:.1f} s{gpu_use} |", flush=True)
    ray.shutdown()
    for num_workers, name in ((0, "one process"), (NUM_WORKERS, f"DataLoader of {NUM_WORKERS}")):
        loop = partial(bare_loop, settings, uri, decoder, num_threads, num_workers)
        bare, _ = steady(alone(loop, environment))
        print(f"| {encoder} | {name} | {bare:.1f}/s | stage / bare {ours / bare:.2f} |", flush=True)


if __name__ == "__main__":
    main()
