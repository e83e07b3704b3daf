"""The mask of a part: a written mask is read back, and a damaged file is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.data.keep_list import KeepList, pack
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import part_path, write_part
from orchestrator.storage import files
from orchestrator.storage.files import StoreError


@pytest.mark.parametrize("num_rows", [0, 1, 8, 21])
def test_a_written_mask_is_read_back(num_rows: int, tmp_path: Path) -> None:
    artifact, mask = Artifact.of(str(tmp_path), "keep", version=1), np.arange(num_rows) % 3 == 0
    write_part(artifact, 0, pack(mask))
    assert KeepList(artifact).mask(0, num_rows).tolist() == mask.tolist()


@pytest.mark.parametrize("num_bytes", [0, 2, 4])
def test_a_file_with_too_few_or_too_many_bits_is_an_error(num_bytes: int, tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "keep", version=1)
    files.write(part_path(artifact, 0, "bits"), bytes(num_bytes))
    with pytest.raises(StoreError, match=f"000000.bits is damaged .got {num_bytes} bytes, expected 3 for 21"):
        KeepList(artifact).mask(0, 21)
