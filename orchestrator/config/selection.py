"""The selection steps and their settings.

Budgeted steps keep exactly `keep_pairs` pairs or, without it, int(n * keep_fraction) of the n that reach them; filters
keep what passes a rule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.embedding import MatchBy
from orchestrator.config.section import Fraction, NotNegative, Positive, Section, Share

# stages of every run, whose names the report relies on
RESERVED_STEPS = {"pool", "captioned", "catalog", "pretrain", "finetune", "evaluate"}

Order = Literal["hard", "easy", "random"]


class Budgeted(Section):
    """How many pairs a step keeps: a fraction of what reaches it, or (first, where both are set) a number of pairs."""

    keep_fraction: Fraction = 0.8
    keep_pairs: Positive | None = None


class Clustering(Section):
    """Spherical k-means over the embeddings of the pairs that reach a step.

    The training sample is k * points_per_centroid pairs, drawn by `seed`. `trainer`: faiss, in one task's memory, or
    Lloyd's algorithm in tasks over the sample's parts, for samples that outgrow a machine."""

    k: Positive
    seed: int = 1234
    num_iterations: Positive = 100
    points_per_centroid: Positive = 256
    trainer: Literal["faiss", "lloyd"] = "faiss"

    @property
    def num_wanted(self) -> int:
        """Pairs that the centroids are trained on, where there are so many."""
        return self.k * self.points_per_centroid


class WfppStep(Budgeted):
    """Word-frequency-based pruning (arXiv 2410.10879)."""

    method: Literal["wfpp"] = "wfpp"
    t: Annotated[float, Field(gt=0)] = 1e-7
    min_count: Positive = 5
    max_words: Positive = 30
    length_normalised: bool = True
    clip_negative: bool = False


class RandomStep(Budgeted):
    """The control: a seeded uniform draw without replacement."""

    method: Literal["random"] = "random"
    seed: int = 0


class AllStep(Section):
    """No pruning: every pair that reaches the step stays."""

    method: Literal["all"] = "all"


class SemDeDupStep(Section):
    """Semantic deduplication (arXiv 2303.09540): of pairs of a cluster with cosine > 1 - eps, the first in order stays.
    `order` hard: farthest from the centroid first."""

    method: Literal["semdedup"] = "semdedup"
    embedding: str
    clustering: Clustering = Clustering(k=50_000)
    eps: Annotated[float, Field(ge=0, le=2)] = 0.07
    order: Order = "hard"
    seed: int = 0


class SspStep(Budgeted):
    """Self-supervised prototypes (arXiv 2206.14486): the pairs farthest from their centroids, over all clusters."""

    method: Literal["ssp"] = "ssp"
    embedding: str
    clustering: Clustering = Clustering(k=500)
    balance: Share = 0.0
    order: Order = "hard"
    seed: int = 0


class DbpStep(Budgeted):
    """Density-based pruning (arXiv 2401.04578): a quota for each cluster by its complexity, filled with its farthest
    pairs."""

    method: Literal["dbp"] = "dbp"
    embedding: str
    clustering: Clustering = Clustering(k=500)
    tau: Annotated[float, Field(gt=0)] = 0.1
    num_neighbours: Positive = 20
    balance: Share = 0.0
    order: Order = "hard"
    seed: int = 0


class MetaClipStep(Section):
    """Balancing over the entries of a metadata list that a caption holds (arXiv 2309.16671)."""

    method: Literal["metaclip"] = "metaclip"
    metadata: str | None = None
    t: Annotated[float, Field(gt=0)] = 20_000
    seed: int = 0


class ClipScoreStep(Budgeted):
    """The pairs whose image and caption agree most by cosine: a budget, or all at or above `threshold`."""

    method: Literal["clip_score"] = "clip_score"
    embedding: str
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None


class BasicStep(Section):
    """DataComp's basic filter: caption length, image size and aspect, language by fastText where a model is given."""

    method: Literal["basic"] = "basic"
    min_words: NotNegative = 3
    min_chars: NotNegative = 6
    min_side: NotNegative = 200
    max_aspect: Annotated[float, Field(ge=1)] = 3.0
    language: str = "en"
    language_model: str | None = None


class KeepListStep(Section):
    """A keep list brought along: Parquet with a column of keys, uids or URLs, or DataComp's `.npy` of uids."""

    method: Literal["keep_list"] = "keep_list"
    uri: str | None = None
    match_by: MatchBy = "key"
    match_column: str | None = None
    max_missing: Share = 0.05


StepConfig = Annotated[
    WfppStep
    | RandomStep
    | AllStep
    | SemDeDupStep
    | SspStep
    | DbpStep
    | MetaClipStep
    | ClipScoreStep
    | BasicStep
    | KeepListStep,
    Field(discriminator="method"),
]


class SelectionConfig(Section):
    """The steps in order, and a named settings node for each; the same method twice goes by alias."""

    steps: tuple[str, ...] = ("wfpp",)
    settings: dict[str, StepConfig]

    @model_validator(mode="before")
    @classmethod
    def _fold_step_nodes(cls, raw: dict[str, Any]) -> dict[str, Any]:
        nodes = dict(raw.get("settings", {}))
        nodes |= {name: node for name, node in raw.items() if name not in ("steps", "settings")}
        settings = {name: {"method": name, **node} for name, node in nodes.items()}
        return {"steps": raw.get("steps", ("wfpp",)), "settings": settings}

    @model_validator(mode="after")
    def _steps_are_declared(self) -> SelectionConfig:
        for step in self.steps:
            if step not in self.settings:
                raise ValueError(f"selection.steps names {step!r}; declared steps: {', '.join(sorted(self.settings))}")
        taken = RESERVED_STEPS & self.settings.keys()
        if taken:
            raise ValueError(f"selection.{taken.pop()}: the name is a stage's own; give the step another alias")
        if len(set(self.steps)) < len(self.steps):
            raise ValueError("selection.steps names a step twice; give the second one an alias with its own node")
        return self

    def embedding_of(self, step: str) -> str | None:
        """The name of the embedding that a step goes by."""
        return getattr(self.settings[step], "embedding", None)
