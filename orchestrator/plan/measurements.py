"""What a probe measures: each stage's cost, each phase's pace, and the cluster and pool that they are for."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.engine.metering import Cost
from orchestrator.plan.decode_rates import Forward
from orchestrator.plan.evaluation_size import SetSize


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A stage in the probe: its cost for so much of `Stage.work`, the bytes it left for so much of `Stage.stores`, the
    pairs whose vectors one of its processes held, and the seconds that its work takes the one process that all of it
    passes."""

    cost: Cost
    work: float
    num_bytes: int
    stores: float
    holds: int
    serial_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A phase in the probe: the samples a second of so many workers, once warm; the pairs of a batch that each of them
    had, and that each will have; the resident memory and, on GPUs, the device's of a worker; the bytes of its model.

    On GPUs the pace is that of computing alone, and `wait_share` what waiting for data took besides; `decode_seconds`
    are a core's for a picture."""

    samples_per_second: float
    num_workers: int
    batch_share: int
    full_share: int
    peak_bytes: int
    gpu_bytes: int
    num_bytes: int
    wait_share: float = 0.0
    decode_seconds: float = 0.0


@dataclass(kw_only=True)
class Probe:
    """What was measured, by stage. The numbers of cores (of the cluster, of its largest node, and left to decoding by
    the training workers), GPUs and training workers are those of the run, once its cluster has grown; `shares_cores`:
    there are more logical CPUs than cores. `sets` are what the models are evaluated on, at the pace of `forward`;
    `left_out` names what is neither measured nor a stage.

    `pool_bytes` are read by the catalog, `image_bytes` for a pair's image where those of all `rows_per_read` around it
    are wanted too, and `vector_bytes` held for a pair's longest vector."""

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
    stages: dict[str, Measured] = field(default_factory=dict)
    phases: dict[str, Trained] = field(default_factory=dict)
    sets: list[SetSize] = field(default_factory=list)
    forward: Forward | None = None
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0
