"""Find the clips at an address and open them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...reporting.text_tables import aligned, spread
from ...utils.logging import log
from ...utils.text import counted, printable
from ..decoding.encoded import UnreadableImage
from ..sources.folder import Files, path_at, walk
from ..statistics import spread_indices
from .base import Clip, ClipSize
from .reading import ARRAYS, VIDEOS, is_frame, library, open_clip

SCHEME = "clips://"
"""Begins an address of clips whose files may be something else too, as arrays and pictures are."""

SURVEYED = 16
"""Clips whose sizes are looked at before a run."""

FEWEST = 2
"""Pictures of a folder from which on it is a clip."""


@dataclass(frozen=True)
class ClipPreparation:
    """How clips are seen, as an encoder's file records it.

    Attributes:
        frame_stride: frames from one of a view to the next.
    """

    frame_stride: int

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClipPreparation:
        """Build it from the content of a file.

        Raises:
            ValueError: if it is none.
        """
        stride = value.get("frame_stride")
        if not isinstance(stride, int) or isinstance(stride, bool) or not 1 <= stride < 2**31:
            raise ValueError("it lacks the frames from one to the next")
        return cls(stride)


class Clips(Files):
    """Clips below a folder: folders of frames, arrays and video files.

    Args:
        root: the folder.
        names: paths below it.
        preparation: how they are seen.

    Attributes:
        sizes: of some clips, spread over the set.
    """

    def __init__(self, root: Path, names: Sequence[str], preparation: ClipPreparation) -> None:
        super().__init__(root, names)
        self.preparation = preparation
        self.sizes: list[ClipSize] = []

    def open(self, index: int) -> Clip:
        """Return a clip, unread."""
        clip = open_clip(self.root / self.name(index))
        clip.stride = self.preparation.frame_stride
        return clip

    @property
    def extents(self) -> np.ndarray:
        """Return frames, height and width of the clips that were looked at, `(N, 3)`; frames of the stride."""
        stride = self.preparation.frame_stride
        return np.array([(-(-size.frames // stride), size.height, size.width) for size in self.sizes])


def find_clips(address: str | Path, option: str = "--data") -> tuple[Path, list[str]]:
    """Find the clips below a folder, nested or not: video files, arrays, and folders of frames.

    Where there are video files or arrays, pictures beside them are passed over.

    Returns:
        The folder, and the paths below it in alphabetical order.

    Raises:
        ValueError: if there is none, with what there is instead.
    """
    root = path_at(address, SCHEME, option)
    shown = printable(str(root))
    if not root.is_dir():
        if os.path.splitext(root.name)[1].lower() not in VIDEOS | {*ARRAYS}:
            raise ValueError(
                f"{option} {shown} is not a clip; expected a video file, an .npy file, or a folder of them"
            )
        return root.parent, [root.name]
    files: list[str] = []
    pictures: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for below, entry in walk(root):
        extension = os.path.splitext(entry.name)[1].lower()
        if extension in VIDEOS or extension in ARRAYS:
            files.append(below + entry.name)
        elif is_frame(entry.name):
            pictures[below.rstrip(os.sep)] += 1
        else:
            others[extension or "no extension"] += 1
    if files and pictures:
        log.warning(f"passed over {pictures.total()} pictures of {shown}, which holds videos or arrays")
    if not files and "" in pictures:
        raise ValueError(
            f"{option} {shown} holds {pictures['']} pictures itself; expected a folder for each clip, with its frames"
        )
    names = files or [folder for folder, count in pictures.items() if count >= FEWEST]
    if not names:
        found = ", ".join(f"{count} {kind}" for kind, count in [("pictures", pictures.total()), *others.most_common(4)])
        raise ValueError(
            f"no clip in {shown}: it holds {found if pictures or others else 'no file'}; expected video files, .npy "
            f"files, or folders of at least {FEWEST} frames"
        )
    return root, sorted(names)


def clips_table(clips: Clips) -> str:
    """Return the number of clips, and the sizes of those that were looked at, a line for each."""
    rates = [size.rate for size in clips.sizes if size.rate is not None]
    columns = {
        "frames": [size.frames for size in clips.sizes],
        "height, pixels": [size.height for size in clips.sizes],
        "width, pixels": [size.width for size in clips.sizes],
        "frames a second": rates,
    }
    rows = [(name, spread(np.array(values))) for name, values in columns.items() if values]
    first = f"{counted(len(clips), 'clip')}; median, and smallest to largest, of {len(clips.sizes)}"
    return "\n".join([first, *aligned(rows)])


def open_clips(
    address: str | Path, preparation: ClipPreparation, channels: int | None = None, option: str = "--data"
) -> Clips:
    """Open the clips at an address.

    Args:
        address: a folder or a file.
        preparation: how they are seen.
        channels: of the network; 3 if None.
        option: that named the address, for messages.

    Raises:
        ValueError: if there are none, none can be read, or a library is missing.
    """
    root, names = find_clips(address, option)
    if any(os.path.splitext(name)[1].lower() in VIDEOS for name in names):
        library()
    clips = Clips(root, names, preparation)
    errors = []
    for index in spread_indices(SURVEYED, len(names)):
        try:
            clips.sizes.append(clips.open(index).measure(channels or 3))
        except UnreadableImage as error:
            errors.append(f"{printable(names[index])}: {error}")
    if not clips.sizes:
        raise ValueError(f"{option} {printable(str(root))}: none of {len(errors)} clips tried can be read; {errors[0]}")
    return clips
