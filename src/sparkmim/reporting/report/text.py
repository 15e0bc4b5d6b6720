"""Values as readable text, without absolute paths."""

from __future__ import annotations

import html
import re

from ...utils.text import harmless

_FOLDERS = re.compile(
    r"""(?<![^\s'"`(\[{<>=:,;|])(?:file:///?|[A-Za-z]:[\\/]|~?/(?!/))  # root of an absolute path, not within a word
    (?:[^\s/\\'",;]+(?:[ ][^\s/\\'",;-]+)*[\\/])*  # folders, with spaces within but not at their ends
    (?=[^\s/\\'",;])  # followed by the last component, which stays
    """,
    re.VERBOSE,
)

_ABSOLUTE = re.compile(r"(file:)?/|~|[A-Za-z]:[\\/]")


def without_folders(text: str) -> str:
    """Shorten absolute paths in a text to their last component."""
    return _FOLDERS.sub("", text)


def as_html(value: object) -> str:
    """Format a value as HTML."""
    if value is None:
        return '<span class="none">none</span>'
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(as_html, value)) if value else '<span class="none">none</span>'
    return escaped(without_folders(str(value)))


def escaped(text: str) -> str:
    """Format a text as HTML, control characters as Python escapes."""
    return html.escape(harmless(text))


def name_as_html(name: str) -> str:
    """Format the name of a file or class as HTML: as it is, but for the folders of an absolute path."""
    return escaped(re.split(r"[/\\]", name)[-1] if _ABSOLUTE.match(name) else name)


def number(value: float, digits: int = 4) -> str:
    """Format a number: `0.6123`, `12,345`, `4e-5`; `script.js` formats alike."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.{digits}g}"
    return scientific(value, digits)


def scientific(value: float, digits: int = 4) -> str:
    """Format a number in scientific notation: `4e-5`, `1.25e-3`, `0`."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{float(mantissa):.{digits}g}e{int(exponent)}" if value else "0"
