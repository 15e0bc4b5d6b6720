"""Volumes that are prepared in memory when they are opened: for plans, and for few of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from ..sources.base import ImageSource
from .base import Case
from .fingerprint import Fingerprint, measure
from .preparing import Preparation, PrepareSettings, prepare_case
from .store import StoredVolume

MEASURED = 32
"""Volumes, spread over the set, that are measured where nobody has measured them."""

KEPT = 4
"""Prepared volumes that are kept in memory."""


class UnpreparedVolumes(ImageSource):
    """Volumes that are read and prepared each time they are opened, the last few aside.

    Attributes:
        settings: how they are prepared.
        fingerprint: of all volumes, or of some of them.
        preparation: what follows for each.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        settings: PrepareSettings,
        fingerprint: Fingerprint | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        """Measure up to 32 of the volumes if no fingerprint is given.

        Raises:
            ValueError: if none can be read, or spacings are mixed and not resampled.
        """
        self.cases, self.settings = list(cases), settings
        if fingerprint is None:
            count = min(MEASURED, len(self.cases))
            fingerprint = measure([self.cases[index * len(self.cases) // count] for index in range(count)])
        self.fingerprint = fingerprint
        self.preparation = Preparation.of(settings, fingerprint) if preparation is None else preparation
        self._kept: OrderedDict[int, StoredVolume] = OrderedDict()

    def __len__(self) -> int:
        return len(self.cases)

    def name(self, index: int) -> str:
        """Return the name of the case."""
        return self.cases[index].name

    @property
    def shapes(self) -> np.ndarray:
        """Return the shape of each volume that was measured once it is prepared, `(N, 3)`: voxels along X, Y and Z."""
        return np.array([self.preparation.size(case) for case in self.fingerprint.cases])

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
