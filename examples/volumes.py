"""Pretrain a small 3-D network on phantoms and a real volume, in minutes on a CPU: `python examples/volumes.py`.

With your own volumes it is one command: `sparkmim pretrain --data FOLDER --model nnunet:resenc-l --output runs/mine`.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
from nibabel.testing import data_path
from torch import Tensor, nn

import sparkmim

OUTPUT = Path("runs/demo-volumes")
PHANTOMS, SIZE = 15, 64


class Block(nn.Module):
    """Two convolutions with a shortcut; the first halves the size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, width, 3, 2, 1)
        self.norm1 = nn.InstanceNorm3d(width, affine=True)
        self.conv2 = nn.Conv3d(width, width, 3, 1, 1)
        self.norm2 = nn.InstanceNorm3d(width, affine=True)
        self.shortcut = nn.Conv3d(channels, width, 1, 2)
        self.act = nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of half the size."""
        y = self.act(self.norm1(self.conv1(x)))
        return self.act(self.shortcut(x) + self.norm2(self.conv2(y)))


def network() -> nn.Module:
    """Return an encoder of strides 2, 4 and 8. Any 3-D convolutional network will do."""
    return nn.Sequential(Block(1, 16), Block(16, 32), Block(32, 64))


def phantom(generator: np.random.Generator) -> np.ndarray:
    """Return a head of ellipsoids with a smooth gain and noise, `(SIZE, SIZE, SIZE)`."""
    axes = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 3, indexing="ij")
    values = np.zeros((SIZE,) * 3)
    for number in range(12):
        whole = number == 0
        center = generator.uniform(-0.05, 0.05, 3) if whole else generator.uniform(-0.5, 0.5, 3)
        radii = generator.uniform(0.7, 0.9, 3) if whole else generator.uniform(0.1, 0.35, 3)
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, center, radii, strict=True)) < 1
        values[inside if whole else inside & (values > 0)] = 500 if whole else generator.uniform(100, 900)
    gain = 1 + 0.2 * sum(w * a for w, a in zip(generator.uniform(-1, 1, 3), axes, strict=True))
    return (values * gain + generator.normal(0, 15, values.shape) * (values > 0)).astype(np.float32)


def write_data(folder: Path) -> None:
    """Write the phantoms, and a volume that nibabel ships for its tests."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(PHANTOMS):
        image = nibabel.Nifti1Image(phantom(generator), np.diag([3.0, 3.0, 3.0, 1.0]))
        nibabel.save(image, folder / f"phantom-{number:02}.nii.gz")
    shutil.copy(Path(str(data_path)) / "anatomical.nii", folder)


def main() -> None:
    """Write the data, pretrain, and say where to look."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = OUTPUT.parent / f"{OUTPUT.name}-data"
    write_data(data)
    outcome = sparkmim.pretrain(
        OUTPUT,
        chosen={
            "model": f"{Path(__file__).resolve()}:network",
            "data": data,
            "image_size": 32,
            "batch_size": 4,
            "epochs": 100,
            "pictures": 5,
        },
    )
    print(f"{outcome}\nOpen {OUTPUT / 'report.html'}")


if __name__ == "__main__":
    main()
