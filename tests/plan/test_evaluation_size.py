"""Sizes of evaluation sets, from their listings and the first samples of their first tar."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli import compose_config
from orchestrator.config import Config
from orchestrator.errors import UserError
from orchestrator.plan.evaluation_size import NUM_TEMPLATES, set_sizes
from tests.support.pools import write_zero_shot


def config_of(tar: Path, *overrides: str) -> Config:
    return compose_config([f"evaluation.zero_shot.uri={tar}", *overrides], needs_source=False)


def test_small_sets_are_counted(tmp_path: Path) -> None:
    tar = write_zero_shot(tmp_path)
    (size,) = set_sizes(config_of(tar))
    assert (size.images, size.num_shards, size.num_bytes) == (16, 1, tar.stat().st_size)
    assert (size.texts, size.shares_texts) == (8 * NUM_TEMPLATES, True)
    own = config_of(tar, "evaluation.zero_shot.templates=['a {c}', 'the {c}']")
    assert set_sizes(own)[0].texts == 16
    assert set_sizes(compose_config([], needs_source=False)) == []


def test_large_sets_are_estimated_from_their_first_samples(tmp_path: Path) -> None:
    tar = write_zero_shot(tmp_path, numbers=range(400))
    (size,) = set_sizes(config_of(tar))
    assert size.images == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>" * 100, b"", None])
def test_damaged_first_tar_is_a_one_line_error(tmp_path: Path, content: bytes | None) -> None:
    tar = write_zero_shot(tmp_path)
    tar.write_bytes(tar.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=r"zs\.tar is damaged; an evaluation set must be whole"):
        set_sizes(config_of(tar))
