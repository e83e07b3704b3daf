"""Compare WFPP on one core with its definition in plain Python: captions/s for words, counts and scores.

    POLARS_MAX_THREADS=1 python tests/benchmarks/bench_wfpp.py

Both corpora come from the captions of the embedded pool. The ASCII corpus joins random pairs of captions to the length
of web captions. The mixed corpus adds non-ASCII characters to some of them, as web text has them: accents, curly quotes
and dashes, emoji, other scripts and, more rarely, mojibake and HTML entities. The script checks that both
implementations return the same scores. Time is processor time, which other load on the machine hardly changes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

import orchestrator
from orchestrator.pruning.caption_words import caption_words, needs_reference, reference_words
from orchestrator.pruning.wfpp import WordTable, count_words, discard_probabilities, scores

POOL_PATH = Path(orchestrator.__file__).parent / "demo" / "pool" / "train.parquet"
NUM_CAPTIONS = 25_000
NUM_ROUNDS = 3
NON_ASCII_FRACTION = 0.15
T = 1e-7
MIN_COUNT = 5
MAX_WORDS = 30

# the kinds of non-ASCII characters in web text, with their weights
PERTURBATIONS: list[tuple[float, Callable[[str], str]]] = [
    (0.30, lambda caption: f"{caption} at the café, décor by Señor Müller"),
    (0.35, lambda caption: f"It’s “{caption}” – a photo…"),
    (0.10, lambda caption: f"{caption} ❤️ \U0001f600"),
    (0.10, lambda caption: f"{caption} собака на пляже"),
    (0.05, lambda caption: f"{caption} 東京の夜景"),
    (0.05, lambda caption: f"{caption} at the cafÃ©"),
    (0.05, lambda caption: f"«{caption}» &amp; émigré’s"),
]


def ascii_corpus(rng: np.random.Generator) -> pl.Series:
    """Return ASCII captions of about web length, strings [25,000]."""
    captions = pl.read_parquet(POOL_PATH, columns=["caption"])["caption"]
    captions = captions.filter(captions.str.contains(r"^[\x20-\x7e]+$"))
    first, second = (captions.gather(rng.integers(0, len(captions), NUM_CAPTIONS)) for _ in range(2))
    return first + ", " + second.str.head(20)


def mixed_corpus(ascii_captions: pl.Series, rng: np.random.Generator) -> pl.Series:
    """Return the same captions, 15% of them with non-ASCII characters."""
    weights = [weight for weight, _ in PERTURBATIONS]
    perturbed = rng.random(len(ascii_captions)) < NON_ASCII_FRACTION
    kinds = rng.choice(len(PERTURBATIONS), len(ascii_captions), p=weights)
    return pl.Series(
        [
            PERTURBATIONS[kind][1](caption) if change else caption
            for caption, change, kind in zip(ascii_captions, perturbed, kinds, strict=True)
        ]
    )


def vectorised(captions: pl.Series) -> list[float]:
    """Return the scores of the package."""
    words = caption_words(captions)
    kept = count_words(words).filter(pl.col("count") >= MIN_COUNT)
    table = WordTable.from_probabilities(discard_probabilities(kept, int(kept["count"].sum()), t=T))
    return scores(words, table, max_words=MAX_WORDS).tolist()


def plain(captions: pl.Series) -> list[float]:
    """Return the scores of the definition, in plain Python."""
    word_lists = [reference_words(caption) for caption in captions.to_list()]
    counts: Counter[str] = Counter()
    for words in word_lists:
        counts.update(words)
    kept = {word: count for word, count in counts.items() if count >= MIN_COUNT}
    total = sum(kept.values())
    p = {word: 1 - math.sqrt(T / (count / total)) for word, count in kept.items()}
    result = []
    for words in word_lists:
        considered = words[:MAX_WORDS]
        product = 1.0
        for word in considered:
            factor = p.get(word, 1.0)
            if factor >= 0:
                product *= factor
        result.append((1 - product) / len(considered) if considered else -math.inf)
    return result


def seconds(function: Callable[[pl.Series], list[float]], captions: pl.Series) -> float:
    """Return the processor time of a call, in seconds."""
    start = time.process_time()
    function(captions)
    return time.process_time() - start


def report(name: str, captions: pl.Series) -> str:
    """Return the Markdown row of a corpus: the best of alternating rounds."""
    assert vectorised(captions) == plain(captions)
    rounds = [(seconds(vectorised, captions), seconds(plain, captions)) for _ in range(NUM_ROUNDS)]
    fast, slow = (len(captions) / min(times) for times in zip(*rounds, strict=True))
    not_ascii = captions.str.contains(r"[^\x00-\x7f]").sum() / len(captions)
    by_definition = needs_reference(captions).sum() / len(captions)
    return (
        f"| {name} | {len(captions):,} | {not_ascii:.1%} | {by_definition:.1%} | {fast:,.0f} | {slow:,.0f} "
        f"| {fast / slow:.1f}x |"
    )


def main() -> None:
    """Print one Markdown row per corpus."""
    if pl.thread_pool_size() != 1:
        raise SystemExit("Polars uses more than one thread: set POLARS_MAX_THREADS=1, because the figures are per core")
    rng = np.random.default_rng(0)
    ascii_captions = ascii_corpus(rng)
    print("| corpus | captions | non-ASCII | by the definition | captions/s | plain Python, captions/s | ratio |")
    print("|---|---|---|---|---|---|---|")
    print(report("WFPP, ASCII", ascii_captions))
    print(report("WFPP, mixed", mixed_corpus(ascii_captions, rng)))


if __name__ == "__main__":
    main()
