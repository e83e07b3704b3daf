"""Real captions for the pruning tests: the embedded pool's."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import orchestrator

POOL_PATH = Path(orchestrator.__file__).parent / "demo" / "pool" / "train.parquet"


@pytest.fixture(scope="session")
def demo_captions() -> pl.Series:
    """String [about 10,000]."""
    return pl.read_parquet(POOL_PATH, columns=["caption"])["caption"]
