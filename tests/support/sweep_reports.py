"""Made-up reports of sweeps: 3 keep fractions x 2 numbers of clusters x 3 seeds, and the controls."""

from __future__ import annotations

from typing import Any, Literal

from orchestrator.sweep.report.schema import ModelResult, SharedStage, SweepReport, TrialResult

POOL = 10_000
KEEP, CLUSTERS, SEEDS = [0.25, 0.5, 0.75], [16, 64], [0, 1, 2]
DIMENSIONS: dict[str, list[Any]] = {"keep_fraction": KEEP, "selection.clustering.k": CLUSTERS}
TOP1, TOP5 = "zero_shot/top1", "zero_shot/top5"
TEXT_TO_IMAGE, IMAGE_TO_TEXT = "retrieval/text_to_image_recall_at_1", "retrieval/image_to_text_recall_at_1"


def model(top1: float, samples: int) -> ModelResult:
    """A model with all headline metrics, trained at 100 samples a second."""
    metrics = {TOP1: top1, TOP5: 2.5 * top1, TEXT_TO_IMAGE: 0.8 * top1, IMAGE_TO_TEXT: 0.9 * top1}
    return ModelResult(samples_seen=samples, training_seconds=samples / 100, metrics=metrics)


def trial(
    name: str,
    top1: float,
    kept: float,
    seed: int = 0,
    *,
    settings: dict[str, Any] | None = None,
    control: Literal["full", "random"] | None = None,
    pruning_seconds: float | None = 120.0,
    finetune: bool = True,
) -> TrialResult:
    """A finished trial of ten epochs, and a fine-tune epoch on the whole pool that adds two points."""
    samples = round(10 * kept * POOL)
    models = {"pretrain": model(top1, samples)}
    if finetune:
        models["finetune"] = model(top1 + 0.02, samples + POOL)
    return TrialResult(
        name=name,
        settings=settings or {},
        control=control,
        seed=seed,
        state="finished",
        out=f"out/trials/{name}",
        pairs=round(kept * POOL),
        kept_fraction=kept,
        pruning_seconds=pruning_seconds,
        models=models,
    )


def failed(name: str, reason: str, state: Literal["stopped", "failed"] = "failed") -> TrialResult:
    """A trial without a model."""
    return TrialResult(
        name=name,
        settings={"keep_fraction": 0.25, "selection.clustering.k": 16},
        control=None,
        seed=0,
        state=state,
        reason=reason,
        out=f"out/trials/{name}",
    )


def grid_trials(*, finetune: bool = True) -> list[TrialResult]:
    """Every point of the grid for each seed; more clusters and more pairs are better."""
    return [
        trial(
            f"keep_fraction-{kept}_k-{k}_seed-{seed}",
            0.15 + 0.12 * kept + 0.0002 * k + 0.004 * (seed - 1) * (1 + kept),
            kept,
            seed,
            settings={"keep_fraction": kept, "selection.clustering.k": k},
            finetune=finetune,
        )
        for seed in SEEDS
        for kept in KEEP
        for k in CLUSTERS
    ]


def control_trials(*, finetune: bool = True) -> list[TrialResult]:
    """The full control, and a random one for each keep fraction."""
    full = [
        trial(
            f"full_seed-{seed}", 0.245 + 0.003 * seed, 1.0, seed, control="full", pruning_seconds=0, finetune=finetune
        )
        for seed in SEEDS
    ]
    random = [
        trial(
            f"random-{round(kept * POOL)}_seed-{seed}",
            0.10 + 0.13 * kept + 0.005 * seed,
            kept,
            seed,
            control="random",
            pruning_seconds=3.0,
            finetune=finetune,
        )
        for seed in SEEDS
        for kept in KEEP
    ]
    return full + random


def report_of(trials: list[TrialResult], **changes: Any) -> SweepReport:
    """A report of these trials; `changes` are its other keys."""
    whole: dict[str, Any] = {
        "name": "dbp_sweep",
        "started": "2026-11-20T08:30:00+00:00",
        "wall_seconds": 5400.0,
        "metric": TOP1,
        "dimensions": DIMENSIONS,
        "seeds": SEEDS,
        "equal_samples": None,
        "equal_epochs": 10,
        "cores": 16,
        "devices": 2,
        "device": "GPU",
        "trials": trials,
        "sharing": [
            SharedStage(kind="catalog", needed=30, distinct=1, computed=0, seconds=0.0),
            SharedStage(kind="embedding", needed=18, distinct=1, computed=1, seconds=311.0),
            SharedStage(kind="clustering", needed=18, distinct=2, computed=2, seconds=48.5),
            SharedStage(kind="keep", needed=30, distinct=10, computed=10, seconds=21.0),
        ],
        "versions": {"ray": "2.60.0", "torch": "2.15.0", "faiss": "1.15.1"},
        "config": {"sweep": {"space": DIMENSIONS}, "training": {"lr": 1e-3}},
    }
    return SweepReport.model_validate({**whole, **changes})


def whole_report() -> SweepReport:
    """The grid, the controls, a stopped trial and a failed one."""
    stopped = failed("keep_fraction-0.25_k-16_seed-3", "stopped by the scheduler: below the median", "stopped")
    return report_of(
        [*grid_trials(), *control_trials(), stopped, failed("broken", "TrainingError: loss is not finite")]
    )
