"""Measure the cost of orchestration: samples/s of the pre-training phase and of a bare loop, one after the other.

The bare loop has the same model, loss, optimiser, precision, batch and number of gloo processes. It reads and decodes
the same pool through a PyTorch DataLoader. It has no Ray, no checkpoints, no fixed sample order and no log. Both
figures are the steady state, without the first `SKIPPED` samples.

    python tests/benchmarks/bench_training.py --epochs 4
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from orchestrator.cli import compose_config
from orchestrator.clip import model
from orchestrator.clip.train_step import Batch, TrainStep
from orchestrator.config import Config
from orchestrator.data.catalog import Catalog
from orchestrator.data.image_decode import decode, random_resized_crop
from orchestrator.data.keep_list import KeepList
from orchestrator.engine import ray_cluster
from orchestrator.engine.run_record import RunRecord
from orchestrator.pipeline import prepare
from orchestrator.selection import final_keep_list
from orchestrator.source import open_source
from orchestrator.training.job import recipe_of

SKIPPED = 5_000
NUM_WORKERS = 2
PORT = "29571"


class Pairs(Dataset):
    """The kept pairs, read and decoded one by one with the functions that reading tasks use."""

    def __init__(self, config: Config, record: RunRecord):
        self.config, self.source = config, open_source(config.source)
        self.parts = self.source.parts()
        keep, self.catalog = KeepList(final_keep_list(record)), Catalog(record.of_kind("catalog")[0])
        self.places = [
            (index, row)
            for index, rows in enumerate(self.catalog.rows_per_part)
            for row in np.flatnonzero(keep.mask(index, rows)).tolist()
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, ordinal: int) -> tuple[np.ndarray, str]:
        index, row = self.places[ordinal]
        columns = ("key", "caption", "status", "image_offset", "image_size")
        pair = self.catalog.table(index, columns).slice(row, 1)
        data = next(iter(self.source.images(self.parts[index], pair)))
        shape = self.config.training.augmentation
        crop = partial(random_resized_crop, scale=shape.scale, ratio=shape.ratio, seed=0, epoch=0, ordinal=ordinal)
        size = self.config.model.config["vision_cfg"]["image_size"]
        pixels = decode(data, size=size, crop=crop, max_pixels=self.config.training.max_image_pixels)
        return pixels, pair["caption"][0].as_py()


def bare_worker(rank: int, config: Config, record: RunRecord, epochs: int, out: str) -> None:
    """Run one DDP process of the bare loop. Rank 0 writes the steady samples/s to `out`."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    dist.init_process_group("gloo", rank=rank, world_size=NUM_WORKERS)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // NUM_WORKERS))
    settings, made = config.training, config.model
    clip = model.build(
        name=made.name, config=made.config, pretrained=None, image_size=None, context_length=None, seed=0
    )
    train_step = TrainStep(
        clip, recipe_of(settings, settings), device=torch.device("cpu"), rank=rank, num_ranks=NUM_WORKERS
    )

    def collate(rows: list[tuple[np.ndarray, str]]) -> Batch:
        images = torch.from_numpy(np.stack([pixels for pixels, _ in rows])).permute(0, 3, 1, 2)
        return Batch(
            images=images,
            texts=clip.tokenizer([text for _, text in rows]),
            valid=torch.ones(len(rows), dtype=torch.bool),
        )

    pairs = Pairs(config, record)
    loader = DataLoader(
        pairs,
        batch_size=settings.global_batch_size // NUM_WORKERS,
        collate_fn=collate,
        drop_last=True,
        sampler=DistributedSampler(pairs, NUM_WORKERS, rank, drop_last=True),
        num_workers=1,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    seen, counted, mark = 0, 0, 0.0
    for _ in range(epochs):
        for batch in loader:
            train_step.run(batch, lr=settings.lr, step=seen // settings.global_batch_size)
            seen += settings.global_batch_size
            if seen >= SKIPPED and not mark:
                mark, counted = time.monotonic(), seen
    if rank == 0:
        Path(out).write_text(str((seen - counted) / (time.monotonic() - mark)))
    dist.destroy_process_group()


class Orchestrated(NamedTuple):
    """The pace of `run`'s pre-training phase.

    `samples_per_second` is the steady state, and `data_wait_share` the share of a step that waits for data.
    `fixed_seconds` is the rest of the command's time: Ray, actors, stages, the first batches."""

    samples_per_second: float
    data_wait_share: float
    fixed_seconds: float


def overrides_of(scratch: Path, settings: list[str]) -> list[str]:
    """Return overrides for the demo with pre-training only, in a folder."""
    return [
        "+exp=demo",
        f"out={scratch / 'out'}",
        f"store={scratch / 'store'}",
        f"training.num_workers={NUM_WORKERS}",
        "training.checkpoint_every_steps=100000",
        "training.checkpoint_every_minutes=null",
        "finetune.enabled=false",
        "evaluation.zero_shot.uri=null",
        "evaluation.retrieval.uri=null",
        *settings,
    ]


def orchestrated(scratch: Path, settings: list[str]) -> Orchestrated:
    """Run the command with these settings. Return its pace."""
    started = time.monotonic()
    command = [sys.executable, "-m", "orchestrator", "run", *overrides_of(scratch, settings)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - started
    lines = next((scratch / "store" / "pretrain").glob("*/metrics.jsonl")).read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    steady = [record for record in curve if record["samples_seen"] > SKIPPED]
    seconds: Any = sum(1 / record["samples_per_second"] for record in steady)
    waited = sum(record["data_wait_share"] / record["samples_per_second"] for record in steady)
    rate = len(steady) / seconds
    return Orchestrated(rate, waited / seconds, wall - curve[-1]["samples_seen"] / rate)


def main() -> None:
    """Print one Markdown row per round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            settings = [f"training.epochs={asked.epochs}"]
            ours = orchestrated(scratch, settings)
            config = prepare(compose_config(overrides_of(scratch, settings)))
            record = RunRecord.read(str(scratch / "out"))
            # the bare loop gets the allocator of the workers, too
            with patch.dict(os.environ, ray_cluster.CPU_ALLOCATOR):
                mp.spawn(bare_worker, (config, record, asked.epochs, str(scratch / "bare")), nprocs=NUM_WORKERS)
            bare = float((scratch / "bare").read_text())
        print(
            f"| pre-training, demo model | {ours.samples_per_second:,.0f} samples/s | {bare:,.0f} samples/s | "
            f"{ours.samples_per_second / bare:.2f} | {ours.data_wait_share:.1%} of a step waits for data | "
            f"{ours.fixed_seconds:.0f} s fixed |",
            flush=True,
        )


if __name__ == "__main__":
    main()
