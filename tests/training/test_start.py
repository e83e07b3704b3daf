"""The model that a phase starts from: that of the phase before, or one line if its files are damaged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.clip import model
from orchestrator.training.start import build_model
from tests.support.pools import TINY_MODEL


def job(start: Path) -> Any:
    """The fields of a job that the start of a worker without evaluation reads."""
    return SimpleNamespace(start_uri=str(start), sets={}, config=None)


@pytest.mark.parametrize("name", [model.WEIGHTS_FILE, model.CONFIG_FILE])
@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_a_damaged_model_of_the_phase_before_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "STORE" / "pretrain" / "f00d" / "model"
    sizes: Any = {"image_size": None, "context_length": None}
    model.save(model.build(name=None, config=TINY_MODEL["config"], pretrained=None, seed=0, **sizes), folder)
    assert build_model(job(folder)).model_cfg["embed_dim"] == TINY_MODEL["config"]["embed_dim"]
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"is damaged \(") as raised:
        build_model(job(folder))
    message = str(raised.value)
    assert message.startswith(f"{folder} is damaged (")
    assert message.endswith(f"; remove the folder {folder.parent} and repeat the run that made it")
    assert "\n" not in message
