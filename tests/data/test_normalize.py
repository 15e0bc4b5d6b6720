from __future__ import annotations

from dataclasses import replace

import torch
from torchvision.transforms import v2

from sparkmim.data.config import DataConfig
from sparkmim.data.normalize import Normalize, join

CONFIG = DataConfig(image_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


def test_bytes_are_normalized_as_their_share_of_white() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    config = replace(CONFIG, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    wanted = v2.functional.normalize(pixels.float() / 255, config.mean, config.std)
    torch.testing.assert_close(Normalize(config)(pixels), wanted)
    floats = pixels.float() / 255
    kept = floats.clone()
    torch.testing.assert_close(Normalize(config)(floats), wanted)
    assert torch.equal(floats, kept)
    # Images of 8 and of more bits in one batch.
    torch.testing.assert_close(Normalize(config)(join([pixels, floats])), torch.cat([wanted, wanted]))
    assert join([pixels, pixels]).dtype == torch.uint8
