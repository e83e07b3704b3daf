"""The selection steps and their settings.

A budgeted step keeps exactly `keep_pairs` pairs or, if that is null, int(n * keep_fraction) of the n pairs that reach
it. A filter keeps the pairs that pass a rule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.embedding import MatchBy
from orchestrator.config.section import Fraction, NotNegative, Positive, Section, Share

# names of stages that every run has: the report finds stages by name
RESERVED_STEPS = {"pool", "captioned", "catalog", "pretrain", "finetune", "evaluate"}

Order = Literal["hard", "easy", "random"]


class Budgeted(Section):
    """A step that keeps an exact number of pairs."""

    keep_fraction: Fraction = 0.8
    """The fraction to keep of the pairs that reach the step: exactly int(n * keep_fraction). Unit: fraction of the
    pairs."""
    keep_pairs: Positive | None = None
    """The number of pairs to keep. Overrides `keep_fraction`. Null: `keep_fraction` decides. Unit: pairs."""


class Clustering(Section):
    """Spherical k-means over the embeddings of the pairs that reach a step."""

    k: Positive
    """The number of clusters. Unit: clusters."""
    seed: int = 1234
    """Seed of the training sample and of the initial centroids. Unit: none."""
    num_iterations: Positive = 100
    """Iterations of k-means over the sample. Unit: iterations."""
    points_per_centroid: Positive = 256
    """The sample that trains the centroids has k * points_per_centroid pairs. Unit: pairs per cluster."""
    trainer: Literal["faiss", "lloyd"] = "faiss"
    """`faiss` trains in the memory of one task. `lloyd` trains in many tasks, for samples that do not fit in the memory
    of one machine."""

    @property
    def num_wanted(self) -> int:
        """Pairs in the sample that trains the centroids, if the pool has that many."""
        return self.k * self.points_per_centroid


class WfppStep(Budgeted):
    """Word-frequency-based pruning (arXiv 2410.10879)."""

    method: Literal["wfpp"] = "wfpp"
    """Selects this method."""
    t: Annotated[float, Field(gt=0)] = 1e-7
    """The threshold t in P(w) = 1 - sqrt(t / f(w)). Unit: word frequency."""
    min_count: Positive = 5
    """Rarer words have no discard probability. Unit: occurrences."""
    max_words: Positive = 30
    """A score uses the first words of a caption, at most this many. Unit: words."""
    length_normalised: bool = True
    """Divide the score by the number of words, as the paper does."""
    clip_negative: bool = False
    """Count a negative P as 0, as word2vec does. False: it is left out of the product, as in the authors' code."""


class RandomStep(Budgeted):
    """The control: a seeded uniform draw without replacement."""

    method: Literal["random"] = "random"
    """Selects this method."""
    seed: int = 0
    """Seed of the draw. Unit: none."""


class AllStep(Section):
    """No pruning: every pair that reaches the step stays."""

    method: Literal["all"] = "all"
    """Selects this method."""


class SemDeDupStep(Section):
    """Semantic deduplication (arXiv 2303.09540): of the pairs of a cluster with cosine > 1 - eps, the first in order
    stays."""

    method: Literal["semdedup"] = "semdedup"
    """Selects this method."""
    embedding: str
    """The name of the embedding that the step uses."""
    clustering: Clustering = Clustering(k=50_000)
    """The clustering that the step uses."""
    eps: Annotated[float, Field(ge=0, le=2)] = 0.07
    """Two pairs are duplicates if their cosine is above 1 - eps. 0: only if their vectors have the same numbers. Unit:
    cosine distance."""
    order: Order = "hard"
    """Which pair of a group stays. `hard`: the farthest from the centroid; `easy`: the nearest; `random`: a draw."""
    seed: int = 0
    """Seed of the order `random`. Unit: none."""


class SspStep(Budgeted):
    """Self-supervised prototypes (arXiv 2206.14486): the pairs farthest from their centroids, over all clusters."""

    method: Literal["ssp"] = "ssp"
    """Selects this method."""
    embedding: str
    """The name of the embedding that the step uses."""
    clustering: Clustering = Clustering(k=500)
    """The clustering that the step uses."""
    balance: Share = 0.0
    """The share of an equal split between the clusters that each cluster gets first. Unit: fraction of the split."""
    order: Order = "hard"
    """Which pairs stay. `hard`: the farthest from the centroid; `easy`: the nearest; `random`: a draw."""
    seed: int = 0
    """Seed of the order `random`. Unit: none."""


