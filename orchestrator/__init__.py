"""Data-pruned CLIP training on Ray, end to end.

`Run` opens a finished run, `Sweep` a finished sweep; everything else is the command line's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.results.run import Run
    from orchestrator.results.sweep import Sweep

__all__ = ["Run", "Sweep", "__version__"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # once it is asked for: a command's help needs no Polars
    if name == "Run":
        from orchestrator.results.run import Run

        return Run
    if name == "Sweep":
        from orchestrator.results.sweep import Sweep

        return Sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
