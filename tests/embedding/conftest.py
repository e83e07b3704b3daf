"""A tiny open_clip model."""

from __future__ import annotations

import pytest

from orchestrator.clip import model
from tests.support.pools import (
    TINY_MODEL,
)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny open_clip model."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"image_size": None, "context_length": None}
    model.save(model.build(name=None, config=TINY_MODEL["config"], pretrained=None, seed=0, **sizes), folder)
    return str(folder)