class DbpStep(Budgeted):
    """Density-based pruning (arXiv 2401.04578): a quota for each cluster that depends on its complexity, filled with
    its farthest pairs."""

    method: Literal["dbp"] = "dbp"
    """Selects this method."""
    embedding: str
    """The name of the embedding that the step uses."""
    clustering: Clustering = Clustering(k=500)
    """The clustering that the step uses."""
    tau: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the softmax over the complexities of the clusters. Unit: none."""
    num_neighbours: Positive = 20
    """Nearest other centroids in the distance between clusters. Unit: clusters."""
    balance: Share = 0.0
    """The share of an equal split that is the lower bound of each quota. Unit: fraction of the split."""
    order: Order = "hard"
    """Which pairs of a cluster stay. `hard`: the farthest from the centroid; `easy`: the nearest; `random`: a draw."""
    seed: int = 0
    """Seed of the order `random`. Unit: none."""


class MetaClipStep(Section):
    """Balancing over the metadata entries that a caption contains (arXiv 2309.16671)."""

    method: Literal["metaclip"] = "metaclip"
    """Selects this method."""
    metadata: str | None = None
    """The metadata: a JSON list of entries, or a text file with one entry per line. The step needs it. `demo`: the
    metadata of the embedded pool."""
    t: Annotated[float, Field(gt=0)] = 20_000
    """An entry with more than t matches keeps about t of them. Unit: pairs."""
    seed: int = 0
    """Seed of the draw. Unit: none."""


class ClipScoreStep(Budgeted):
    """The pairs with the highest cosine of image and caption: a budget, or all above a threshold."""

    method: Literal["clip_score"] = "clip_score"
    """Selects this method."""
    embedding: str
    """The name of an embedding with image and text vectors."""
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Keep all pairs with at least this score. Null: the budget decides. Unit: cosine."""


class BasicStep(Section):
    """DataComp's basic filter: caption length, image size, aspect ratio and language."""

    method: Literal["basic"] = "basic"
    """Selects this method."""
    min_words: NotNegative = 3
    """The shortest caption to keep. Unit: words."""
    min_chars: NotNegative = 6
    """The shortest caption to keep. Unit: characters."""
    min_side: NotNegative = 200
    """The smallest image to keep, by its shorter side. Unit: pixels."""
    max_aspect: Annotated[float, Field(ge=1)] = 3.0
    """The largest ratio of the longer to the shorter side. Unit: none."""
    language: str = "en"
    """The language of the captions to keep, as fastText names it."""
    language_model: str | None = None
    """fastText's `lid.176.bin`. Null: captions of any language stay."""


class KeepListStep(Section):
    """An external keep list: Parquet with a column of keys, uids or URLs, or DataComp's `.npy` of uids."""

    method: Literal["keep_list"] = "keep_list"
    """Selects this method."""
    uri: str | None = None
    """The list. The step needs it."""
    match_by: MatchBy = "key"
    """How entries of the list find their pairs."""
    match_column: str | None = None
    """The column to match by. Null: the column named like `match_by`."""
    max_missing: Share = 0.05
    """The run fails if a larger share of the list is not in the pool. Unit: fraction of the list."""


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
    """The steps in order, and the settings of each by name."""

    steps: tuple[str, ...] = ("wfpp",)
    """The names of the steps, in order. To use a method twice, give the second step another name with its own node:
    `+selection.NAME='{method: random, keep_fraction: 0.5}'`."""
    settings: dict[str, StepConfig]
    """The settings of each step by name. On the command line a step is a key of `selection` itself."""

    @model_validator(mode="before")
    @classmethod
    def _fold_step_nodes(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        nodes = dict(raw.get("settings", {}))
        nodes |= {name: node for name, node in raw.items() if name not in ("steps", "settings")}
        settings = {name: {"method": name, **node} if isinstance(node, dict) else node for name, node in nodes.items()}
        return {"steps": raw.get("steps", ("wfpp",)), "settings": settings}

    @model_validator(mode="after")
    def _check_steps(self) -> SelectionConfig:
        for step in self.steps:
            if step not in self.settings:
                raise ValueError(f"selection.steps names {step!r}; declared steps: {', '.join(sorted(self.settings))}")
        taken = RESERVED_STEPS & self.settings.keys()
        if taken:
            raise ValueError(f"selection.{taken.pop()}: the name is reserved for a stage; give the step another name")
        if len(set(self.steps)) < len(self.steps):
            raise ValueError("selection.steps names a step twice; give the second one another name with its own node")
        return self

    def embedding_of(self, step: str) -> str | None:
        """The name of the embedding that a step uses, if it uses one."""
        return getattr(self.settings[step], "embedding", None)
