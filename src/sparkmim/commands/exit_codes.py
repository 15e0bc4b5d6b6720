"""Exit codes of `sparkmim`; 1 is a check that failed."""

BAD_INPUT = 2
"""The command cannot be carried out as given; nothing was done."""

STOPPED = 3
"""A run cannot continue, or memory was insufficient."""

INTERRUPTED = 75
"""Interrupted, and saved."""

KILLED = 130
"""Interrupted, and not saved."""

UNREAD = 141
"""The reader of the output has ended."""
