"""The part of `report.json` with example pairs: kept and pruned pairs, clusters, duplicates; and its base class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Entry(BaseModel):
    """A part of the report. Immutable; numbers that are not finite become null in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(Entry):
    """A pair to show: its `part` and `row` in the catalog, its `key`, and its `caption`, which may be shortened.

    `score` depends on the section: the step's score among kept and pruned examples, the distance from the centroid in a
    cluster, the cosine to the nearest earlier pair among duplicates; null if there is none."""

    part: int
    row: int
    key: str
    caption: str
    score: float | None


class ExampleGroup(Entry):
    """A group of example pairs.

    Keys: `name` ("highest", "above", "below", "lowest"; "kept", "pruned" for steps without scores), `kept`, `pairs`."""

    name: str
    kept: bool
    pairs: list[Example]


class Examples(Entry):
    """Example pairs of the last step that pruned, from `parts_read` of the pool's `num_parts` parts; `score` says what
    their scores measure (null without scores)."""

    step: str
    score: str | None = None
    parts_read: int
    num_parts: int
    groups: list[ExampleGroup]


class ClusterSizes(Entry):
    """Sizes of the clusters that are not empty, in pairs: `min`, `median`, `max`."""

    min: int
    median: float
    max: int


class ClusteringReport(Entry):
    """The k-means clustering of a step.

    Keys: `k`; `pairs` assigned, which reached the step and have an embedding; `empty` clusters; `sizes` of the others;
    `sampled` vectors that the centroids were trained on; `iterations`; `objective_first` and `objective_last`, the mean
    cosine of the sample to its centroids in the first and last iteration; `restarts`, how often an empty centroid was
    replaced."""

    k: int
    pairs: int
    empty: int
    sizes: ClusterSizes
    sampled: int
    iterations: int
    objective_first: float
    objective_last: float
    restarts: int


class Cluster(Entry):
    """A cluster that is not empty.

    Keys: `cluster`, its number; `size` in pairs; `d_intra`, the mean distance of its pairs from the centroid. For a
    step with quotas (else null): `d_inter`, the mean distance to the nearest other centroids; `complexity`, d_inter
    times d_intra; `quota`, the pairs to keep."""

    cluster: int
    size: int
    d_intra: float
    d_inter: float | None = None
    complexity: float | None = None
    quota: int | None = None


class ClusterSheet(Entry):
    """Example pairs of a cluster: some `kept` and `pruned` pairs, drawn at random; `num_kept`, all its kept pairs."""

    cluster: Cluster
    num_kept: int
    kept: list[Example]
    pruned: list[Example]


class ClusterPruning(Entry):
    """The pairs that a budgeted step kept of each cluster.

    Keys: `ordered_by`, "complexity" or "d_intra"; `clusters` in that order, from the densest to the most spread out: at
    most 500, evenly spaced if there are more; `densest` and `most_spread`, up to three examples from each end, of
    clusters at least half as large as the median one."""

    ordered_by: str
    clusters: list[Cluster]
    densest: list[ClusterSheet]
    most_spread: list[ClusterSheet]


class SimilarityHistogram(Entry):
    """Pairs by their cosine to the nearest earlier pair of their cluster.

    `counts` of the bins between `edges`. A bin includes its upper edge but not its lower; 1 - eps is one of the edges.
    Empty bins at both ends are left out."""

    edges: list[float]
    counts: list[int]


class DuplicateGroup(Entry):
    """A kept pair and its `num_copies` duplicates, direct or through other duplicates; random `copies` as examples."""

    kept: Example
    num_copies: int
    copies: list[Example]


class Duplicates(Entry):
    """The duplicates that a step found and dropped.

    A duplicate is linked to its nearest earlier pair, which may be a duplicate itself. A group consists of all pairs
    that are linked in this way; its first pair is kept.

    Keys: `eps`; `num_duplicates`, all dropped pairs; `num_groups`; `groups_of_two`, the groups with a single copy;
    `largest` groups; `similarity` of every pair that has an earlier pair in its cluster."""

    eps: float
    num_duplicates: int
    num_groups: int
    groups_of_two: int
    largest: list[DuplicateGroup]
    similarity: SimilarityHistogram
