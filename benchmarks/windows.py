"""Measure a window of a TIFF file of 60,000 x 60,000 pixels against one of 6,000 x 6,000, and against all of that.

    python benchmarks/windows.py

Files are RGB of 8 bits in tiles of 256 x 256, deflate, of a few different tiles, so that they take 500 MB of disk. Each
measurement runs in a process of its own, twice in turn.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from sparkmim.data.config import ViewConfig
from sparkmim.data.sources.folder import Files
from sparkmim.data.views import TrainingView

SIDE = 256
"""Height and width of a tile."""


def write(path: Path, side: int) -> None:
    """Write a square file."""
    small = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    kinds = [np.kron(np.roll(small, turn, 0), np.ones((8, 8, 1), np.uint8)) for turn in range(6)]
    compressed = [zlib.compress(tile.tobytes(), 1) for tile in kinds]

    def tiles() -> Iterator[bytes]:
        for number in range(math.ceil(side / SIDE) ** 2):
            yield compressed[number % len(compressed)]

    settings: dict[str, Any] = {"tile": (SIDE, SIDE), "photometric": "rgb", "compression": "zlib", "bigtiff": True}
    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, **settings)


def measure(path: Path, crop: str, views: int) -> str:
    """Return time and memory of training views of 224 x 224 pixels."""
    torch.set_num_threads(1)
    config = ViewConfig(image_size=(224, 224), crop=crop, mean=(0.5,) * 3, std=(0.2,) * 3)  # type: ignore[arg-type]
    view, source, times = TrainingView(config), Files(path.parent, [path.name]), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(views):
        start = time.perf_counter()
        view.look(source, 0, 3, torch.Generator().manual_seed(seed))
        times.append(1000 * (time.perf_counter() - start))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return (
        f"| {path.stem} | {crop} | {statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f}) | {peak:.0f} |"
    )


def main() -> None:
    """Write the files and measure, or measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("one", nargs="*", help="file, crop and views of one measurement")
    one = parser.parse_args().one
    if one:
        print(measure(Path(one[0]), one[1], int(one[2])))
        return
    heads = ("side of the file", "crop", "ms a view, median (least to most)", "MiB more at the peak")
    print(f"| {' | '.join(heads)} |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for side in (6_000, 60_000):
            write(Path(folder, f"{side}.tif"), side)
        for side, crop, views in ((60_000, "native", 20), (6_000, "native", 20), (6_000, "resized", 3)) * 2:
            subprocess.run([sys.executable, __file__, str(Path(folder, f"{side}.tif")), crop, str(views)], check=True)


if __name__ == "__main__":
    main()
