"""What a fine-tuning is to do, and whether it can: everything that can be found wrong is found here."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.encoder import TrainedEncoder, load_network
from ..checkpoints.run_folder import Contents, RunFolder, read_checkpoint
from ..data.labels import LabelledImages, fold, label_share, labelled_splits
from ..data.statistics import first_readable
from ..models.factory import code_of
from ..training.config import show
from ..training.memory import free_memory
from ..training.prepare import check_named_checkpoint, check_output, check_training, normalise
from ..training.ranges import check_values
from ..training.resume import config_of, described, newest_state, recorded_run
from ..utils.devices import pick_device
from ..utils.specs import absolute_spec
from .config import FinetuneConfig, LabelledDataConfig
from .recipes import Situation, find_recipe

TASK = "finetune"

PRETRAINED = "a checkpoint of a pretraining; start from the encoder of its run: --encoder RUN"
"""What `--resume` is told of the checkpoint of a run of the other kind."""

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label_share": (lambda v: 0 < v <= 1, "is a share of the labels, above 0 and at most 1"),
    "folds": (lambda v: v == 0 or v >= 2, "is a number of folds, at least 2, or 0 for no cross-validation"),
    "fold": (lambda v: v >= 0, "is the number of a fold, from 0"),
    "erasing": (lambda v: 0 <= v <= 1, "is a share of the views, from 0 to 1"),
    "mixup": (lambda v: 0 <= v < math.inf, "must be at least 0"),
    "cutmix": (lambda v: 0 <= v < math.inf, "must be at least 0"),
    "repeats": (lambda v: v >= 1, "is a number of views, at least 1"),
    "smoothing": (lambda v: 0 <= v < 1, "is a share from 0 to below 1"),
    "layer_decay": (lambda v: 0 < v <= 1, "is a factor above 0 and at most 1"),
    "ema": (lambda v: 0 <= v < 1, "is a rate from 0 to below 1"),
}
"""For each field that pretraining has not, a test, and how to say it."""


class LabelledSets(NamedTuple):
    """Images to train on, to validate with, and to score the result on."""

    train: LabelledImages
    val: LabelledImages | None
    test: LabelledImages | None

    def described(self) -> dict[str, str]:
        """Number and digest of the names and labels of each."""
        named = {"images": self.train, "held_out": self.val, "test": self.test}
        return {name: described_labels(labelled) for name, labelled in named.items()}


def described_labels(labelled: LabelledImages | None) -> str:
    """Number and digest of the names and labels of some images."""
    if labelled is None:
        return "none"
    digest = hashlib.sha256("\0".join(labelled.classes[label] for label in labelled.labels).encode())
    return f"{described(labelled.source)}, labels {digest.hexdigest()[:16]}"


class Preparation(NamedTuple):
    """A run that can begin: everything checked, nothing written."""

    recipe: str
    config: FinetuneConfig
    sets: LabelledSets
    encoder: TrainedEncoder | None  # to start from
    run: RunFolder
    found: Contents  # of its folder
    state: dict[str, Any] | None  # the checkpoint to continue from
    warnings: list[str]  # for the user


def prepare(
    output: str | Path, recipe: str | None, resume: str, chosen: Mapping[str, Any], processes: int
) -> Preparation:
    """Find out what is to be done, and whether it can be. Where a run begins is as for
    :func:`sparkmim.pretraining.prepare.prepare`, but for `encoder` instead of `init`.

    Raises:
        ValueError: naming what is wrong and what to do.
    """
    chosen = normalise(chosen, FinetuneConfig)
    check(chosen)
    if recipe is not None and ".py:" in recipe:
        recipe = absolute_spec(recipe)
    run = RunFolder(output)
    found = run.contents()
    there = recorded_run(run, FinetuneConfig, resume, recipe, chosen, TASK)
    state = None if resume in ("auto", "never") else read_checkpoint(Path(resume).expanduser())
    warnings: list[str] = []
    encoder = None
    if there is not None:
        name, config = there.recipe, there.config
        sets = read_sets(config.data, config.run.seed)
        there.check_images(sets.described())
        if state is None:
            state, warnings = newest_state(run)
        if state is None:
            encoder = read_encoder(config.flat())
    elif state is not None and recipe is None:
        name = f"of {Path(resume).name}"
        config = config_of(resume, state, FinetuneConfig, PRETRAINED).replace(chosen)
        sets = read_sets(config.data, config.run.seed)
    else:
        name = recipe or "small-data"
        config, sets, encoder = resolve(name, chosen, processes)
    if state is not None and resume != "auto":
        recorded = config_of(resume, state, FinetuneConfig, PRETRAINED)
        check_named_checkpoint(resume, recorded, config, "--encoder RUN/model.safetensors")
        if config.optimizer.ema and state["average"] is None:
            raise ValueError(f"--ema {config.optimizer.ema:g}, but {resume} holds no average of weights; use --ema 0")
    check(config.flat())
    if there is None:
        check_output(run.root, config.flat())
    check_training(config, len(sets.train), config.model.in_chans, processes)
    check_policy(config, sets.train)
    together = config.run.batch_size // (config.run.accumulate * processes)
    if config.augment.repeats > together:
        raise ValueError(
            f"--repeats {config.augment.repeats} views of an image do not fit into the {together} images that are "
            "trained on at a time; use fewer --repeats or a larger --batch-size"
        )
    return Preparation(name, config, sets, encoder, run, found, state, warnings)


def check_policy(config: FinetuneConfig, train: LabelledImages) -> None:
    """Whether the changes of colour and shape are made for the images.

    Raises:
        ValueError: if not.
    """
    policy, channels = config.augment.policy, config.model.in_chans
    if policy == "none":
        return
    if channels not in (1, 3):
        raise ValueError(f"--policy {policy} takes images of 1 or 3 channels; use --policy none")
    image = first_readable(train.source, channels)
    low, high = image.min().item(), image.max().item()
    if image.is_floating_point() and not 0 <= low <= high <= 1:
        raise ValueError(
            f"--policy {policy} takes floating-point images for 0 to 1, and would cut off what these have beyond "
            f"({low:.4g} to {high:.4g}); use --policy none"
        )


def check(values: Mapping[str, Any]) -> None:
    """Whether each value by itself makes sense.

    Raises:
        ValueError: naming the field, what it must be, and what it is.
    """
    if len(values.get("image_size", (1, 1))) != 2:
        raise ValueError(f"--image-size takes one number or 2, not {len(values['image_size'])}")
    check_values(values)
    for name, (holds, wanted) in RANGES.items():
        if name in values and not holds(values[name]):
            raise ValueError(f"--{name.replace('_', '-')} {wanted}, not {show(values[name])}")


def read_sets(data: LabelledDataConfig, seed: int) -> LabelledSets:
    """The images of a configuration.

    Raises:
        ValueError: if their classes differ, files are missing, or the choices contradict each other.
    """
    train, val, tests = labelled_splits(data.data, data.val_data, [] if data.test_data is None else [data.test_data])
    if data.folds and data.val_data is not None:
        raise ValueError("--folds and --val-data are two ways to say what to validate with; use one")
    if data.folds:
        train, val = fold(train, data.folds, data.fold, seed)
    elif data.fold:
        raise ValueError(f"--fold {data.fold} of how many? Give --folds too")
    return LabelledSets(label_share(train, data.label_share, seed), val, tests[0] if tests else None)


def resolve(
    recipe: str, chosen: Mapping[str, Any], processes: int = 1
) -> tuple[FinetuneConfig, LabelledSets, TrainedEncoder]:
    """The configuration that a recipe makes of a situation, its images and its encoder."""
    device = pick_device(chosen.get("device", "auto"))
    with code_of(recipe):
        make = find_recipe(recipe)
    for name, what in (("data", "which images? --data"), ("encoder", "from which weights? --encoder")):
        if name not in chosen:
            takes = "takes a folder of class folders" if name == "data" else "takes a file, a run folder, timm, or none"
            raise ValueError(f"{what} {takes}")
    encoder = read_encoder(chosen)
    chosen = {**chosen, "model": encoder.name, "stages": encoder.stages}
    data = {name: chosen[name] for name in vars(LabelledDataConfig)["__annotations__"] if name in chosen}
    view = {"image_size": (1, 1), "mean": (0.0,), "std": (1.0,)}
    sets = read_sets(LabelledDataConfig(**{**view, **data}), chosen.get("seed", 0))
    for labelled in sets:
        if labelled is not None:
            first_readable(labelled.source, encoder.backbone.in_chans)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    situation = Situation(
        images=len(sets.train),
        classes=len(sets.train.classes),
        backbone=encoder.backbone,
        view=encoder.data,
        device=device,
        memory_bytes=free_memory(device, local),
        cores=max(1, (os.cpu_count() or 1) // local),
        processes=processes,
        chosen=chosen,
    )
    with code_of(recipe if ".py:" in recipe else encoder.name):
        config = make(situation)
    if not isinstance(config, FinetuneConfig):
        raise ValueError(f"recipe {recipe} returns a {type(config).__name__}, not a FinetuneConfig")
    return config.replace(chosen), sets, encoder


def read_encoder(chosen: Mapping[str, Any]) -> TrainedEncoder:
    """The network to start from."""
    with code_of(chosen.get("model", chosen["encoder"])):
        encoder = load_network(
            chosen["encoder"],
            chosen.get("model"),
            chosen.get("seed", 0),
            stages=chosen.get("stages", ()),
            in_chans=chosen.get("in_chans"),
        )
    if encoder.backbone.dims != 2:
        raise ValueError(f"{encoder.name} takes volumes; only images of two dimensions are classified")
    if chosen.get("in_chans", encoder.backbone.in_chans) != encoder.backbone.in_chans:
        raise ValueError(
            f"--in-chans {chosen['in_chans']}, but the encoder takes {encoder.backbone.in_chans} channels; leave it out"
        )
    return encoder
