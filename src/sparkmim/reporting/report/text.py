"""Values as readable text, without the folders of this machine."""

from __future__ import annotations

import html
import re

_FOLDERS = re.compile(
    r"""(?<![\w./\\~-])(?:file:///?|[A-Za-z]:[\\/]|~?/(?!/))  # the root of an absolute path, no part of another word
    (?:[^\s/\\'",;]+(?:[ ][^\s/\\'",;-]+)*[\\/])*  # its folders, with spaces within but not at their ends
    (?=[^\s/\\'",;])  # what is left: its last component
    """,
    re.VERBOSE,
)


def without_folders(text: str) -> str:
    """A text with the absolute paths in it cut to their last component."""
    return _FOLDERS.sub("", text)


def as_html(value: object) -> str:
    """A value as HTML."""
    if value is None:
        return '<span class="none">none</span>'
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(as_html, value)) if value else '<span class="none">none</span>'
    return html.escape(without_folders(str(value)))


def number(value: float, digits: int = 4) -> str:
    """Readable: `0.6123`, `12,345`, `4e-5`. `script.js` writes numbers alike."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.{digits}g}"
    return scientific(value, digits)


def scientific(value: float, digits: int = 4) -> str:
    """Short: `4e-5`, `1.25e-3`, `0`."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"
