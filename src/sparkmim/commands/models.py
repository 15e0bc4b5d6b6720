"""`sparkmim models`."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro


def command(
    patterns: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    all: bool = False,
    up_to: float = math.inf,
    output: Path | None = None,
    journal: Path | None = None,
    older: bool = False,
    jobs: int = 1,
    memory: float | None = None,
    timeout: float = 1800.0,
) -> int:
    """Check many of timm's networks on visible patches, and write a table.

    Networks with attention, with recurrence over positions, or for a single image size are left out, with the reason.
    Without patterns, the smallest network of each of timm's modules is checked.

    Args:
        patterns: names of networks, with * and ?.
        all: check all networks that are convolutional, the smallest first.
        up_to: millions of parameters of the largest network to check; larger ones are listed.
        output: Markdown file for the table.
        journal: file (.jsonl) in which outcomes are stored as they come, so that the same command resumes; beside the
            table by default.
        older: also take networks that passed under other versions from the journal; the table says which versions.
        jobs: networks at a time, each in a process of its own.
        memory: GiB that one network may take; one that needs more is reported as failing. No limit by default.
        timeout: seconds that one network may take.
    """
    from ..utils.io import require_suffix, require_writable, write_text

    if output is not None:
        require_suffix(output, ".md")
    from ..diagnostics.sweep.run import sweep
    from ..diagnostics.sweep.table import all_pass, document, summary, table

    if output is not None:
        require_writable(output)
    if journal is None and output is not None:
        journal = output.with_suffix(".jsonl")
    verdicts = sweep(
        patterns, every=all, up_to=up_to, journal=journal, older=older, jobs=jobs, memory=memory, timeout=timeout
    )
    print(f"\n{summary(verdicts) if output else table(verdicts)}")
    if output is not None:
        write_text(output, document(verdicts, shlex.join(["sparkmim", *sys.argv[1:]])))
        print(f"table: {output}")
    return 0 if all_pass(verdicts) else 1
