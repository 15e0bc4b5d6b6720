"""The kind of training that fine-tuning is: its images, its recipes, and what is validated before it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric

from ..checkpoints.encoder import TrainedEncoder
from ..data.config import DataConfig, FileConfig, ViewConfig, files_of
from ..data.places import files_outside, shared_files
from ..data.seeding import Stream, keyed_seed
from ..data.sources.pages import Pages
from ..data.statistics import first_readable, require_readable
from ..data.targets import Splits
from ..data.volumes.opening import Stores
from ..evaluation.features import input_for
from ..models.factory import code_of, require_image_size
from ..training.config import COMPUTATION
from ..training.layer_decay import layer_groups
from ..training.memory import free_memory
from ..training.prepare import require_effect, validate_training
from ..training.recipes import cores_per_process, find_recipe
from ..training.schedule import steps_of
from ..training.start import read_start
from ..training.task import Preparation, TrainingKind
from ..utils.axes import per_axis
from ..utils.copies import copied
from ..utils.devices import device_name, pick_device
from ..utils.distributed import local_processes
from ..utils.fields import show
from ..utils.logging import log
from ..utils.text import counted, verb
from .config import CLASSIFICATION, LabeledDataConfig, NetworkConfig, TransferConfig, config_type_of
from .network import Network, load_weights
from .recipes import RECIPES, Situation
from .task import FinetuningTask
from .tasks.base import TransferTask, find_task
from .tasks.classification import Classification

Ready = Preparation[TransferConfig, Splits[Any]]


TRIES = 3
"""Times that a recipe is asked: once for what the user sets, once for what it sets itself of images and encoder."""


class _Start(NamedTuple):
    """What a recipe starts from, and the settings by which it was read, each given."""

    encoder: TrainedEncoder
    task: TransferTask[Any]
    splits: Splits[Any]
    targets: Mapping[str, Any]
    view: ViewConfig
    given: dict[str, Any]
    defaults: dict[str, Any]


class FineTuning(TrainingKind[TransferConfig, Splits[Any]]):
    """Training from an encoder on, for a task; one object serves one run.

    Args:
        task: what to train for; None for a classification.
        trust: run the code that the file of the encoder names.
        stores: prepares volumes.
    """

    command = "finetune"
    recorded_as = "finetune"
    default_recipe = "small-data"
    weights_stream = Stream.FINETUNE_WEIGHTS
    weights_remedy = "--encoder RUN/model.safetensors"
    not_this_kind = "a checkpoint of a pretraining; start from the encoder of its run: --encoder RUN"

    def __init__(self, task: str | None, *, trust: bool = False, stores: Stores | None = None) -> None:
        self.name, self.trust = CLASSIFICATION if task is None else task, trust
        self.stores = Stores() if stores is None else stores
        self.config_type = config_type_of(task)
        self.encoder: TrainedEncoder | None = None  # to start from, if it has been read
        self._network: tuple[Any, Network] | None = None

    def validate_values(self, chosen: Mapping[str, Any]) -> None:
        """Raise for sizes that are not those of an image."""
        axes = len(chosen.get("image_size", (1,)))
        if axes > 2 and axes not in find_task(chosen.get("task", self.name)).dims:
            raise ValueError(f"--image-size takes one number or 2, not {axes}")

    def resolve(self, recipe: str, chosen: Mapping[str, Any], processes: int) -> tuple[TransferConfig, Splits[Any]]:
        """Return the configuration that a recipe makes of a situation, and its images."""
        device = pick_device(chosen.get("device", "auto"))
        with code_of(recipe):
            make = find_recipe(recipe, RECIPES)
        if "data" not in chosen:
            raise ValueError("--data is required: a folder of class folders, or a CSV file")
        if "encoder" not in chosen:
            raise ValueError("--encoder is required: a file of weights, a run folder, timm, or none")
        asked, settled = dict(chosen), False
        for _ in range(TRIES):
            start = self._start(asked)
            if "image_size" in chosen:
                dims, size = start.encoder.backbone.dims, chosen["image_size"]
                if len(size) not in (1, dims):
                    raise ValueError(f"--image-size takes one number or {dims}, not {len(size)}")
                chosen = {**chosen, "image_size": per_axis(size, dims)}
            situation = Situation(
                images=len(start.splits.train),
                extents=start.task.extents(start.splits.train),
                targets=start.targets,
                backbone=start.encoder.backbone,
                view=start.view,
                device=device,
                memory_bytes=free_memory(device, local_processes()),
                cores=cores_per_process(),
                processes=processes,
                chosen={**chosen, **start.defaults, **_network_of(start.encoder), "data": asked["data"]},
                build=self._builder(start),
            )
            with code_of(recipe if ".py:" in recipe else start.encoder.name, asked.get("task", CLASSIFICATION)):
                config = make(situation)
            if not isinstance(config, self.config_type):
                raise ValueError(
                    f"recipe {recipe} returns a {type(config).__name__}, not a {self.config_type.__name__}"
                )
            own = {"stages": config.model.stages, "levels": config.model.levels}
            own = {name: value or getattr(start.encoder, name) for name, value in own.items()}
            config = config.replace({**own, **chosen})
            wanted = {name: config.flat().get(name) for name in start.given}
            settled = wanted == start.given
            if settled:
                break
            asked = {**asked, **wanted}  # what the recipe sets decides what is read, as what the user sets does
        if not settled:
            unlike = ", ".join(name for name in wanted if wanted[name] != start.given[name])
            raise ValueError(f"recipe {recipe} sets {unlike} anew whenever it is read; set it with a flag")
        self.encoder = start.encoder
        return config, start.splits

    def describes_a_run(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether fields name an encoder and images, without which no fine-tuning begins."""
        return {"encoder", "data"} <= chosen.keys()

    def require_effects(self, chosen: Mapping[str, Any], config: TransferConfig) -> None:
        """Raise for settings of the user's that change nothing beside the others."""
        resized = config.data.crop == "resized"
        effects = {"crop_scale": (resized, "with --crop native, which cuts at the image's resolution")}
        require_effect(chosen, {**effects, **self._task(config.flat()).effects(config)})

    def _start(self, asked: Mapping[str, Any]) -> _Start:
        """Return the encoder and the images that settings name, with what was read in full."""
        task = self._task(asked)
        channels = None if "in_chans" in asked else task.in_chans(asked["data"], asked["encoder"])
        encoder = self._read_encoder(asked, channels)
        task.require_dims(encoder.backbone.dims, encoder.name, asked["data"])
        defaults = {name: value for name, value in task.defaults(encoder).items() if name not in asked}
        asked = {**asked, **defaults, **_network_of(encoder)}
        task = self._task(asked) if defaults else task
        task.axes, task.channels = encoder.backbone.dims, encoder.backbone.in_chans
        data = {name: asked[name] for name in LabeledDataConfig.__annotations__ if name in asked}
        view = {"image_size": (1, 1), "mean": (0.0,), "std": (1.0,)}
        settings = LabeledDataConfig(**{**view, **data})
        seed = asked.get("seed", 0)
        files = files_of({**vars(encoder.data), **asked})
        splits = split_pages(task.read(settings, seed), encoder.backbone.in_chans, files, asked.get("task"))
        for images in splits:
            if images is not None:
                by_part = asked.get("crop", encoder.data.crop) == "native" and not task.whole_images
                first_readable(images.source, encoder.backbone.in_chans, files, by_part=by_part)
        seen: DataConfig = replace(encoder.data, **asdict(files))
        if not {"mean", "std"} <= asked.keys():
            known = task.input_statistics(splits.train, encoder)
            seen = (
                input_for(encoder._replace(data=seen), splits.train.source)
                if known is None
                else replace(seen, mean=known[0], std=known[1])
            )
        given = {
            **{name: getattr(settings, name) for name in LabeledDataConfig.__annotations__},
            "seed": seed,
            "task": asked.get("task", CLASSIFICATION),
            "encoder": asked["encoder"],
            "model": encoder.name,
            "stages": tuple(encoder.stages),
            "levels": encoder.levels,
            "in_chans": encoder.backbone.in_chans,
            **asdict(files),
            **task.decisive(),
        }
        return _Start(encoder, task, splits, task.describe_targets(splits.train), seen, given, defaults)

    def _builder(self, start: _Start) -> Callable[[TransferConfig], Network]:
        """Return what builds the network of a configuration, by the settings of the task that it has itself."""
        return lambda config: self._build(self._task(config.flat()), config.model, start.targets, config.run.seed)

    def _read_encoder(self, asked: Mapping[str, Any], channels: int | None) -> TrainedEncoder:
        """Return the network to start from, for images of so many channels where the user does not say."""
        if channels is None:
            return read_encoder(asked, trust=self.trust)
        try:
            return read_encoder({**asked, "in_chans": channels}, trust=self.trust)
        except ValueError as error:
            raise ValueError(
                f"{error}; the network was built for volumes of {counted(channels, 'channel')}, as those of "
                f"{asked['data']}: name one that takes these, or set --in-chans"
            ) from error

    def read_data(self, config: TransferConfig) -> Splits[Any]:
        """Return the images of a configuration."""
        task = self._task(config.flat())
        task.axes, task.channels = len(config.data.image_size), config.model.in_chans
        splits = task.read(config.data, config.run.seed)
        return split_pages(splits, config.model.in_chans, files_of(vars(config.data)), config.model.task)

    def fingerprints(self, data: Splits[Any]) -> dict[str, str]:
        """Return what identifies each set of images with its targets."""
        sets = {"images": data.train, "held_out": data.val, "test": data.test}
        return {name: self.task.fingerprint(images) for name, images in sets.items()}

    def validate(self, ready: Ready, processes: int) -> None:
        """Raise for what would go wrong later; reads the encoder of a run that has no checkpoint yet."""
        config, state = ready.config, ready.state
        if state is None and self.encoder is None:
            self.encoder = read_encoder(config.flat(), trust=self.trust)
        if state is not None and config.optimizer.ema and state.get("average") is None:
            held = "the newest checkpoint" if ready.resume == "auto" else ready.resume
            raise ValueError(f"--ema {config.optimizer.ema:g}, but {held} holds no average of weights; use --ema 0")
        validate_training(config, len(ready.data.train), config.model.in_chans, processes)
        data, by_part = config.data, config.data.by_part and not self.task.whole_images
        for images, option in ((ready.data.val, _option_of_validation(config)), (ready.data.test, "--test-data")):
            if images is not None:
                channels = config.model.in_chans
                require_readable(images.source, channels, data, data.max_broken, option, by_part=by_part)
        micro_batch = config.run.batch_size // (config.run.accumulate * processes)
        self.task.validate(config, ready.data.train, micro_batch)

    def build(self, ready: Ready, fabric: Fabric) -> FinetuningTask:
        """Return the task of a run."""
        config = ready.config
        targets = self.task.describe_targets(ready.data.train)
        with code_of(config.model.model, config.model.task):
            network = self._build(self.task, config.model, targets, config.run.seed)
        if ready.state is None and self.encoder is not None:
            load_weights(network, self.encoder)
        require_batch(network, config, fabric.world_size)
        return FinetuningTask(config, self.task, network, ready.data, ready.run, fabric)

    def check(self, ready: Ready, task: FinetuningTask) -> None:
        """Warn of images that are trained on and scored too: their scores say little."""
        splits = ready.data
        for images, flags in ((splits.val, "validate"), (splits.test, "test")):
            if images is not None and (twice := shared_files(splits.train.source, images.source)):
                log.warning(
                    f"{twice:,} of the {len(images):,} images to {flags} with {verb(twice, 'are')} trained on too"
                )

    def describe(self, ready: Ready, task: FinetuningTask) -> dict[str, str]:
        """Return the plan: label to text."""
        config, splits, network = ready.config, ready.data, task.network
        source = splits.train.source
        data, optimizer, schedule, run = config.data, config.optimizer, config.schedule, config.run
        steps = steps_of(schedule.epochs, len(splits.train), run.batch_size)
        uses = ((splits.val, "validate with"), (splits.test, "score at the end"))
        others = [f"{len(images):,} to {use}" for images, use in uses if images is not None]
        start = {"none": "random weights", "timm": "timm's weights"}.get(config.model.encoder)
        parameters = sum(p.numel() for p in network.module.parameters())
        groups = 1 + max(layer_groups(network).values())
        return {
            "recipe": Path(ready.recipe).name,
            **({} if config.model.task == CLASSIFICATION else {"task": Path(config.model.task).name}),
            "network": f"{Path(config.model.model).name}, {parameters / 1e6:.1f} million parameters, from "
            f"{start or Path(config.model.encoder).name}",
            "images": self.task.describe(splits.train)
            + (f" ({data.label_share:.0%} of the labels)" if data.label_share < 1 else "")
            + "".join(f"; {text}" for text in others)
            + (f"; pages of {counted(len(np.unique(source.files)), 'file')}" if isinstance(source, Pages) else "")
            + ("" if (outside := files_outside(source)) is None else f"; {outside}")
            + (f" (fold {data.fold} of {data.folds})" if data.folds else ""),
            "views": ", ".join(
                [
                    f"{' x '.join(map(str, data.image_size))} {'voxels' if len(data.image_size) == 3 else 'pixels'}",
                    *describe_training(config),
                    *self.task.describe_training(config),
                    *(
                        [f"{counted(len(network.backbone.aligned), 'layer')} padded"]
                        if network.backbone.aligned
                        else []
                    ),
                ]
            ),
            **self.task.describe_lines(splits.train, config),
            "values": f"mean {' '.join(f'{v:.10g}' for v in data.mean)}, deviation "
            + " ".join(f"{v:.10g}" for v in data.std)
            + ("" if data.nodata is None else f"; {data.nodata:g} is no data"),
            "length": f"{counted(schedule.epochs, 'epoch')} = {counted(steps, 'step')} "
            f"of {counted(run.batch_size, 'image')}, "
            f"{counted(schedule.warmup_epochs, 'epoch')} of warm-up"
            + (f"; a step takes the images in {run.accumulate} parts" if run.accumulate > 1 else ""),
            "optimizer": f"{optimizer.optimizer}, learning rate up to {optimizer.lr:.3g}, layer decay "
            f"{optimizer.layer_decay:g} over {groups} groups, weight decay {optimizer.weight_decay:g}, average of "
            "weights " + (f"{optimizer.ema:g}" if optimizer.ema else "none"),
            "computation": f"{device_name(task.fabric.device)}, {run.precision}{COMPUTATION[run.compile]}, "
            f"{counted(data.workers, 'worker')}",
            "steps": f"{steps}",
        }

    def _task(self, chosen: Mapping[str, Any]) -> TransferTask[Any]:
        name = chosen.get("task", CLASSIFICATION)
        kind = find_task(name)
        if name != CLASSIFICATION and issubclass(kind, Classification):
            raise ValueError(
                f"--task {name} derives from Classification, whose augmentations and loss are settings of --task "
                f"{CLASSIFICATION} alone; derive it from TransferTask"
            )
        self.task = kind.of(chosen)
        self.task.stores = self.stores
        return self.task

    def _build(self, task: TransferTask[Any], config: NetworkConfig, targets: Mapping[str, Any], seed: int) -> Network:
        """Return the network with initial weights of the seed's, built once for the same configuration."""
        asked = (config, type(task), task.settings, dict(targets), seed)
        if self._network is None or self._network[0] != asked:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(keyed_seed(seed, Stream.FINETUNE_WEIGHTS))
                self._network = asked, task.build(config, targets)
        return self._network[1]


