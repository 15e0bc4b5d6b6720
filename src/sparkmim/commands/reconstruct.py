"""`sparkmim reconstruct`."""

from __future__ import annotations

from pathlib import Path

from .encoder_options import FILES_AS_RECORDED, Files


def command(
    run: Path,
    output: Path,
    data: str | None = None,
    count: int = 8,
    seed: int = 0,
    mask_ratio: float | None = None,
    trust: bool = False,
    files: Files = FILES_AS_RECORDED,
) -> int:
    """Draw images, what the network sees of them, and its reconstructions.

    Args:
        run: folder of a run.
        output: the PNG file to write; or, of volumes, NAME.nii.gz for NIfTI files in their place in the world:
            NAME_volume.nii.gz, NAME_visible.nii.gz and NAME_reconstruction.nii.gz (of several volumes
            NAME_0_volume.nii.gz...).
        data: folder of images or volumes, or an address (SCHEME://...); the built-in photographs if not given.
        count: number of images, spread evenly over the folder, at most 8.
        seed: of the masks.
        mask_ratio: share of patches to hide; that of the run if not given.
        trust: run the code that the run's configuration names: only for files whose source you trust.
        files: how images are read.
    """
    from ..utils.io import require_suffix, require_writable
    from ..utils.text import counted, printable

    require_suffix(output, ".png", ".nii.gz", ".nii")
    from ..pretraining.reconstruct import reconstruct, require_volumes
    from ..reporting.reconstructions import save_png

    require_writable(output)
    picture = output.suffix.lower() == ".png"
    if not picture:
        require_volumes(run, output)
    found = reconstruct(run, data, count=count, seed=seed, mask_ratio=mask_ratio, trust=trust, **files.settings())
    if picture:
        save_png(found.picture, output)
        print(f"{counted(len(found.images), 'reconstruction')} after step {found.step}: {output}")
        return 0
    written = found.write_nifti(output)
    print(f"{counted(len(found.images), 'reconstruction')} after step {found.step}:")
    for number, volume in enumerate(found.volumes):
        names = ", ".join(path.name for path in written[3 * number : 3 * number + 3])
        print(f"  {printable(volume.name)}: {names}")
    return 0
