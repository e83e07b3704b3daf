"""Python imports this file when a process starts with its folder in `PYTHONPATH`.

The workers of clusters that such a process starts are forks: see `fork_server.py`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

CONSTANTS = "ray._private.ray_constants"
FORK_SERVER = str(Path(__file__).parents[1] / "fork_server.py")


class ForkedWorkers(MetaPathFinder):
    """Changes Ray's constant when the process imports Ray. Most commands that fail early do not import it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != CONSTANTS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            module.SETUP_WORKER_FILENAME = FORK_SERVER

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, ForkedWorkers())
