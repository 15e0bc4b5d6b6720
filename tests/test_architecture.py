"""Imports run downward only, and the engine needs nothing but torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sparkmim

PACKAGE = Path(sparkmim.__file__).parent

# From the foundation up: a module may import those of earlier layers and of its own part.
LAYERS = [
    {"sparse", "alignment", "stages", "atomic", "units", "activation", "composed", "recompute"},
    {"backbone", "masking", "objective", "projection"},
    {"decoder"},
    {"spark"},
    {"data", "device", "interchange", "models", "visualize"},
    {"report"},
    {"build"},
    {"train"},
    {"recipes", "trained", "features"},
    {"continuing", "carry_out"},
    {"prepare", "reconstruct", "embed", "export", "figures", "benchmark"},
    {"evaluate"},
    {"pretrain"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it."""
    package = ["sparkmim", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names |= (
                {".".join([*module, alias.name]) for alias in node.names} if not node.module else {".".join(module)}
            )
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    part = part_of(path)
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] == "sparkmim" and len(pieces) > 1 and pieces[1] != part:
            assert LEVEL[pieces[1]] < LEVEL[part], f"{path.name} imports {name}"


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in FILES} == set(LEVEL)


def test_engine_needs_torch_alone() -> None:
    import sys

    allowed = set(sys.stdlib_module_names) | {"torch", "sparkmim"}
    for path in (PACKAGE / "sparse").rglob("*.py"):
        optional = {"triton"} if path.name == "kernels.py" else set()  # imported when a kernel runs
        assert {name.split(".")[0] for name in imports(path)} <= allowed | optional, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_kernels_are_imported_within_functions_only(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert "kernels" not in {*(node.module or "").split("."), *(alias.name for alias in node.names)}
