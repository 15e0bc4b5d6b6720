"""Times random crops of volumes in one run, in turn: from the store, and from .nii.gz files by nibabel.

    python benchmarks/volume_crops.py --side 256 --crop 32

The volumes are a noisy phantom: smooth tissue within a head, in zeros, int16, 1 mm. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from compare import cpu_name
from sparkmim.data.volumes.cases import find_cases
from sparkmim.data.volumes.preparing import PrepareSettings, prepare

VOLUMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="voxels along each axis of a volume")
    parser.add_argument("--crop", type=int, default=32, help="voxels along each axis of a crop")
    parser.add_argument("--rounds", type=int, default=10, help="crops from each file, one round after the other")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.side, arguments.crop, arguments.rounds)


def measure(folder: Path, side: int, crop: int, rounds: int) -> None:
    data = folder / "data"
    data.mkdir()
    for seed in range(VOLUMES):
        nib.save(nib.Nifti1Image(phantom(seed, side), np.eye(4)), data / f"{seed}.nii.gz")
    cases = find_cases(data)
    start = time.process_time()
    store = prepare(cases, PrepareSettings(spacing="none", foreground=False), folder / "store", workers=0)
    prepared = (time.process_time() - start) / VOLUMES
    random = np.random.default_rng(0)

    def part() -> tuple[slice, ...]:
        return tuple(slice(int(at), int(at) + crop) for at in random.integers(side - crop + 1, size=3))

    def from_store(index: int) -> None:
        where = part()
        store.open(index).crop([s.start for s in where], [s.stop for s in where])

    def up_to_the_crop(index: int) -> None:
        np.asarray(nib.Nifti1Image.from_filename(cases[index].files[0]).dataobj[part()], np.float32)

    def whole_file(index: int) -> None:
        np.asarray(nib.Nifti1Image.from_filename(cases[index].files[0]).dataobj, np.float32)[part()]

    contestants: dict[str, Callable[[int], None]] = {
        "store": from_store,
        "nibabel, up to the crop": up_to_the_crop,
        "nibabel, whole file": whole_file,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds * VOLUMES):
        for name, read in contestants.items():
            start = time.process_time()
            read(number % VOLUMES)
            times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    sizes = [path.stat().st_size / 1e6 for path in (cases[0].files[0], *(folder / "store" / "volumes").iterdir())]
    print(f"{datetime.date.today()}, {cpu_name()}, one thread; {side}^3 voxels, crops of {crop}^3, {rounds} rounds")
    print(
        f"file {sizes[0]:.1f} MB, in the store {sizes[1]:.1f} MB; measured and prepared in {prepared:.1f} s a volume\n"
    )
    print("| from | median of processor time, ms | of the store's |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {1000 * value:.2f} | {value / medians['store']:.0f} |")


def phantom(seed: int, side: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32)] * 3, indexing="ij")
    head = (x / 0.75) ** 2 + (y / 0.9) ** 2 + (z / 0.85) ** 2 < 1
    tissue = ndimage.zoom(random.normal(size=(16, 16, 16)).astype(np.float32), side / 16, order=1)
    values = 400 + 150 * tissue + 25 * random.normal(size=(side, side, side))
    return np.where(head, values, 0).clip(0).astype(np.int16)


if __name__ == "__main__":
    main()
