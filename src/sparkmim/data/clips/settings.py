"""How clips are seen."""

from __future__ import annotations

from dataclasses import dataclass

from ...utils.fields import Valid, at_least, setting


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How clips are seen; other data have no use for it."""

    frames: int | None = setting(None, Valid(lambda v: v is None or v >= 1, "is a number of frames, at least 1"))
    """Frames of a view, the first number of --image-size; about 16 if not given."""

    frame_stride: int = setting(1, at_least(1, "a number of frames"))
    """Frames from one of a view to the next: 2 shows every other one, so that a view lasts twice as long."""
