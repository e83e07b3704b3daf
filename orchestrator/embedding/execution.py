"""One pass of Ray Data over parts: read, decode and tokenise, embed, write.

A decoded block has exactly one batch of rows, across the borders of parts, so all batches but the last are full. The
order of reading is kept from end to end: the writer sees one part after another, and the vectors of a part do not
depend on timing. Ray Data bounds what waits between two operators by a share of the object store, and stops reading at
that bound. The writer holds only the parts of the batches that the actors work on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.embedding.actor import Embedder
from orchestrator.embedding.pool import BLOCK_BYTES, Pool, decode_rows, read_part
from orchestrator.embedding.writer import Writer
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.metering import current_meter

READ_CPUS, DECODE_CPUS, WRITE_CPUS = 0.25, 0.75, 0.1
# reserved by all actors together on a cluster without GPUs: one CPU must still have room for a decoding task
CPU_SHARE = 1 / 8
# the threads of an actor wait for each other at every layer; actors of one thread never wait
ACTOR_THREADS = 1


@dataclass(frozen=True)
class Pass:
    """A pass and what it needs; `dims` are the lengths of the vectors of the encoder."""

    artifact: Artifact
    settings: EncoderConfig
    pool: Pool
    dims: Mapping[Tower, int]

    def run(self, parts: Sequence[int]) -> Iterator[int]:
        """Embeds and writes the given parts; yields the number of rows of each batch that the writer has received."""
        reference, batch_size, meter = ray.put(self.pool), self.settings.batch_size, current_meter()
        dataset = ray.data.from_items([{"part": index} for index in parts], override_num_blocks=len(parts))
        # set on this dataset alone: smaller blocks start sooner, and less data moves to the node of a batch
        dataset.context.execution_options.preserve_order = True
        dataset.context.target_max_block_size = BLOCK_BYTES
        rows = dataset.map_batches(
            partial(read_part, reference=reference, rows_per_block=batch_size), batch_size=1, num_cpus=READ_CPUS
        )
        decoded = rows.map_batches(
            meter.around(partial(decode_rows, reference=reference)),
            batch_size=batch_size,
            batch_format="pyarrow",
            num_cpus=DECODE_CPUS,
        )
        written = (
            decoded.repartition(target_num_rows_per_block=batch_size, strict=True)
            .map_batches(
                Embedder,
                fn_constructor_args=(self.settings, threads_per_actor(), meter),
                batch_size=batch_size,
                compute=ray.data.ActorPoolStrategy(
                    size=min(num_actors(), self._num_batches(parts)),
                    enable_true_multi_threading=batches_in_flight() > 1,
                ),
                # a measured call must have the process for itself
                max_concurrency=batches_in_flight() if meter.total is None else 1,
                **actor_share(),
            )
            .map_batches(
                Writer,
                fn_constructor_args=(self.artifact, self.pool.catalog.rows_per_part, self.dims, parts),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=WRITE_CPUS,
            )
        )
        for row in written.iter_rows():
            yield row["rows"]

    def _num_batches(self, parts: Sequence[int]) -> int:
        rows = sum(self.pool.catalog.rows_per_part[index] for index in parts)
        return max(1, math.ceil(rows / self.settings.batch_size))


def num_actors() -> int:
    """The number of actors: one for each GPU; without GPUs one for every `ACTOR_THREADS` cores."""
    return ray_cluster.num_gpus() or max(1, math.ceil(ray_cluster.num_cores() / ACTOR_THREADS))


def threads_per_actor() -> int:
    """torch threads of an actor on CPUs: together the actors have a thread for every core."""
    return max(1, ray_cluster.num_cores() // num_actors())


def batches_in_flight() -> int:
    """The batches that an actor works on at once: on a GPU the next one is copied while this one is computed."""
    return 2 if ray_cluster.num_gpus() else 1


def actor_share() -> dict[str, Any]:
    """What an actor reserves: a GPU or, without GPUs, a small share of the CPUs, used in turn with decoding."""
    if ray_cluster.num_gpus():
        return {"num_gpus": 1}
    share = CPU_SHARE * ray_cluster.num_cpus() / num_actors()
    return {"num_cpus": min(1.0, share), "runtime_env": {"env_vars": ray_cluster.CPU_ALLOCATOR}}
