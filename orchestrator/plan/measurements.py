"""Measurements of a probe: the cost of each stage, the pace of each phase, and the cluster and pool they apply to."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.engine.metering import Cost


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """A model's forward pass: seconds per image and per text (on a GPU if there is one), core seconds to decode an
    image, and the resident memory of the process in bytes."""

    image_seconds: float
    text_seconds: float
    decode_seconds: float
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class SetSize:
    """Size of an evaluation set: bytes and number of its tars, its images (approximate), and its texts.

    The texts are captions or prompts. `shares_texts`: every actor embeds all of them, as for class prompts."""

    num_bytes: int
    num_shards: int
    images: int
    texts: int
    shares_texts: bool


@dataclass(frozen=True, kw_only=True)
class MeasuredStage:
    """A stage in the probe.

    `cost` is for `work` units of work, `num_bytes` of artifact for `stores` units of storage (both units are the
    stage's own). `holds` is the number of pairs with vectors in one process. `serial_seconds` is the time that a single
    process needs for work that is not spread."""

    cost: Cost
    work: float
    num_bytes: int
    stores: float
    holds: int
    serial_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MeasuredPhase:
    """A training phase in the probe, after its warm-up.

    `samples_per_second` is for all `num_workers` together. `batch_share` is the pairs of a batch per worker in the
    probe, `full_share` in the run. `peak_bytes` is a worker's resident memory, `gpu_bytes` its GPU memory (0 on CPUs),
    `num_bytes` the size of the model. `wait_share` is the share of time spent waiting for data. On GPUs the pace is
    that of computing alone if it `waits_for_cores`, and includes the wait if the GPU itself decodes. `decode_seconds`
    are core seconds per image. `extrapolated`: the pace is that of a few single steps on `batch_share` pairs, without
    Ray Train and without data."""

    samples_per_second: float
    num_workers: int
    batch_share: int
    full_share: int
    peak_bytes: int
    gpu_bytes: int
    num_bytes: int
    wait_share: float = 0.0
    waits_for_cores: bool = True
    decode_seconds: float = 0.0
    extrapolated: bool = False


@dataclass(kw_only=True)
class Measurements:
    """All measurements of a probe, with the cluster that the run will have once it has scaled up.

    `num_cores` are those of the cluster, `node_cores` of its largest node, `decoding_cores` the cores that training
    workers leave for decoding. `shares_cores`: there are more logical CPUs than cores. `sets` are the evaluation sets,
    `forward` the model's pace on them. `left_out` names work that is neither measured nor a stage, `remarks`
    say why stages are not measured.

    `pool_bytes` are read for the catalog. `image_bytes` are read for a pair's image if all `rows_per_read` pairs around
    it are needed too. `vector_bytes` is the memory for a pair's longest vector."""

    num_cores: int
    num_gpus: int
    shares_cores: bool
    node_cores: int = 1
    num_workers: int = 0
    decoding_cores: int = 1
    num_pairs: int = 0
    pool_bytes: float = 0.0
    image_bytes: float = 0.0
    rows_per_read: float = 1.0
    vector_bytes: int = 0
    stages: dict[str, MeasuredStage] = field(default_factory=dict)
    phases: dict[str, MeasuredPhase] = field(default_factory=dict)
    sets: list[SetSize] = field(default_factory=list)
    forward: ForwardPass | None = None
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0
