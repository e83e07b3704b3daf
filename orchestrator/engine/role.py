"""The roles of stages, by which code finds a stage of a run. `run.json` holds the values, so they must not change."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The purpose of a stage. A role and a step together identify one stage of a run."""

    CATALOG = "catalog"
    # keep lists: all valid pairs, all valid pairs with a caption, the pairs after a selection step
    POOL = "pool"
    CAPTIONED = "captioned"
    KEEP = "keep"
    # joining the pool with an external list
    SORT_KEYS = "sort_keys"
    JOIN_KEYS = "join_keys"
    ORDER_MATCHES = "order_matches"
    EMBED = "embed"
    READ_FIELDS = "read_fields"
    # WFPP
    COUNT_WORDS = "count_words"
    SUM_WORDS = "sum_words"
    SCORE = "score"
    # word tables of the report, before and after the selection
    COUNT_WORDS_BEFORE = "count_words_before"
    SUM_WORDS_BEFORE = "sum_words_before"
    COUNT_WORDS_AFTER = "count_words_after"
    SUM_WORDS_AFTER = "sum_words_after"
    # MetaCLIP
    COUNT_ENTRIES = "count_entries"
    SUM_ENTRIES = "sum_entries"
    # clustering
    SAMPLE = "sample"
    TRAIN_CENTROIDS = "train_centroids"
    ASSIGN_CLUSTERS = "assign_clusters"
    CLUSTER_STATS = "cluster_stats"
    # DBP
    QUOTAS = "quotas"
    # SemDeDup
    REGROUP = "regroup"
    COMPARE = "compare"
    COLLECT_SIMILARITY = "collect_similarity"
    PRETRAIN = "pretrain"
    FINETUNE = "finetune"
    EVALUATE = "evaluate"


TRAINING_ROLES = (Role.PRETRAIN, Role.FINETUNE)

# records of earlier versions have no role: it follows from the kind of the artifact, or from the title if it is here
ROLE_OF_KIND = {
    "catalog": Role.CATALOG,
    "keep": Role.KEEP,
    "align_sent": Role.SORT_KEYS,
    "align_joined": Role.JOIN_KEYS,
    "aligned": Role.ORDER_MATCHES,
    "embedding": Role.EMBED,
    "word_counts": Role.COUNT_WORDS,
    "words": Role.SUM_WORDS,
    "scores": Role.SCORE,
    "entry_counts": Role.COUNT_ENTRIES,
    "entry_sums": Role.SUM_ENTRIES,
    "sample": Role.SAMPLE,
    "centroids": Role.TRAIN_CENTROIDS,
    "clusters": Role.ASSIGN_CLUSTERS,
    "cluster_stats": Role.CLUSTER_STATS,
    "quotas": Role.QUOTAS,
    "by_cluster": Role.REGROUP,
    "compared": Role.COMPARE,
    "similarity": Role.COLLECT_SIMILARITY,
    "pretrain": Role.PRETRAIN,
    "finetune": Role.FINETUNE,
    "evaluation": Role.EVALUATE,
}
ROLE_OF_TITLE = {
    "pool": Role.POOL,
    "captioned": Role.CAPTIONED,
    "count words, before": Role.COUNT_WORDS_BEFORE,
    "sum words, before": Role.SUM_WORDS_BEFORE,
    "count words, after": Role.COUNT_WORDS_AFTER,
    "sum words, after": Role.SUM_WORDS_AFTER,
}


def role_and_step(kind: str, title: str) -> tuple[Role, str | None]:
    """Derive the role and the step of a stage in a record of an earlier version.

    Titles were `LABEL, STEP`, and STEP alone for a step's keep list. Errors: `KeyError` for an unknown kind."""
    if title in ROLE_OF_TITLE:
        return ROLE_OF_TITLE[title], None
    role = ROLE_OF_KIND[kind]
    return role, title if role == Role.KEEP else title.partition(", ")[2] or None
