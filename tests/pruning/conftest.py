"""Real captions for the pruning tests, from the embedded pool."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import orchestrator

POOL_PATH = Path(orchestrator.__file__).parent / "demo" / "pool" / "train.parquet"


@pytest.fixture(scope="session")
def demo_captions() -> pl.Series:
    """Return the captions, strings [about 10,000]."""
    return pl.read_parquet(POOL_PATH, columns=["caption"])["caption"]
