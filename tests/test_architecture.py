"""Folders are the layers: imports run downward only, there is no circle, and the engine needs nothing but torch."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import sparkmim

PACKAGE = Path(sparkmim.__file__).parent

LAYERS = [
    "utils",
    "sparse",
    "objectives",
    "models",
    "reporting",
    "data",
    "checkpoints",
    "training",
    "evaluation",
    "pretraining",
    "refinement",
    "transfer",
    "exporters",
    "diagnostics",
    "commands",
    "cli",
    "recipes",
    "__init__",
    "__main__",
]
"""Folders and top-level modules from the foundation up: each may import those before it, and within itself."""

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it: in functions and under TYPE_CHECKING too."""
    package = ["sparkmim", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                names.add(inner if inner in MODULES else module)
    return names


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    part = part_of(module_of(path))
    for name in imports(path):
        if name.split(".")[0] == "sparkmim" and part_of(name) != part:
            assert LAYERS.index(part_of(name)) < LAYERS.index(part), f"{path.name} imports {name}"


def test_every_part_has_a_layer() -> None:
    assert {part_of(module) for module in MODULES} <= set(LAYERS)


def test_there_is_no_circle() -> None:
    """Within packages neither, TYPE_CHECKING and imports in functions included."""
    arrows = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    left = dict(arrows)
    while True:
        free = [module for module, needed in left.items() if not needed & left.keys()]
        if not free:
            break
        for module in free:
            del left[module]
    circle = {module: sorted(needed & left.keys()) for module, needed in left.items()}
    assert not circle


def test_engine_needs_torch_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "sparkmim"}
    for path in (PACKAGE / "sparse").rglob("*.py"):
        optional = {"triton"} if path.name == "triton_kernels.py" else set()  # imported when a kernel runs
        assert {name.split(".")[0] for name in imports(path)} <= allowed | optional, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_kernels_are_imported_within_functions_only(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert "triton_kernels" not in {*(node.module or "").split("."), *(alias.name for alias in node.names)}
