"""Format quantities and names as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Format a duration: `42 s`, `7 min`, `3 h 20 min`, `2 days 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """Return a number of things: `1 image`, `2 images`, `1,600 steps`, `0.5 epochs`, `3 classes`.

    Args:
        number: of things.
        noun: for one.
        plural: for any other number; the noun with an s if not given.
    """
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {noun if number == 1 else plural or f'{noun}s'}"


SINGULAR = {"are": "is", "have": "has", "were": "was", "do": "does"}
"""Forms of verbs for one thing that are not the form for several and an s."""


def verb(number: float, several: str) -> str:
    """Return the form of a verb for a number of things: `1 of 3 images is`, `2 of 3 images are`.

    Args:
        number: of things.
        several: the form for any number but one.
    """
    return SINGULAR.get(several, f"{several}s") if number == 1 else several


def harmless(text: str) -> str:
    """Return a text in which all control characters but line ends and tabulators are Python escapes.

    A terminal obeys escape sequences, and carriage returns overwrite lines, whatever file they come from.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def printable(name: str) -> str:
    """Return a name on one line that is safe to print: unprintable characters become Python escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
