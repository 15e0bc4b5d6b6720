"""Tables of names and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .text import as_html, name_as_html

MOST_UNREADABLE = 20
"""Maximum number of images named."""


def table(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table with a row for each name and value."""
    cells = "".join(f"<tr><th scope=row>{as_html(k)}</th><td>{as_html(v)}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>" if cells else ""


def unreadable(images: Sequence[tuple[str, str]]) -> str:
    """Return a table of images that could not be read, with their errors."""
    if not images:
        return ""
    more = f"; the first {MOST_UNREADABLE}" if len(images) > MOST_UNREADABLE else ""
    count = f"{len(images):,} image{'s' * (len(images) > 1)}"
    rows = "".join(
        f"<tr><th scope=row>{name_as_html(name)}</th><td>{as_html(error)}</td></tr>"
        for name, error in images[:MOST_UNREADABLE]
    )
    return f"<p>{count} could not be read{more}:</p><table>{rows}</table>"
