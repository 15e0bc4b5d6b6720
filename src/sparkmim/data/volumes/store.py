from __future__ import annotations
from collections.abc import Sequence
import numpy as np
import torch
from torch import Tensor
from ..decoding.encoded import EncodedImage
from ..sources.base import ImageSource


class StoredVolume(EncodedImage):
    def __init__(self, values, spacing=(1.0, 1.0, 1.0), affine=None):
        self.values, self.spacing, self.affine = values, spacing, affine
        self.shape = tuple(values.shape)

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.values[(slice(None), *map(slice, start, stop))]))

    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        return torch.from_numpy(self.values)


class PreparedVolumes(ImageSource): ...
class UnpreparedVolumes(ImageSource): ...
