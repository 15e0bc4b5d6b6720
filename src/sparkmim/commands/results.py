"""The `results.json` of an evaluation."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..utils.io import read_json, require_writable, write_json


def write_results(output: Path | None, kind: str, results: dict[str, Any]) -> None:
    """Write `results.json` into a folder, if one is given; see :func:`check_output`."""
    if output is None:
        return
    path = output / "results.json"
    write_json(path, {"sparkmim": version("sparkmim"), "evaluation": kind, **results})
    print(f"results: {path}")


def check_output(output: Path | None, kind: str) -> None:
    """Validate that results of this kind can be written into a folder.

    Raises:
        ValueError: if it is a file, the folder of a run, holds the results of something else, or cannot be written.
    """
    if output is None:
        return
    if output.is_file():
        raise ValueError(f"--output {output} is a file; it takes a folder")
    if _is_run(output):
        raise ValueError(f"--output {output} is the folder of a run, which has results of its own; name another")
    path = output / "results.json"
    if path.exists():
        try:
            there = read_json(path)["evaluation"]
        except (ValueError, KeyError, TypeError):
            there = "something else"
        if there != kind:
            raise ValueError(f"{path} holds the results of {there}; use another --output")
    require_writable(path)


def _is_run(folder: Path) -> bool:
    from ..checkpoints.run_folder import RunFolder

    try:
        return RunFolder(folder).read_config() is not None
    except (OSError, ValueError):  # it holds something else
        return False
