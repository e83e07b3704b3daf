"""Make the Parquet files of the demo pool from the collected sources.

    python -m orchestrator.demo.build_pool SOURCES OUT

The pool holds Open Clip Art with its original captions, and two emoji styles. The caption of a Noto emoji is its name;
the caption of a Twemoji is its name and tags. So a model sees each class by its short name and together with synonyms.

The retrieval set holds pairs without a near-duplicate in the rest of the pool. An emoji in this set appears in one
style. Its other style is removed from the pool, because both styles share their words. The zero-shot set is Fluent 3D,
a style that is never trained on. MetaCLIP's metadata are the keywords and tags that at least two drawings or emoji
share.

E-mail addresses and phone numbers are masked when the files are written, after the split. So the mask does not change
which pairs a set holds. One pair of the retrieval set has the words of a training caption except for its address."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.demo.near_duplicates import lone_pairs
from orchestrator.demo.personal_data import masked

SEED = 0
NUM_HELDOUT_CLIPART = 400
NUM_HELDOUT_EMOJI = 100
MIN_SHARED = 2
TRAINING_STYLES = ("noto", "twemoji")
ZERO_SHOT_STYLE = "fluent3d"
# columns with texts that contributors wrote
MASKED_COLUMNS = ("caption", "creator")
EMOJI_CREATORS = {"noto": "Google", "twemoji": "Twitter and contributors", "fluent3d": "Microsoft"}

Row = dict[str, Any]


def main() -> None:
    """Write the training, retrieval and zero-shot sets and the metadata."""
    parser = argparse.ArgumentParser(description="Make the demo's Parquet files from openclipart and emoji.")
    parser.add_argument("sources", type=Path, help="folder with openclipart.parquet and emoji.parquet")
    parser.add_argument("out", type=Path, help="folder for train.parquet, heldout.parquet and zero_shot.parquet")
    arguments = parser.parse_args()
    emoji = pq.read_table(arguments.sources / "emoji.parquet").to_pylist()
    drawings = pq.read_table(arguments.sources / "openclipart.parquet").to_pylist()
    clipart = [_clipart_row(row) for row in drawings]
    pool = clipart + [_emoji_row(row) for row in emoji if row["style"] in TRAINING_STYLES]
    train, heldout = split(pool)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_rows(train, arguments.out / "train.parquet")
    write_rows(heldout, arguments.out / "heldout.parquet")
    write_rows(_zero_shot_rows(emoji), arguments.out / "zero_shot.parquet")
    (arguments.out / "metadata.txt").write_text("".join(f"{entry}\n" for entry in entries(drawings, emoji)))


def split(pool: list[Row]) -> tuple[list[Row], list[Row]]:
    """Split the pool into training and retrieval rows.

    Args:
        pool: Rows with `image`, `caption`, `source` and `family`. Rows of one family show the same emoji.

    Returns:
        (training rows, retrieval rows), both in a seeded random order."""
    rng = np.random.default_rng(SEED)
    families = [row["family"] for row in pool]
    lone = lone_pairs([row["image"] for row in pool], [row["caption"] for row in pool], families)
    crowded = {family for family, is_lone in zip(families, lone, strict=True) if not is_lone}
    order = rng.permutation(len(pool))
    candidates = {family: i for i in order if (family := families[i]) not in crowded}  # one style per emoji
    clipart = [i for i in candidates.values() if pool[i]["source"] == "openclipart"][:NUM_HELDOUT_CLIPART]
    emoji = [i for i in candidates.values() if pool[i]["source"] != "openclipart"][:NUM_HELDOUT_EMOJI]
    taken = {families[i] for i in clipart + emoji}
    heldout = [pool[i] for i in rng.permutation(clipart + emoji)]
    return [pool[i] for i in order if families[i] not in taken], heldout


def entries(drawings: list[Row], emoji: list[Row]) -> list[str]:
    """Return the keywords and tags of at least `MIN_SHARED` drawings or emoji, sorted. An emoji counts once."""
    keywords = [set(row["keywords"] or []) for row in drawings]
    tags = {row["hexcode"]: set((row["tags"] or "").split(", ")) for row in emoji}
    counts = Counter(word.strip() for words in [*keywords, *tags.values()] for word in words)
    return sorted(word for word, count in counts.items() if word and count >= MIN_SHARED)


def _clipart_row(row: Row) -> Row:
    return {
        "key": f"openclipart-{row['key']}",
        "image": row["image"],
        "caption": row["raw_caption"],
        "source": "openclipart",
        "licence": "public domain",
        "creator": row["creator"],
        "family": row["key"],
    }


def _emoji_row(row: Row) -> Row:
    return {
        "key": row["key"],
        "image": row["image"],
        "caption": row["name"] if row["style"] == "noto" or not row["tags"] else f"{row['name']}, {row['tags']}",
        "source": row["style"],
        "licence": row["license"],
        "creator": EMOJI_CREATORS[row["style"]],
        "family": row["hexcode"],
    }


def _zero_shot_rows(emoji: list[Row]) -> list[Row]:
    return [
        {
            "key": row["key"],
            "image": row["image"],
            "class_index": index,
            "class_name": row["name"],
            "group": row["group"],
            "source": row["style"],
            "licence": row["license"],
            "creator": EMOJI_CREATORS[row["style"]],
        }
        for index, row in enumerate(row for row in emoji if row["style"] == ZERO_SHOT_STYLE)
    ]


def write_rows(rows: list[Row], path: Path) -> None:
    """Write a set's rows without `family`, with personal data masked."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "family"}
    for name in MASKED_COLUMNS:
        if name in columns:
            columns[name] = [masked(text) for text in columns[name]]
    text_columns = [name for name in columns if name != "image"]
    # WebP data does not compress further, so zstd would only make reading slower
    compression = {name: "none" if name == "image" else "zstd" for name in columns}
    pq.write_table(pa.table(columns), path, compression=compression, use_dictionary=text_columns)


if __name__ == "__main__":
    main()
