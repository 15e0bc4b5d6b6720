"""Code that a file names runs only if the user has named it too, or trusts the file."""

from __future__ import annotations

from collections.abc import Iterable

from .specs import ADDRESSES, scheme_of
from .text import printable


class Untrusted(ValueError):
    """A file names code, or something to fetch, that the user's own command does not name."""


def names_code(spec: object) -> bool:
    """Return whether a plug-in's name is `FILE.py:NAME` or `MODULE:NAME`, and not that of a registry."""
    return ":" in str(spec)


def require_trust(
    spec: str, role: str, path: object, *, trust: bool, named: Iterable[object] = (), remedy: str | None = None
) -> None:
    """Raise unless the user trusts a file that names code, or has named the same file or module.

    Args:
        spec: what the file names: `FILE.py:NAME`, `MODULE:NAME`, or an address of timm.
        role: of it, for messages: "network", "task".
        path: of the file.
        trust: whether the user trusts the file.
        named: what the user's own command or call names.
        remedy: another way than trust, as a flag.

    Raises:
        Untrusted: with what would run, and what to add to the command.
        ValueError: for a `trust` that is neither True nor False: any text would count as trust.
    """
    if not isinstance(trust, bool):
        raise ValueError(f"trust takes True or False, not {trust!r}")
    if trust or _home(spec) in {_home(str(own)) for own in named if own is not None}:
        return
    also = "" if remedy is None else f", or name it yourself: {printable(remedy)}"
    raise Untrusted(
        f"{path} names the {role} {printable(spec)!r}, and {_effect(spec)} on the file's word alone. If you trust "
        f"where the file is from, add --trust (in Python trust=True){also}"
    )


def _home(spec: str) -> str:
    """Return the file or module of a spec; an address, or a network of another library, as it is."""
    whole = spec.startswith(ADDRESSES) or scheme_of(spec) is not None
    return spec if whole else spec.rpartition(":")[0] or spec


def _effect(spec: str) -> str:
    """Return what would happen, as part of a sentence."""
    if spec.startswith("local-dir:"):
        return f"the folder {printable(spec.partition(':')[2])} would be read"
    if spec.startswith(ADDRESSES):
        return "it would be fetched from the Hugging Face hub"
    scheme = scheme_of(spec)
    if scheme is not None:
        return f"{scheme} would build it, and may fetch weights or read files"
    home, found, name = spec.rpartition(":")
    if not found:
        return "no registry of timm or torchvision has it"
    where = "the file" if home.endswith(".py") else "the Python module"
    return f"{printable(name)} of {where} {printable(home)} would run"