def split_pages(splits: Splits[Any], channels: int, files: FileConfig, task: str | None) -> Splits[Any]:
    """Return splits in which pages are images with their file's target, where files are read so.

    Files are divided among splits, shares and folds before, so that the pages of one stay together.

    Raises:
        ValueError: for targets that are not a file's as a whole.
    """
    if files.pages != "images":
        return splits
    if any(images is not None and not hasattr(images, "by_page") for images in splits):
        raise ValueError(
            f"--pages images takes one target for all pages of a file, and --task {task} reads another kind; use "
            "--pages channels or first, or give its images a method by_page"
        )
    return Splits(*(None if images is None else images.by_page(channels, files) for images in splits))


def _network_of(encoder: TrainedEncoder) -> dict[str, Any]:
    """Return the fields of a configuration that describe an encoder's network."""
    return {"model": encoder.name, "stages": encoder.stages, "levels": encoder.levels}


def describe_training(config: Any) -> list[str]:
    """Return the augmentations and the loss of a classification as text, nothing for other tasks."""
    augment = getattr(config, "augment", None)
    if augment is None:
        return []
    return [
        *([augment.policy] * (augment.policy != "none")),
        *([f"erasing {augment.erasing:g}"] * bool(augment.erasing)),
        *([f"mixup {augment.mixup:g}"] * bool(augment.mixup)),
        *([f"cutmix {augment.cutmix:g}"] * bool(augment.cutmix)),
        *([f"{counted(augment.repeats, 'view')} of each image"] * (augment.repeats > 1)),
        f"{config.objective.loss}, smoothing {config.objective.smoothing:g}",
    ]


