"""Imports point one way: pipeline, stages, algorithms; Hydra stays at the door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "orchestrator"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules and members that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def rooms(path: Path) -> set[str]:
    """The modules right below the package that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("orchestrator.")}


def below(room: str) -> list[Path]:
    return [path for path in MODULES if path.relative_to(PACKAGE).parts[0] == room]


def test_the_walk_sees_the_package() -> None:
    assert {"pruning", "clip", "selection", "evaluation", "source"} <= {path.parent.name for path in MODULES}
    assert "ray" in roots(PACKAGE / "engine" / "parts.py")
    assert "orchestrator.pipeline" not in imported(PACKAGE / "cli.py"), "the pipeline is imported by name, once needed"


@pytest.mark.parametrize("path", below("pruning"), ids=lambda path: path.name)
def test_pruning_is_pure(path: Path) -> None:
    assert not roots(path) & {"ray", "torch", "open_clip", "hydra", "omegaconf", "pydantic", "fsspec"}
    assert rooms(path) <= {"pruning"}


@pytest.mark.parametrize("path", below("clip"), ids=lambda path: path.name)
def test_clip_is_torch_alone(path: Path) -> None:
    assert not roots(path) & {"ray", "hydra", "omegaconf", "fsspec", "polars"}
    assert rooms(path) <= {"clip"}


@pytest.mark.parametrize("path", below("source"), ids=lambda path: path.name)
def test_sources_know_no_stage(path: Path) -> None:
    assert not roots(path) & {"ray", "torch"}
    assert rooms(path) <= {"source", "config", "storage", "errors"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_doors(path: Path) -> None:
    if path != PACKAGE / "cli.py":
        assert not roots(path) & {"hydra", "omegaconf"}
    if path.name not in ("cli.py", "__main__.py") and path != PACKAGE / "__init__.py":
        # a sweep is the pipeline many times
        above = {"cli"} if path.relative_to(PACKAGE).parts[0] in ("sweep", "results") else {"cli", "sweep", "pipeline"}
        assert not rooms(path) & above
    if path.name == "image_decode.py":
        assert "torch" not in roots(path), "decode workers stay small"


@pytest.mark.parametrize("name", ["storage", "config", "source", "engine", "data", "training/sample_order", "errors"])
def test_what_stages_stand_on_knows_no_stage(name: str) -> None:
    forbidden = {"selection", "training", "evaluation", "report", "export", "pipeline", "cli"}
    folder = PACKAGE / name
    for path in folder.rglob("*.py") if folder.is_dir() else [PACKAGE / f"{name}.py"]:
        assert not rooms(path) & forbidden


@pytest.mark.parametrize(
    "module",
    ["training.reader", "embedding.pool", "evaluation.image_reader", "pipeline", "training.stage", "evaluation.stage"],
)
def test_neither_reading_tasks_nor_plans_import_torch(module: str) -> None:
    program = f"import sys, orchestrator.{module}; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
