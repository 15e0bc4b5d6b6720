"""Volumes that are prepared in memory when they are opened: for plans, and for few of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from ..sources.base import ImageSource
from .base import Case
from .fingerprint import Fingerprint, measure
from .preparing import Preparation, PrepareSettings, prepare_case, require_memory
from .store import StoredVolume

MEASURED = 32
"""Volumes, spread over the set, that are measured where nobody has measured them."""

KEPT = 4
"""Prepared volumes that are kept in memory."""


class UnpreparedVolumes(ImageSource):
    """Volumes that are read and prepared each time they are opened, the last few aside.

    Args:
        cases: the volumes.
        how: what is done to each; or settings, which are resolved by measuring up to 32 of the volumes.

    Attributes:
        fingerprint: of some of the volumes, if settings were given.
        preparation: what is done to each.

    Raises:
        ValueError: if none can be read, or spacings are mixed and not resampled.
    """

    def __init__(self, cases: Sequence[Case], how: PrepareSettings | Preparation) -> None:
        self.cases = list(cases)
        self.fingerprint: Fingerprint | None = None
        if isinstance(how, PrepareSettings):
            count = min(MEASURED, len(self.cases))
            self.fingerprint = measure([self.cases[index * len(self.cases) // count] for index in range(count)])
            how = Preparation.of(how, self.fingerprint)
            require_memory(how, self.fingerprint.cases)
        self.preparation = how
        self._kept: OrderedDict[int, StoredVolume] = OrderedDict()

    def __len__(self) -> int:
        return len(self.cases)

    def name(self, index: int) -> str:
        """Return the name of the case."""
        return self.cases[index].name

    @property
    def shapes(self) -> np.ndarray:
        """Return the shape of each volume that was measured once it is prepared, `(N, 3)`: voxels along each axis."""
        measured = [] if self.fingerprint is None else self.fingerprint.cases
        return np.array([self.preparation.size(case) for case in measured]).reshape(-1, 3)

    def open(self, index: int) -> StoredVolume:
        """Return a volume, read and prepared.

        Raises:
            UnreadableImage: if it cannot be read.
        """
        if index not in self._kept:
            prepared = prepare_case(self.cases[index], self.preparation)
            self._kept[index] = StoredVolume(prepared.values, prepared.values.shape, prepared.affine)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index]