def _option_of_validation(config: TransferConfig) -> str:
    """Return the flag by which validation images were chosen."""
    return "--folds" if config.data.folds else "--val-data"


def read_encoder(chosen: Mapping[str, Any], *, trust: bool = False) -> TrainedEncoder:
    """Return the network to start from; `trust` runs the code that its file names."""
    encoder = read_start(chosen, trust=trust)
    if encoder.backbone.dims == 1 or encoder.clips is not None:
        takes = "clips" if encoder.clips is not None else "signals"
        raise ValueError(f"{encoder.name} takes {takes}; only images and volumes are fine-tuned on")
    if chosen.get("in_chans", encoder.backbone.in_chans) != encoder.backbone.in_chans:
        raise ValueError(
            f"--in-chans {chosen['in_chans']}, but the encoder takes {encoder.backbone.in_chans} channels; leave it "
            "out, and give images of so many"
        )
    return encoder


def require_batch(network: Network, config: TransferConfig, processes: int) -> None:
    """Raise unless images are large enough, and batch norm has something to normalize over.

    Raises:
        ValueError: if the network does not take them; or if an image is trained on alone, and a map of it has a single
            position.
    """
    size = config.data.image_size
    require_image_size(network.module, network.module, config.model.model, config.model.in_chans, size)
    if config.run.batch_size > config.run.accumulate * processes:
        return
    try:
        copied(network.module).train()(torch.zeros(1, config.model.in_chans, *size))
    except ValueError as error:
        raise ValueError(
            f"one image of --image-size {show(size)} at a time leaves batch norm one value for each channel ({error}); "
            "use a larger --batch-size, fewer --accumulate, or a larger --image-size"
        ) from error
