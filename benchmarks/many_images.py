"""Start-up of a run over very many images: time and memory until the first step knows what it shows.

    python benchmarks/many_images.py --images 1000000 100000000 --folder DIR [--output FILE.md]

Tar files of 100,000 images each are simulated: their indexes are whole (44 bytes an image on the disk), the tar files
themselves are empty ones of the right size. What is measured is what a run does before its first step, in a fresh
process: opening the address, the digest of the names, the images of 100 steps, and a few names. Seconds are of the
processor, since other work disturbs. Memory is the process's own beyond that of a process that has imported the
package; indexes are mapped and can be given up.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

IN_A_SHARD = 100_000

BYTES = 50_000
"""Of an image."""


def simulate(folder: Path, images: int) -> None:
    """Write the indexes of tar files, and tar files without content."""
    from sparkmim.data.storage.names import Names
    from sparkmim.data.storage.reading import facts
    from sparkmim.data.storage.tar_index import ENDING, TarIndex

    folder.mkdir(parents=True)
    for shard in range(-(-images // IN_A_SHARD)):
        count = min(IN_A_SHARD, images - shard * IN_A_SHARD)
        path = folder / f"shard-{shard:06}.tar"
        with path.open("wb") as file:
            file.truncate((BYTES + 512) * count + 1024)
        numbers = np.arange(count)
        digits = [(numbers // 10**place % 10 + ord("0")).astype(np.uint8) for place in reversed(range(6))]
        head = np.frombuffer(f"{shard:06}/".encode(), np.uint8)
        tail = np.frombuffer(b".jpg", np.uint8)
        name = np.concatenate(
            [np.tile(head, (count, 1)), np.stack(digits, 1), np.tile(tail, (count, 1))], axis=1, dtype=np.uint8
        )
        offsets = numbers.astype("<i8") * (BYTES + 512) + 512
        names = Names(name.reshape(-1), (numbers.astype("<i8") + 1) * name.shape[1])
        index = TarIndex(facts(str(path)), offsets, np.full(count, BYTES, "<i8"), names, None, [], 0)
        index.write(Path(f"{path}{ENDING}"))


def own_mib() -> float:
    """Return the memory of this process that is of no file, in MiB."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(folder: Path) -> None:
    """Print a row of the table."""
    from sparkmim.data.config import Order
    from sparkmim.data.sampler import Positions
    from sparkmim.data.sources.address import open_source
    from sparkmim.data.sources.base import fingerprint

    before = own_mib()
    times = []

    def timed() -> None:
        times.append(time.process_time())

    timed()
    source = open_source(f"wds://{folder}")
    timed()
    fingerprint(source)
    timed()
    order: Order = "keyed" if len(source) > 10**7 else "listed"
    keys = [key for keys in Positions(len(source), 1024, 100, 0, order=order) for key in keys]
    timed()
    names = {source.name(index) for _, index in keys}
    timed()
    assert len(names) == len(keys)
    seconds = np.diff(times)
    parts = " | ".join(f"{value:.2f} s" for value in seconds)
    print(f"| {len(source):,} | {parts} | {seconds.sum():.1f} s | {own_mib() - before:.0f} MiB | {order} |")


def main() -> None:
    """Simulate and measure each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10**6, 10**8])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure)
        return
    command = f"python benchmarks/many_images.py --images {' '.join(map(str, chosen.images))} --folder DIR"
    rows = [
        "# Start-up with very many images",
        "",
        f"`{command}`, {datetime.date.today()}, {platform.machine()}, a busy core; processor time.",
        "",
        "| images | opening | digest of the names | order of 100 steps of 1024 | names | all | memory | `--order` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for images in chosen.images:
        folder = chosen.folder / str(images)
        simulate(folder, images)
        again = [sys.executable, __file__, "--folder", str(chosen.folder), "--measure", str(folder)]
        rows.append(subprocess.run(again, capture_output=True, text=True, check=True).stdout.strip())
        shutil.rmtree(folder)
    text = "\n".join(rows) + "\n"
    if chosen.output:
        chosen.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
