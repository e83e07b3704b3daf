"""Compare the tokens of decoding tasks with open_clip's: equal ids on many noisy texts, and CPU time on real ones.

PYTHONPATH=. python tests/benchmarks/bench_tokens.py --num 1000000

`--files` adds the lines of text files to the real texts. The check ends with an error at the first difference.
`--first` skips texts, so that several runs can share a large check."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from open_clip import SimpleTokenizer

from orchestrator.clip import tokens
from orchestrator.clip.tokens import ClipCaptions
from tests.support.noisy_texts import like_captions, noisy_texts, real_texts

BATCH, CACHED_WORDS = 1000, 200_000
# as short as the demo's captions, and as long as CLIP's: batches of both take turns
LENGTHS = (77, 32)


def main() -> None:
    """Check the ids, then print one Markdown row for each tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1_000_000)
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    real = real_texts()
    for file in asked.files:
        real += file.read_text(errors="replace").splitlines()
    print(f"{len(real):,} real texts")
    check(islice(noisy_texts(real, asked.first + asked.num, seed=0), asked.first, None))
    captions = like_captions()
    print(f"\n{len(captions):,} captions, {np.mean([len(text) for text in captions]):.0f} characters on average\n")
    print("| tokenizer | CPU us a caption, first time | again |\n|---|---|---|")
    for name, tokenize in (("open_clip", SimpleTokenizer(context_length=77)), ("ours", ClipCaptions(77))):
        first, again = (microseconds(tokenize, captions) for _ in range(2))
        print(f"| {name} | {first:.1f} | {again:.1f} |")


def check(texts: Iterator[str]) -> None:
    """Compare the ids of both, batch by batch."""
    theirs, started, num = SimpleTokenizer(), time.monotonic(), 0
    while batch := list(islice(texts, BATCH)):
        length = LENGTHS[num // BATCH % len(LENGTHS)]
        expected, found = theirs(batch, context_length=length).numpy(), ClipCaptions(length)(batch)
        for row in np.flatnonzero((found != expected).any(axis=1)):
            raise SystemExit(f"{batch[row]!r}: {found[row]} instead of {expected[row]}")
        num += len(batch)
        if len(theirs.cache) > CACHED_WORDS:
            # open_clip's memory of words has no limit
            theirs = SimpleTokenizer()
    print(f"{num:,} texts: equal ids ({time.monotonic() - started:.0f} s)")


def microseconds(tokenize: Callable[[list[str]], object], texts: list[str]) -> float:
    """Return the CPU time for each text, in batches."""
    tokens._vocabulary()
    started = time.process_time()
    for start in range(0, len(texts), BATCH):
        tokenize(texts[start : start + BATCH])
    return 1e6 * (time.process_time() - started) / len(texts)


if __name__ == "__main__":
    main()
