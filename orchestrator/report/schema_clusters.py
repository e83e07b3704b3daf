"""What `report.json` holds of the steps that go by an embedding: clusterings, clusters, duplicates."""

from __future__ import annotations

from orchestrator.report.entry import Entry, Example


class ClusterSizes(Entry):
    """Pairs of a cluster, over the clusters that have any: `min`, `median`, `max`."""

    min: int
    median: float
    max: int


class ClusteringReport(Entry):
    """The k-means clustering a step goes by.

    Keys: `k`; `pairs` assigned, those that reached the step with an embedding; `empty` clusters that got none; `sizes`
    of the others; `sampled` vectors that the centroids were trained on, over `iterations`; `objective_first` and
    `objective_last`, the mean cosine of the sample to its centroids in the first and the last of them; `restarts`, how
    often an empty centroid was set anew."""

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
    """A cluster that has pairs.

    Keys: `cluster`, its number; `size` in pairs; `d_intra`, their mean distance from the centroid; and, for a step with
    quotas, else null: `d_inter`, the mean distance to the nearest other centroids; `complexity`, the product of the
    two; `quota`, the pairs it keeps."""

    cluster: int
    size: int
    d_intra: float
    d_inter: float | None = None
    complexity: float | None = None
    quota: int | None = None


class ClusterSheet(Entry):
    """Pictures of a cluster: `kept` and `pruned` pairs, a few of each drawn at random; `num_kept` of them in all."""

    cluster: Cluster
    num_kept: int
    kept: list[Example]
    pruned: list[Example]


class ClusterPruning(Entry):
    """What a budgeted step kept of which cluster.

    Keys: `ordered_by`, "complexity" or "d_intra"; `clusters`, at most 500, from the densest to the most spread out in
    that order: all there are, or evenly spaced among them; `densest` and `most_spread`, up to three of each end, of
    those at least half as large as the median cluster."""

    ordered_by: str
    clusters: list[Cluster]
    densest: list[ClusterSheet]
    most_spread: list[ClusterSheet]


class SimilarityHistogram(Entry):
    """Pairs by their cosine to the nearest earlier pair of their cluster: `counts` of the bins between `edges`, each
    with its upper edge and without its lower; 1 - eps is one of the edges. Bins that are empty at either end are left
    out."""

    edges: list[float]
    counts: list[int]


class DuplicateGroup(Entry):
    """`num_copies` duplicates of the pair `kept`, at any number of removes; a few of the `copies`, drawn at random."""

    kept: Example
    num_copies: int
    copies: list[Example]


class Duplicates(Entry):
    """What a step that removes duplicates found. A duplicate is linked to the earlier pair nearest to it, whether or
    not that one is a duplicate itself; a group is all that hangs together so, and its first pair stays.

    Keys: `eps`; `num_duplicates` that were dropped, in `num_groups`, `groups_of_two` of which are one pair and its one
    copy; `largest` groups, exactly; `similarity` of every pair that has an earlier one in its cluster."""

    eps: float
    num_duplicates: int
    num_groups: int
    groups_of_two: int
    largest: list[DuplicateGroup]
    similarity: SimilarityHistogram
