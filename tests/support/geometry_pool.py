"""A pool with planted copies and hostile captions, and a run of every step that uses clusters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.engine.run_record import RunRecord
from tests.support.pools import Pair, write_tars
from tests.support.report_runs import HOSTILE, select

NUM_DISTINCT = 60
# seed of an image, and the keys of all pairs with that image
COPIES = {0: ("d00", "d01", "d02", "d03", "d04"), 1: ("e00", "e01", "e02"), 2: ("f00", "f01")}
NUM_COPIES = sum(len(keys) - 1 for keys in COPIES.values())
TORN_KEY = "g00"
EPS = 1e-3
CLUSTERING = {"num_iterations": 8, "seed": 3}


def patches(seed: int) -> bytes:
    """Return a PNG of 48 x 48 pixels: 16 patches of random colours."""
    colours = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize((48, 48), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def write_pool(folder: Path) -> str:
    """Write four tars with the copies in random positions. Every copy has a hostile caption; one image is torn."""
    pairs = [Pair(f"p{number:02d}", f"patches {number % 9}", patches(100 + number)) for number in range(NUM_DISTINCT)]
    for seed, keys in COPIES.items():
        pairs += [Pair(key, HOSTILE[seed], patches(seed)) for key in keys]
    torn = patches(99)
    pairs.append(Pair(TORN_KEY, "torn", torn[: len(torn) // 2]))
    order = np.random.default_rng(5).permutation(len(pairs))
    return write_tars(folder, [pairs[index] for index in order], num_shards=4)


def prune(folder: Path) -> RunRecord:
    """Run SemDeDup, DBP and SSP one after the other."""
    by_clusters = {"embedding": "small"}
    return select(
        {"format": "webdataset", "uri": write_pool(folder / "pool")},
        {
            "steps": ["semdedup", "dbp", "ssp"],
            "semdedup": {**by_clusters, "eps": EPS, "clustering": {**CLUSTERING, "k": 4}},
            "dbp": {**by_clusters, "keep_fraction": 0.7, "clustering": {**CLUSTERING, "k": 5}, "num_neighbours": 2},
            "ssp": {**by_clusters, "keep_pairs": 30, "clustering": {**CLUSTERING, "k": 3}},
        },
        folder,
        embedding={"small": {"kind": "efficientnet_lite0", "image_size": 32}},
    )
