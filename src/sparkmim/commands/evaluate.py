"""`sparkmim evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..evaluation.config import SHOTS
from ..training.config import Device
from ..utils.text import counted
from .encoder_options import AS_RECORDED, FILES_AS_RECORDED, Address, Encoder, Files
from .results import check_output, write_results

NAMES = {"knn": "k-NN top-1", "retrieval_map": "retrieval mAP", "clustering_nmi": "clustering NMI"}


def command(
    encoder: Path,
    data: Address,
    test_data: tuple[Address, ...] = (),
    output: Path | None = None,
    model: str | None = None,
    stage: tuple[int, ...] = (-1,),
    image_size: int | None = None,
    standardize: Literal["on", "off"] = "on",
    shots: tuple[int, ...] = SHOTS,
    draws: int = 100,
    repeats: int = 10,
    batch_size: int = 64,
    workers: int = 1,
    device: Device = "auto",
    seed: int = 0,
    options: Encoder = AS_RECORDED,
    files: Files = FILES_AS_RECORDED,
) -> int:
    """Measure what frozen features are worth by labeled images: k-NN, few-shot, retrieval, clustering.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights; timm; or none (random).
        data: labeled images or volumes: class folders, a CSV file, or a folder that contains train, val and test;
            FOLDER/. takes its folders for classes, whatever their names.
        test_data: labeled images to classify, several sets pooled; test beside train, else val, if not given.
        output: folder for results.json.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION, if the weights do not record it.
        stage: which feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining if not given.
        standardize: compare features with mean 0 and deviation 1 over the training images.
        shots: numbers of images of a class from which to classify all others.
        draws: random choices of these.
        repeats: clusterings, from different first centers.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights, draws and clusterings.
        options: of the encoder.
        files: how images are read.
    """
    from ..evaluation.frozen_evaluation import evaluate_frozen

    check_output(output, "evaluate")
    found = evaluate_frozen(
        encoder,
        data,
        test_data=test_data,
        model=model,
        **options.settings(),
        **files.settings(),
        stage=stage,
        image_size=image_size,
        standardize=standardize == "on",
        shots=shots,
        draws=draws,
        repeats=repeats,
        batch_size=batch_size,
        workers=workers,
        device=device,
        seed=seed,
    )
    against = counted(found.test_images, "test image") if found.test_images else "each by all others"
    classes = counted(len(found.classes), "class", "classes")
    print(f"{counted(found.train_images, 'labeled image')} of {classes}, {found.features} features; {against}")
    for name, score in found.scores.items():
        title = NAMES.get(name) or f"{name.removeprefix('few_shot_')} of each class"
        title += f" (k {found.neighbours})" * (name == "knn")
        print(f"{title:>20}  {score.value:>7.2%} +- {score.error:.2%}")
    if found.skipped:
        print(f"{counted(found.skipped, 'image')} skipped")
    write_results(output, "evaluate", found.to_dict())
    return 0
