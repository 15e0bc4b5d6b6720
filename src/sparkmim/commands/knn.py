"""`sparkmim knn`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..evaluation.config import NEIGHBOURS
from ..training.config import Device
from ..utils.text import counted
from .encoder_options import AS_RECORDED, FILES_AS_RECORDED, Address, Encoder, Files
from .results import check_output, write_results


def command(
    encoder: Path,
    data: Address,
    test_data: tuple[Address, ...] = (),
    output: Path | None = None,
    model: str | None = None,
    stage: tuple[int, ...] = (-1,),
    image_size: int | None = None,
    neighbours: tuple[int, ...] = NEIGHBOURS,
    batch_size: int = 64,
    workers: int = 1,
    device: Device = "auto",
    seed: int = 0,
    standardize: Literal["on", "off"] = "off",
    options: Encoder = AS_RECORDED,
    files: Files = FILES_AS_RECORDED,
) -> int:
    """Classify images by their nearest labeled neighbors, with the features of a frozen encoder.

    Cosine similarity, votes weighted by exp(similarity / 0.07). The number of neighbors is the one with the highest
    leave-one-out accuracy on the training images.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights; timm; or none (random).
        data: labeled images or volumes: class folders, a CSV file, or a folder that contains train, val and test;
            FOLDER/. takes its folders for classes, whatever their names.
        test_data: labeled images to classify, several sets pooled; test beside train, else val, if not given.
        output: folder for results.json.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION, if the weights do not record it.
        stage: which feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining if not given.
        neighbours: numbers of neighbors to try.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights.
        standardize: compare features with mean 0 and deviation 1 over the training images.
        options: of the encoder.
        files: how images are read.
    """
    from ..evaluation.knn import knn

    check_output(output, "knn")
    found = knn(
        encoder,
        data,
        test_data=test_data,
        model=model,
        **options.settings(),
        **files.settings(),
        stage=stage,
        image_size=image_size,
        neighbours=neighbours,
        batch_size=batch_size,
        workers=workers,
        device=device,
        seed=seed,
        standardize=standardize == "on",
    )
    classes = counted(len(found.classes), "class", "classes")
    print(f"{counted(found.train_images, 'training image')} of {classes}, {found.features} features")
    print(f"{'neighbors':>10}  leave one out" + (f"  {counted(found.test_images, 'test image')}" if found.test else ""))
    for k, value in found.leave_one_out.items():
        tested = f"  {found.test[k].top1:>10.2%}" if found.test else ""
        print(f"{k:>10}  {value.top1:>12.2%} {tested}{' <- chosen' * (k == found.neighbours)}")
    score = found.accuracy
    skipped = f"; {counted(found.skipped, 'image')} skipped" if found.skipped else ""
    print(f"\nk-NN: top-1 {score.top1:.2%}, mean over classes {score.class_mean:.2%}{skipped}")
    write_results(output, "knn", found.to_dict())
    return 0
