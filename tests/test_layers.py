"""The layers: each package imports only from those before it, no files import each other in a cycle, Hydra stays in
the command line, and the processes that read data load no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "orchestrator"
# from the bottom to the top; the packages of one line do not import each other
LAYERS = (
    ("errors",),
    ("storage",),
    ("config",),
    ("source",),
    ("engine",),
    ("data",),
    ("embedding",),
    ("clustering",),
    ("selection",),
    ("evaluation",),
    ("training",),
    ("plan", "report", "export", "demo"),
    ("pipeline",),
    ("sweep",),
    ("results",),
    ("cli",),
)
LEVELS = {package: level for level, layer in enumerate(LAYERS) for package in layer}
# pure code: imports nothing of ours but its own package and `errors`; every layer may import it
PURE = ("orchestrator.pruning", "orchestrator.clip", "orchestrator.data.image_decode")
# the Python API and `python -m orchestrator`, which no module imports
ENTRIES = ("orchestrator", "orchestrator.__main__")
Graph = Mapping[str, set[str]]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(path: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file imports, inside functions too. A member counts as its module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def imported_roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_names(path)}


def imported_modules(module: str, path: Path) -> set[str]:
    """Our modules that run when a file is imported or used, with the `__init__` of the other packages they are in."""
    found = {name for name in imported_names(path) if name in MODULES}
    for name in list(found):
        parts = name.split(".")
        packages = {".".join(parts[:length]) for length in range(2, len(parts))}
        # a module's own package is loaded before it, with or without an import
        found |= {package for package in packages if not f"{module}.".startswith(f"{package}.")}
    return found - {module, "orchestrator"}


GRAPH: Graph = {module: imported_modules(module, path) for module, path in MODULES.items()}


def cycles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            component = [stack.pop()]
            while component[-1] != module:
                component.append(stack.pop())
            found.append(sorted(component))

    for module in graph:
        if module not in order:
            visit(module)
    return [component for component in found if len(component) > 1]


def layer_of(module: str) -> str:
    return module.split(".")[1]


def is_pure(module: str) -> bool:
    return any(f"{module}.".startswith(f"{pure}.") for pure in PURE)


def in_package(package: str) -> list[Path]:
    return [path for path in MODULES.values() if path.relative_to(PACKAGE).parts[0] == package]


def test_every_module_has_a_layer() -> None:
    tops = {layer_of(module) for module in MODULES if module not in ENTRIES}
    assert tops == set(LEVELS) | {"pruning", "clip"}
    assert "orchestrator.engine.artifact" in GRAPH["orchestrator.engine.parts"], "the graph has edges"
    assert "orchestrator.training.driver" in GRAPH["orchestrator.training.stage"], "imports in functions count"
    assert "orchestrator.selection" in GRAPH["orchestrator.selection.wfpp"] | GRAPH["orchestrator.pipeline"]


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ENTRIES])
def test_imports_run_down(module: str) -> None:
    if is_pure(module):
        own = next(pure for pure in PURE if f"{module}.".startswith(f"{pure}."))
        others = GRAPH[module] - {"orchestrator.errors"}
        assert all(f"{other}.".startswith(f"{own}.") for other in others), "pure code imports its package and errors"
        return
    own_layer = layer_of(module)
    for other in GRAPH[module]:
        # the package of a pure module is `data`, of which only the docstring runs
        below = is_pure(other) or other == "orchestrator.data" or layer_of(other) == own_layer
        assert below or LEVELS[layer_of(other)] < LEVELS[own_layer], f"{module} imports {other}, which is not below it"


def test_no_files_import_each_other_in_a_cycle() -> None:
    assert cycles(GRAPH) == []


def test_cycles_are_found() -> None:
    chain = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert cycles(chain) == []
    assert cycles({**chain, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "path", [path for path in MODULES.values() if path.name == "__init__.py" and path.parent != PACKAGE], ids=str
)
def test_every_package_says_what_lives_in_it_and_what_it_imports(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(docstring.split()) > 15
    assert "import" in docstring.lower()


@pytest.mark.parametrize("path", in_package("pruning"), ids=lambda path: path.name)
def test_pruning_is_pure(path: Path) -> None:
    assert not imported_roots(path) & {"ray", "torch", "open_clip", "hydra", "omegaconf", "pydantic", "fsspec"}


@pytest.mark.parametrize("path", in_package("clip"), ids=lambda path: path.name)
def test_clip_needs_torch_alone(path: Path) -> None:
    assert not imported_roots(path) & {"ray", "hydra", "omegaconf", "fsspec", "polars"}


@pytest.mark.parametrize("path", in_package("source"), ids=lambda path: path.name)
def test_sources_need_neither_ray_nor_torch(path: Path) -> None:
    assert not imported_roots(path) & {"ray", "torch"}


def test_only_the_command_line_imports_hydra() -> None:
    users = {module for module, path in MODULES.items() if imported_roots(path) & {"hydra", "omegaconf"}}
    assert users == {"orchestrator.cli"}


def test_the_command_line_imports_the_pipeline_only_when_a_verb_needs_it() -> None:
    assert "orchestrator.pipeline" not in GRAPH["orchestrator.cli"]


@pytest.mark.parametrize(
    "module",
    [
        "data.image_decode",
        "training.reader",
        "embedding.pool",
        "evaluation.image_reader",
        "pipeline",
        "training.stage",
        "evaluation.stage",
    ],
)
def test_neither_reading_tasks_nor_plans_import_torch(module: str) -> None:
    program = f"import sys, orchestrator.{module}; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
