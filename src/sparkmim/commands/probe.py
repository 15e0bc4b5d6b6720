"""`sparkmim probe`."""

from __future__ import annotations

from pathlib import Path

from ..evaluation.config import Pooling
from ..training.config import Device
from ..utils.text import counted
from .encoder_options import AS_RECORDED, FILES_AS_RECORDED, Address, Encoder, Files
from .results import check_output, write_results


def command(
    encoder: Path,
    data: Address,
    val_data: Address | None = None,
    test_data: tuple[Address, ...] = (),
    output: Path | None = None,
    model: str | None = None,
    stage: tuple[int, ...] = (-1,),
    pooling: Pooling = "mean",
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int = 1,
    device: Device = "auto",
    seed: int = 0,
    options: Encoder = AS_RECORDED,
    files: Files = FILES_AS_RECORDED,
) -> int:
    """Fit a linear classifier to the features of a frozen encoder.

    Logistic regression on standardized features, fitted to convergence for each of several penalties. Validation images
    choose the penalty; without any, a fifth of each class's training images does, and the classifier is then fitted
    again to all training images. With --pooling attention, queries that weight the positions of the feature map are
    then learned beside the classifier, and the same images choose the learning rate.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights; timm; or none (random).
        data: labeled images or volumes: class folders, a CSV file, or a folder that contains train, val and test;
            FOLDER/. takes its folders for classes, whatever their names.
        val_data: labeled images that choose the penalty; val beside train if not given.
        test_data: labeled images to score, several sets pooled; test beside train if not given.
        output: folder for results.json.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION, if the weights do not record it.
        stage: which feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        pooling: average the feature map over positions (mean), or weight them by learned queries (attention).
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining if not given.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights, of the choice of validation images, and with attention of the order of images.
        options: of the encoder.
        files: how images are read.
    """
    from ..evaluation.probe import linear_probe

    check_output(output, "probe")
    found = linear_probe(
        encoder,
        data,
        val_data=val_data,
        test_data=test_data,
        model=model,
        **options.settings(),
        **files.settings(),
        stage=stage,
        pooling=pooling,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        device=device,
        seed=seed,
    )
    features = found.probe.weight.shape[1]
    classes = counted(len(found.classes), "class", "classes")
    print(f"{counted(found.train_images, 'training image')} of {classes}, {features} features")
    print(f"{'penalty':>10}  {counted(found.val_images, 'validation image')}")
    for penalty, score in found.val_by_penalty.items():
        print(f"{penalty:>10.3g}  {score.top1:>8.2%}{' <- chosen' * (penalty == found.probe.penalty)}")
    if found.val_by_rate:
        print(f"{'rate':>10}  attention")
    for rate, score in found.val_by_rate.items():
        print(f"{rate or 'none':>10}  {score.top1:>8.2%}{' <- chosen' * (rate == getattr(found.probe, 'rate', None))}")
    if found.test is None:
        images = "the validation images, which also chose the penalty: slightly optimistic"
    else:
        images = counted(found.test_images, "test image")
    score = found.accuracy
    skipped = f"; {counted(found.skipped, 'image')} skipped" if found.skipped else ""
    name = "linear probe" if found.mean_pooled is None else "attentive probe"
    print(f"\n{name}: top-1 {score.top1:.2%}, mean over classes {score.class_mean:.2%} on {images}{skipped}")
    if found.mean_pooled is not None:
        linear = found.mean_pooled
        print(f"linear probe: top-1 {linear.top1:.2%}, mean over classes {linear.class_mean:.2%}")
    write_results(output, "probe", found.to_dict())
    return 0
