"""The images of a run that cannot be read: listed in its folder, and a reason to stop if they are many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..checkpoints.run_folder import RunFolder
from ..data.sources.base import ImageSource
from ..utils.io import write_text
from ..utils.text import printable
from .errors import RunStopped, kept


class BrokenImages:
    """Numbers of images, and why they cannot be read.

    Args:
        source: the images.
        run: where to list them.
        most: share of the images that may be broken.

    Attributes:
        errors: number of an image, and what its decoder said.
    """

    def __init__(self, source: ImageSource, run: RunFolder, most: float) -> None:
        self.source, self.run, self.most = source, run, most
        self.errors: dict[int, str] = {}
        self._listed = 0

    def note(self, broken: Iterable[tuple[int, str]]) -> None:
        """These were found."""
        self.errors |= dict(broken)

    def state(self) -> dict[str, str]:
        """For a checkpoint: by name, since numbers change with the folder's content."""
        return {self.source.name(index): error for index, error in self.errors.items()}

    def load(self, state: Mapping[str, str]) -> None:
        """Those of a checkpoint that are still there."""
        if state:
            names = ((index, self.source.name(index)) for index in range(len(self.source)))
            self.errors = {index: state[name] for index, name in names if name in state}

    def count(self) -> str:
        """How many they are, in words."""
        return f"{len(self.errors)} of {len(self.source)} images cannot be read"

    def lines(self) -> list[str]:
        """Name and error of each, a tabulator between them."""
        return [f"{printable(self.source.name(i))}\t{' '.join(e.split())}" for i, e in sorted(self.errors.items())]

    def list_new(self, *, write: bool) -> bool:
        """Bring the list in the folder up to date, if this process is the one to write it; whether there were new ones.

        Raises:
            RunStopped: if they are too many.
        """
        new = len(self.errors) > self._listed
        self._listed = len(self.errors)
        if new and write:
            write_text(self.run.broken, "\n".join(self.lines()) + "\n")
        if new and len(self.errors) > self.most * len(self.source):
            name, error = self.lines()[0].split("\t")
            raise RunStopped(
                f"{self.count()}, more than the share of {self.most} that --max-broken allows. The first: "
                f"{name}: {error}. All are listed in {self.run.broken}. Take them away, or allow "
                f"more of them. Last good state: {kept(self.run)}"
            )
        return new
