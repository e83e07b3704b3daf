"""Data-pruned CLIP training on Ray, end to end.

The Python API is `Run`, which opens a finished run, and `Sweep`, which opens a finished sweep. Everything else belongs
to the command line."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.results.run import Run
    from orchestrator.results.sweep import Sweep

__all__ = ["Run", "Sweep", "__version__"]
__version__ = "0.2.0"

# without a handler Python prints warnings of this package to stderr; `engine.log` writes them to the run's log
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    # imported on first use: the help of a command needs no Polars
    if name == "Run":
        from orchestrator.results.run import Run

        return Run
    if name == "Sweep":
        from orchestrator.results.sweep import Sweep

        return Sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
