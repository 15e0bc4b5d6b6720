"""Python objects named on the command line: `FILE.py:NAME`, `MODULE:NAME`, or the name of a plug-in."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

LOCAL_FOLDER = "local-dir:"

ADDRESSES = ("hf-hub:", "hf_hub:", LOCAL_FOLDER)
"""Beginnings of timm's addresses, which name no Python object."""


NAMED = "sparkmim.models.named"
"""Package whose modules are the schemes of `SCHEME:NAME`, networks of other libraries; also a group of entry points."""

PLANS_FILE = r"(?P<path>.+\.json)#(?P<name>[^#]+)"
"""A name after a scheme that is an entry of a file."""


@cache
def schemes() -> frozenset[str]:
    """Return the schemes of networks of other libraries."""
    return frozenset(plugin_names(NAMED)) | {entry.name for entry in entry_points(group=NAMED)}


def scheme_of(spec: str) -> str | None:
    """Return the scheme of `SCHEME:NAME`, a network of another library; None for a spec of another form."""
    scheme, found, _ = spec.partition(":")
    return scheme if found and scheme in schemes() else None


def is_function(model: str) -> bool:
    """Return whether a model has a colon in its name: it is a function, or one of another library, but none of timm."""
    return ":" in model and not model.startswith(ADDRESSES)


def load_object(spec: str, what: str = "function") -> Any:
    """Return a function or class of a Python file, `FILE.py:NAME`, or of an installed module, `MODULE:NAME`.

    A file is imported once for each of its contents, so a class stays the same class.

    Args:
        spec: the file or module, and the name in it.
        what: is expected, for messages: a function, a class.

    Raises:
        ValueError: if there is no such file, module or name.
    """
    path, _, name = spec.rpartition(":")
    if path.endswith(".py"):
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path!r}")
        found = getattr(_import_file(Path(path)), name, None)
        if not callable(found):
            raise ValueError(f"{path} defines no {what} {name!r}")
        return found
    try:
        module = importlib.import_module(path)
    except (ImportError, ValueError, TypeError) as error:
        form = what.upper()
        raise ValueError(f"{spec!r} is not FILE.py:{form}, nor MODULE:{form} of a module ({error})") from None
    if not callable(getattr(module, name, None)):
        close = get_close_matches(name, [n for n in dir(module) if callable(getattr(module, n))], n=4)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"module {path} defines no {what} {name!r}{hint}")
    return getattr(module, name)


def _import_file(path: Path) -> ModuleType:
    name = f"sparkmim_user_{path.stem}_{sha256(os.fsencode(path.absolute()) + path.read_bytes()).hexdigest()[:16]}"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # dataclasses look their module up there
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def find_plugin(name: str, package: str, base: type[Any], option: str) -> type[Any]:
    """Return a subclass of `base` by name.

    A name is that of a module of `package`, which defines one such class, or of an entry point of the group `package`;
    `FILE.py:CLASS` and `MODULE:CLASS` name a class itself. There is no registry to edit.

    Args:
        name: of the plug-in, or of a class.
        package: whose modules are the plug-ins that come with sparkmim.
        base: class of plug-ins.
        option: that was given, for messages.

    Raises:
        ValueError: for an unknown name, with those there are, or an object that is not a subclass of `base`.
    """
    if ":" in name:
        return _require_subclass(load_object(name, "class"), base, name)
    own = plugin_names(package)
    if name in own:
        return plugin_of(importlib.import_module(f"{package}.{name}"), base)
    outside = {entry.name: entry for entry in entry_points(group=package)}
    if name in outside:
        return _require_subclass(outside[name].load(), base, name)
    known = ", ".join(dict.fromkeys([*own, *outside]))
    raise ValueError(f"{option} {name!r} is unknown; use one of {known}, or FILE.py:CLASS")


def plugin_names(package: str) -> list[str]:
    """Return the names of the plug-ins that come with a package: its modules, but for `base` and `settings`."""
    folder = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(folder) if module.name not in ("base", "settings"))


def plugin_of(module: ModuleType, base: type[Any]) -> type[Any]:
    """Return the subclass of `base` that a module defines itself.

    Raises:
        ValueError: if it does not define exactly one whose name has no leading underscore.
    """
    defined = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    if len(defined) != 1:
        raise ValueError(f"expected one subclass of {base.__name__} in {module.__name__}, got {len(defined)}")
    return defined[0]


def _require_subclass(found: Any, base: type[Any], name: str) -> type[Any]:
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"expected a subclass of sparkmim.{base.__name__}, got {name}: {found!r}")
    if inspect.isabstract(found):
        raise ValueError(f"expected {name} to define {', '.join(sorted(vars(found)['__abstractmethods__']))}")
    return found


def absolute_spec(spec: str) -> str:
    """Return `FILE.py:NAME` or `local-dir:FOLDER` with an absolute path, so that it is found from any folder.

    So is the file of `SCHEME:FILE.json#NAME`, and of `SCHEME:FILE.yaml` if there is one. What names no path is returned
    unchanged.
    """
    scheme = scheme_of(spec)
    if scheme is not None:
        name = spec.removeprefix(f"{scheme}:")
        if name.endswith((".yaml", ".yml")) and Path(name).expanduser().is_file():
            return f"{scheme}:{Path(name).expanduser().absolute()}"
        file = re.fullmatch(PLANS_FILE, name)
        return spec if file is None else f"{scheme}:{Path(file['path']).expanduser().absolute()}#{file['name']}"
    if spec.startswith(LOCAL_FOLDER):
        return f"{LOCAL_FOLDER}{Path(spec.removeprefix(LOCAL_FOLDER)).expanduser().absolute()}"
    path, _, name = spec.rpartition(":")
    return f"{Path(path).expanduser().absolute()}:{name}" if path.endswith(".py") else spec
