"""The images of a run that cannot be read: listed in its folder, and a reason to stop if they are many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..checkpoints.run_folder import RunFolder
from ..data.sources.base import ImageSource
from ..utils.io import write_text
from ..utils.text import printable
from .errors import RunStopped, last_good


class TooManyUnreadable(RunStopped):
    """More images cannot be read than a run allows.

    Args:
        message: for the user.
        images: the record of them.
    """

    def __init__(self, message: str, images: UnreadableImages) -> None:
        super().__init__(message, everywhere=True)
        self.images = images


class UnreadableImages:
    """Record images that cannot be read.

    Args:
        source: the images.
        run: where to list them.
        max_share: share of the images that may be unreadable.
        path: of the list; the run's own of training images by default.

    Attributes:
        errors: number of an image, and what its decoder said.
    """

    def __init__(self, source: ImageSource, run: RunFolder, max_share: float, path: Path | None = None) -> None:
        self.source, self.run, self.max_share, self.path = source, run, max_share, path or run.broken
        self.errors: dict[int, str] = {}
        self._listed = 0

    def add(self, broken: Iterable[tuple[int, str]]) -> None:
        """Record number and error of some images."""
        self.errors |= dict(broken)

    def state(self) -> dict[str, str]:
        """Return the errors for a checkpoint: by name, since numbers change with the folder's content."""
        return {self.source.name(index): error for index, error in self.errors.items()}

    def load_state(self, state: Mapping[str, str]) -> None:
        """Resume from a checkpoint's errors, of those images that are still there."""
        if state:
            names = ((index, self.source.name(index)) for index in range(len(self.source)))
            self.errors = {index: state[name] for index, name in names if name in state}

    def _share(self) -> float:
        """Return a share that allows those found so far, and as many again."""
        return min(1.0, 2 * len(self.errors) / len(self.source))

    def summary(self) -> str:
        """Return how many they are, in words."""
        return f"{len(self.errors)} of {len(self.source)} images cannot be read"

    def lines(self) -> list[str]:
        """Return name and error of each, with a tabulator between them."""
        return [f"{printable(self.source.name(i))}\t{' '.join(e.split())}" for i, e in sorted(self.errors.items())]

    def update_list(self, *, write: bool) -> bool:
        """Bring the list in the folder up to date, if this process is to write it; return whether there are new ones.

        Raises:
            RunStopped: if they are too many.
        """
        new = len(self.errors) > self._listed
        self._listed = len(self.errors)
        if new and write:
            write_text(self.path, "\n".join(self.lines()) + "\n")
        if new and len(self.errors) > self.max_share * len(self.source):
            raise self.too_many()
        return new

    def too_many(self) -> TooManyUnreadable:
        """Return the error for more than are allowed, with what is saved now."""
        name, error = self.lines()[0].split("\t")
        return TooManyUnreadable(
            f"{self.summary()}, more than the share of {self.max_share} that --max-broken allows. The first: "
            f"{name}: {error}. All are listed in {self.path}. To allow them, give the same command with "
            f"--max-broken {self._share():.3g}. To train without them, remove them and begin a new run in another "
            f"--output. Last good state: {last_good(self.run)}",
            self,
        )
