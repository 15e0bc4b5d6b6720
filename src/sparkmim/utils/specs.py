"""Python objects named on the command line: `FILE.py:NAME` or `MODULE:NAME`."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any


def is_function(model: str) -> bool:
    """Whether a model is named as `FILE.py:FUNCTION` or `MODULE:FUNCTION`, not by a name or address of timm's."""
    return ":" in model and not model.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


def load_function(spec: str) -> Callable[..., Any]:
    """The function of a Python file, written `FILE.py:FUNCTION`, or of an installed module, `MODULE:FUNCTION`.

    Raises:
        ValueError: if there is no such file, module or function.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py"):
        try:
            module = importlib.import_module(path)
        except (ImportError, ValueError, TypeError) as error:
            raise ValueError(f"{spec!r} is not FILE.py:FUNCTION, nor MODULE:FUNCTION of a module ({error})") from None
        if not callable(getattr(module, name, None)):
            close = get_close_matches(name, [n for n in dir(module) if callable(getattr(module, n))], n=4)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"module {path} defines no function {name!r}{hint}")
        return getattr(module, name)  # type: ignore[no-any-return]
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    function = getattr(_load_file(Path(path)), name, None)
    if not callable(function):
        raise ValueError(f"{path} defines no function {name!r}")
    return function  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    """Import a Python file, once for each content, under a name that is the same in every process.

    It is listed in `sys.modules`, where dataclasses, type hints and pickle look for the module of a class.
    """
    name = f"{path.stem}_{zlib.crc32(bytes(path.absolute()) + path.read_bytes()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def absolute_spec(spec: str) -> str:
    """`FILE.py:FUNCTION` with the whole path of the file, so that it is found from any folder."""
    path, _, function = spec.rpartition(":")
    return f"{Path(path).expanduser().absolute()}:{function}"
