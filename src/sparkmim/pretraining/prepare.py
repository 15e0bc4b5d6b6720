"""The kind of training that pretraining is: its images, its recipes, and what is validated before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from ..checkpoints.run_folder import RunFolder
from ..data.config import MAX_BROKEN, FileConfig, files_of
from ..data.kinds import kind_of
from ..data.seeding import Stream
from ..data.sources.pages import by_page
from ..data.statistics import first_readable, peculiarities, require_readable
from ..data.volumes.opening import Stores, prepared_as
from ..models.backbone import Backbone
from ..models.factory import code_of, orientation_of
from ..models.levels import NotProportionalError
from ..models.masking import visible_patches
from ..models.own_decoder import levels_of
from ..objectives.base import find_objective
from ..objectives.distill import is_distilled
from ..training.memory import free_memory
from ..training.prepare import require_effect, validate_training
from ..training.recipes import cores_per_process, find_recipe
from ..training.recorded import recorded_value
from ..training.resume import fingerprint_of
from ..training.task import Preparation, TrainingKind
from ..utils.axes import per_axis
from ..utils.devices import pick_device
from ..utils.distributed import local_processes
from ..utils.text import counted
from .config import PretrainConfig, TeacherConfig, settings_of_source
from .evaluators import find_monitor
from .images import (
    PretrainingImages,
    Where,
    about_channels,
    group_of,
    open_images,
    require_for_kind,
    require_same_kind,
)
from .kinds import kind_in, of_clips, of_signals, with_frames, with_size
from .model import INIT_OF_FINETUNING, ModelBuilder, learned_orientation, require_pretraining, weights_of_init
from .plan import plan_of
from .recipes import RECIPES, Recipe, Situation
from .task import PretrainingTask
from .teaching import Teaching, require_teachable
from .volumes import require_few_unreadable, warn_of_slices, warn_of_small_volumes

OWN_DECODER = "with --decoder own, the network's; use --decoder unet, or leave it out"
"""Why a setting of the decoder unet has no effect."""

MASKED = (
    *("mask_shape", "masks_per_image", "decoder_width", "decoder_block", "densify_norm", "hierarchy", "loss_on"),
    *("shared_mask_token", "execution", "patch_size"),
)
"""Settings that have no effect on whole images."""

TRIES = 3
"""Times that a recipe is asked: once for what the user sets, once for how it sets that files are read."""

Ready = Preparation[PretrainConfig, PretrainingImages]


class Pretraining(TrainingKind[PretrainConfig, PretrainingImages]):
    """Masked-image pretraining; one object serves one run, whose network it builds once."""

    command = "pretrain"
    recorded_as = None
    config_type = PretrainConfig
    default_recipe = "auto"
    weights_stream = Stream.PRETRAIN_WEIGHTS
    weights_remedy = "--init RUN"
    not_this_kind = "a checkpoint of a fine-tuning; start from the weights of its run: --init RUN/model.safetensors"

    def __init__(
        self, stores: Stores | None = None, *, output: str | Path = ".", plan: bool = False, trust: bool = False
    ) -> None:
        self.stores = Stores() if stores is None else stores
        self.teaching = Teaching(Path(output), plan=plan, trust=trust)
        self.builder = ModelBuilder()
        self._odd: list[str] = []  # about the images
        self._opened: tuple[Where, PretrainingImages] | None = None
        self._paged: tuple[tuple[Any, ...], PretrainingImages] | None = None

    def resolve(
        self, recipe: str, chosen: Mapping[str, Any], processes: int
    ) -> tuple[PretrainConfig, PretrainingImages]:
        """Return the configuration that a recipe makes of a situation, and its images."""
        device = pick_device(chosen.get("device", "auto"))
        with code_of(recipe):
            make = find_recipe(recipe, RECIPES)
        if "model" not in chosen:
            raise ValueError("--model is required: a timm name (resnet50), FILE.py:FUNCTION or MODULE:FUNCTION")
        init = chosen.get("init", "none")
        if init not in ("none", "timm") and not Path(init).exists():
            raise ValueError(f"there is no file {init}; --init takes none, timm, a file of weights, or a run's folder")
        if Path(weights_of_init(init)).is_dir():
            require_pretraining(RunFolder(init), "--init", INIT_OF_FINETUNING)
        seed = chosen.get("seed", 0)
        own = {name.removeprefix("data."): value for name, value in chosen.items() if name.startswith("data.")}
        settings = settings_of_source(chosen.get("data"))(**own)
        with code_of(chosen["model"]):
            kind = kind_of(chosen.get("data"), lambda: self.builder.axes(chosen["model"]))
            if kind != "volumes" and Path(chosen.get("data") or ".").exists():  # the kind depends on it, or may
                require_same_kind(chosen.get("data"), kind, self.builder.axes(chosen["model"]), chosen["model"])
        require_for_kind(chosen, kind)
        if kind == "volumes" and "orientation" not in chosen:
            learned = learned_orientation(init)
            chosen = {**chosen, "orientation": learned or orientation_of(chosen["model"])}
        where = Where(
            data=chosen.get("data"),
            settings=settings,
            val_data=chosen.get("val_data"),
            val_share=chosen.get("val_share", 0.0),
            seed=seed,
            kind=kind,
            how=group_of(kind, chosen),
        )
        self.stores.most_unreadable = chosen.get("max_broken", MAX_BROKEN)
        if kind == "volumes" and "in_chans" not in chosen:  # prepared when the network is known to fit them
            chosen = {**chosen, "in_chans": self.stores.channels(chosen["data"])}
        elif kind == "signals":
            where = where._replace(channels=chosen.get("in_chans"))
            chosen = {"in_chans": of_signals(self._open(where).source).channels, **chosen}
            where = where._replace(channels=chosen["in_chans"])
        elif kind == "images":
            self._open(where)
        with code_of(chosen["model"]), about_channels(kind, chosen):
            try:
                backbone = self.builder.backbone(
                    chosen["model"],
                    chosen.get("stages", ()),
                    chosen.get("in_chans"),
                    seed,
                    levels=levels_of(chosen.get("levels"), chosen.get("decoder", "unet")),
                    drop_path=chosen.get("drop_path", 0.0),
                )
            except NotProportionalError as error:
                if kind != "volumes":
                    raise
                raise ValueError(f"{error}. It was given images of {_channels(chosen['in_chans'])}") from error
        require_same_kind(chosen.get("data"), kind, backbone.dims, chosen["model"])
        if kind == "clips":
            clips = of_clips(self._open(where).source)
            chosen = with_frames(chosen, clips, backbone.size_divisor(patch_size_of(backbone, chosen))[0])
        if "image_size" in chosen:  # before a recipe runs the network on it
            chosen = {**chosen, "image_size": per_axis(chosen["image_size"], backbone.dims)}
            require_whole_patches(chosen["image_size"], patch_size_of(backbone, chosen))
        require_something_hidden(chosen.get("objective", "pixels"), chosen.get("mask_ratio"))
        if is_distilled(chosen.get("objective", "pixels")):
            require_teachable(kind, chosen)
            teacher = self.teaching.load({**TeacherConfig().__dict__, **chosen})
            chosen = {"objective.channels": self.teaching.channels(teacher), **chosen}
        if init == "timm" and not (getattr(backbone.module, "pretrained_cfg", None) or {}).get("tag"):
            raise ValueError(f"timm has no weights for {chosen['model']}; use --init none or a file")
        asked, files = dict(chosen), files_of(chosen)
        for _ in range(TRIES):
            source = self._images(where, backbone.in_chans, files).source
            first_readable(source, backbone.in_chans, files, by_part=True)  # as far as is known
            situation = Situation(
                source=source,
                backbone=backbone,
                device=device,
                memory_bytes=free_memory(device, local_processes()),
                cores=cores_per_process(),
                processes=processes,
                chosen=asked,
                builder=self.builder,
            )
            config = _made(make, situation, recipe).replace(chosen)
            read_by, files = files, files_of(vars(config.data))
            if files == read_by:
                break
            asked |= asdict(files)  # what the recipe sets decides how files are read, as what the user sets does
        else:
            raise ValueError(f"recipe {recipe} sets how files are read anew whenever it is asked; set it with flags")
        self.require_effects(chosen, config)  # before the images are looked at
        data = self.read_data(config)  # the recipe may have named others
        first_readable(data.source, config.model.in_chans, config.data, by_part=config.data.by_part)
        return config, data

    def complete(self, chosen: Mapping[str, Any], recorded: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the user's fields with the frames of a run of clips as the first number of `image_size`."""
        frames = recorded_value(recorded, "clips", "frames", int)
        return chosen if frames is None or "image_size" not in chosen else with_size(chosen, frames)

    def require_effects(self, chosen: Mapping[str, Any], config: PretrainConfig) -> None:
        """Raise for settings of the user's that change nothing beside the others."""
        given, run = config.data, config.run
        others = {name: value for name, value in chosen.items() if name != "frames"}  # by which clips are recognized
        require_for_kind(others, kind_in(config))
        monitored = run.monitor != "none", "without a monitor; give --monitor knn too"
        require_something_hidden(config.model.objective, config.model.mask_ratio)
        distilled = is_distilled(config.model.objective), "without --objective distill"
        masked = config.model.mask_ratio > 0, "with --mask-ratio 0, which trains on whole images"
        require_effect(chosen, {field.name: distilled for field in fields(TeacherConfig)})
        require_effect(chosen, dict.fromkeys(MASKED, masked))
        alone = config.model.objective == "distill"
        require_effect(chosen, {"loss_on": (not alone, "with --objective distill, which compares all positions")})
        require_effect(
            chosen,
            {
                "val_every": (
                    given.val_data is not None or given.val_share > 0,
                    "without held-out images; give --val-data or --val-share too",
                ),
                "monitor_every": monitored,
                "monitor_data": monitored,
                **dict.fromkeys(("decoder_width", "decoder_block"), (config.model.decoder == "unet", OWN_DECODER)),
                "crop_scale": (given.crop == "resized", "with --crop native, which cuts at the image's resolution"),
            },
        )

    def read_data(self, config: PretrainConfig) -> PretrainingImages:
        """Return the images of a configuration: to train on, and held out."""
        self.stores.most_unreadable = config.data.max_broken
        data, kind = config.data, kind_in(config)
        where = Where(
            data=data.data,
            settings=config.source,
            val_data=data.val_data,
            val_share=data.val_share,
            seed=config.run.seed,
            kind=kind,
            how=None if kind == "images" else getattr(config, kind),
            channels=config.model.in_chans if kind == "signals" else None,
        )
        found = self._images(where, config.model.in_chans, files_of(vars(data)))
        if is_distilled(config.model.objective):
            self.teaching.find(config, found)
        return found

    def _images(self, where: Where, channels: int, files: FileConfig) -> PretrainingImages:
        """Return the images of :func:`open_images`: files, or their pages; those of the last call are kept."""
        key = where, channels, files
        if files.pages != "images":
            return self._open(where)
        if self._paged is None or self._paged[0] != key:
            source, out = self._open(where)
            held = None if out is None else by_page(out, channels, files)
            self._paged = key, PretrainingImages(by_page(source, channels, files), held)
        return self._paged[1]

    def _open(self, where: Where) -> PretrainingImages:
        """Return the images that :func:`open_images` opens; what was opened last is not opened again."""
        if self._opened is None or self._opened[0] != where:
            self._opened = where, open_images(where, stores=self.stores)
        return self._opened[1]

    def fingerprints(self, data: PretrainingImages) -> dict[str, str]:
        """Return what identifies each set of images."""
        found = {"images": fingerprint_of(data.source), "held_out": fingerprint_of(data.held_out)}
        return found | self.teaching.fingerprint()

    def watched(self) -> dict[str, str]:
        """Return what identifies the monitor's images."""
        return {} if self.monitor is None else {"monitor": self.monitor.fingerprint()}

    def validate(self, ready: Ready, processes: int) -> None:
        """Raise for what would go wrong later; finds the monitor's images."""
        data, model = ready.config.data, ready.config.model
        kind = kind_in(ready.config)
        if kind in ("volumes", "signals") and data.crop == "resized":
            by = "--spacing" if kind == "volumes" else "--rate"
            raise ValueError(f"--crop resized is for images; {kind} are resampled once ({by}), so use --crop native")
        if kind in ("signals", "clips") and ready.config.run.monitor != "none":
            raise ValueError(
                f"--monitor {ready.config.run.monitor} is for images, and --data holds {kind}; leave it out"
            )
        require_whole_patches(data.image_size, model.patch_size)
        visible_patches([s // p for s, p in zip(data.image_size, model.patch_size, strict=True)], model.mask_ratio)
        require_few_unreadable(ready.data.source, data.max_broken)
        validate_training(ready.config, len(ready.data.source), model.in_chans, processes)
        warn_of_small_volumes(ready.data.source, data.image_size)
        if kind_in(ready.config) == "volumes":
            warn_of_slices(ready.data.source, model.model, ready.config.volumes.orientation)
        held_out = ready.data.held_out
        if held_out is not None:
            option = "--val-data" if data.val_data is not None else "--val-share"
            require_readable(held_out, model.in_chans, data, data.max_broken, option, by_part=data.by_part)
        self.monitor = find_monitor(ready.config, prepared_as(ready.data.source))
        if ready.state is None:
            self._odd = peculiarities(ready.data.source, model.in_chans, data)

    def build(self, ready: Ready, fabric: Fabric) -> PretrainingTask:
        """Return the task of a run."""
        config = ready.config
        # A resumed run has its weights in the checkpoint and needs no file to start from.
        described = config.model if ready.state is None else replace(config.model, init="none")
        model = self.builder.model(described, config.objective, config.run.seed)
        model.set_memory_efficient(config.run.memory_efficient)
        source, held_out = ready.data
        taught = self.teaching.maps(model, config)
        return PretrainingTask(config, model, source, held_out, self.monitor, ready.run, fabric, taught)

    def check(self, ready: Ready, task: PretrainingTask) -> None:
        """Check that the network works on visible patches: a wrong number would not be noticed later.

        Raises:
            ValueError: if it does not, with what failed.
        """
        model = ready.config.model
        self.teaching.compute(ready.config, task.fabric, task.micro_batch)
        if ready.state is not None or model.execution != "packed" or task.model.whole:
            return
        size, images = ready.config.data.image_size, task.micro_batch
        report = task.model.backbone.check(
            model.patch_size, modes=["train"], image_size=size, batch_size=images, quick=True
        )
        if not report.passed:
            raise ValueError(
                f"{model.model} does not work on visible patches:\n{report}\n"
                f"`sparkmim check` shows the same; --execution zero-out trains any network, without what makes SparK "
                f"good"
            )

    def describe(self, ready: Ready, task: PretrainingTask) -> dict[str, str]:
        """Return the plan: label to text."""
        monitor = (
            {}
            if self.monitor is None
            else {"monitor": f"{self.monitor}, every {counted(ready.config.run.monitor_every, 'epoch')}"}
        )
        return plan_of(
            ready.recipe, ready.config, ready.data, task, self._odd, {**self.teaching.described(), **monitor}
        )


def _channels(count: int) -> str:
    """Return how many channels volumes have, and what to do if a network takes another number."""
    return (
        f"{counted(count, 'channel')}, as the volumes have (or --in-chans says); a network of other channels "
        "takes none of them"
    )


def _made(make: Recipe, situation: Situation, recipe: str) -> PretrainConfig:
    """Return what a recipe makes of a situation.

    Raises:
        ValueError: if it returns something else, or timm's weights cannot be had.
    """
    chosen = situation.chosen
    with code_of(recipe if ".py:" in recipe else chosen["model"], chosen.get("objective", "pixels")):
        try:
            config = make(situation)
        except OSError as error:
            if chosen.get("init") != "timm":
                raise
            raise ValueError(
                f"timm's weights of {chosen['model']} cannot be loaded ({error}); without a connection give --init a "
                "file"
            ) from error
    if not isinstance(config, PretrainConfig):
        raise ValueError(f"recipe {recipe} returns a {type(config).__name__}, not a PretrainConfig")
    return config


def patch_size_of(backbone: Backbone, chosen: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the size of patches that the user has chosen, or the network's."""
    return backbone.resolve_patch_size(chosen.get("patch_size"))


def require_something_hidden(objective: str, mask_ratio: float | None) -> None:
    """Raise for whole images with an objective that predicts what is hidden.

    Raises:
        ValueError: naming it, and what to use.
    """
    if mask_ratio == 0 and not find_objective(objective).takes_whole:
        raise ValueError(
            f"--mask-ratio 0 hides nothing, and --objective {objective} predicts what is hidden; use a ratio above 0 "
            "(0.6 is the default), or --objective distill alone, which is for whole images"
        )


def require_whole_patches(image_size: Sequence[int], patch_size: Sequence[int]) -> None:
    """Raise unless views divide into patches.

    Raises:
        ValueError: with the nearest sizes that do.
    """
    if len(image_size) != len(patch_size):
        raise ValueError(f"--image-size takes one number or {len(patch_size)}, not {len(image_size)}")
    axes = ("height", "width") if len(image_size) == 2 else ("size",) * len(image_size)
    for name, size, patch in zip(axes, image_size, patch_size, strict=True):
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            use = f"{below} or {above}" if below else str(above)
            raise ValueError(f"image {name} {size} is not divisible by the patch size {patch}; use --image-size {use}")
