"""`sparkmim pack`."""

from __future__ import annotations

import shlex
from pathlib import Path

import tyro

from ..utils.text import counted


def command(
    data: tyro.conf.Positional[str],
    output: Path,
    shard_mb: float = 500.0,
    resize: int | None = None,
    quality: int | None = None,
    workers: int = 2,
) -> int:
    """Pack images into tar files with an index, which are read from one place faster than many files are.

    A run is the same from them as from the folder, to the bit, unless images are encoded anew. The command given again
    continues where it was interrupted. Each tar file is read back before it counts.

    Args:
        data: folder of images, or an address (SCHEME://...).
        output: folder of the tar files.
        shard_mb: megabytes of a tar file, about.
        resize: most pixels of an image's shorter side; larger images are made smaller.
        quality: write all images of 8 bits as JPEG of this quality, 1 to 100; files stay as they are if not given.
        workers: processes that read and encode, each a tar file at a time.
    """
    from ..data.packing.pack import pack
    from ..data.packing.plan import in_units

    found = pack(data, output, shard_mb=shard_mb, resize=resize, quality=quality, workers=workers)
    skipped = f", {len(found.skipped)} skipped" if found.skipped else ""
    files = counted(found.shards, "tar file")
    packed = f"{counted(found.images, 'image')}{skipped}, {in_units(found.size)}"
    print(f"{packed} in {files}: --data {shlex.quote(found.address)}")
    return 0
