"""The kind of training that refinement is: its encoder, images and recipes, and what is validated before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ..checkpoints.encoder import TrainedEncoder
from ..checkpoints.run_folder import RunFolder
from ..data.config import files_of
from ..data.kinds import kind_of
from ..data.places import files_outside
from ..data.seeding import Stream, keyed_seed
from ..data.sources.address import open_source
from ..data.sources.base import ImageSource
from ..data.sources.pages import by_page
from ..data.statistics import first_readable, peculiarities
from ..evaluation.features import input_for
from ..models.factory import code_of, load_backbone, require_image_size
from ..training.config import COMPUTATION
from ..training.layer_decay import layer_groups
from ..training.memory import free_memory
from ..training.prepare import require_effect, validate_training
from ..training.recipes import cores_per_process, find_recipe
from ..training.recorded import recorded_value
from ..training.resume import fingerprint_of
from ..training.schedule import steps_of
from ..training.start import read_start
from ..training.task import Preparation, TrainingKind
from ..utils.axes import per_axis
from ..utils.devices import device_name, pick_device
from ..utils.distributed import local_processes
from .config import RefineConfig
from .network import ContrastiveNetwork
from .recipes import RECIPES, Situation
from .task import RefinementTask

Ready = Preparation[RefineConfig, ImageSource]


class Refinement(TrainingKind[RefineConfig, ImageSource]):
    """Contrastive training from an encoder on; one object serves one run.

    Args:
        trust: run the code that the file of the encoder names.
    """

    command = "refine"
    recorded_as = "refine"
    config_type = RefineConfig
    default_recipe = "auto"
    weights_stream = Stream.REFINE_WEIGHTS
    weights_remedy = "--encoder RUN"
    not_this_kind = "a checkpoint of another command; start from the encoder of its run: --encoder RUN"

    def __init__(self, *, trust: bool = False) -> None:
        self.trust = trust
        self.encoder: TrainedEncoder | None = None  # to start from, if it has been read
        self._odd: list[str] = []

    def describes_a_run(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether fields name an encoder and images, without which no refinement begins."""
        return {"encoder", "data"} <= chosen.keys()

    def resolve(self, recipe: str, chosen: Mapping[str, Any], processes: int) -> tuple[RefineConfig, ImageSource]:
        """Return the configuration that a recipe makes of a situation, and its images."""
        device = pick_device(chosen.get("device", "auto"))
        with code_of(recipe):
            make = find_recipe(recipe, RECIPES)
        for name, takes in (("encoder", "the folder of a run, a file of weights, timm or none"), ("data", "a folder")):
            if name not in chosen:
                raise ValueError(f"--{name} is required: {takes}")
        encoder = self.encoder = self._read_encoder(chosen)
        channels = encoder.backbone.in_chans
        if "image_size" in chosen:
            chosen = {**chosen, "image_size": per_axis(chosen["image_size"], encoder.backbone.dims)}
        files = files_of({**vars(encoder.data), **chosen})
        source = self._open(chosen["data"], channels, files)
        first_readable(source, channels, files)
        seen = replace(encoder.data, **vars(files))
        known = {"mean", "std"} <= chosen.keys()
        network = {"model": encoder.name, "stages": tuple(encoder.stages), "levels": encoder.levels}
        situation = Situation(
            images=len(source),
            backbone=encoder.backbone,
            view=seen if known else input_for(encoder._replace(data=seen), source),
            pretrained=views_of_pretraining(chosen["encoder"]),
            device=device,
            memory_bytes=free_memory(device, local_processes()),
            cores=cores_per_process(),
            processes=processes,
            chosen={**network, **chosen},
        )
        with code_of(recipe if ".py:" in recipe else encoder.name):
            config = make(situation)
        if not isinstance(config, RefineConfig):
            raise ValueError(f"recipe {recipe} returns a {type(config).__name__}, not a RefineConfig")
        config = config.replace({**network, **chosen})
        self.require_effects(chosen, config)
        return config, self.read_data(config)

    def _read_encoder(self, chosen: Mapping[str, Any]) -> TrainedEncoder:
        """Return the encoder to start from.

        Raises:
            ValueError: if there is none, or it takes no images.
        """
        encoder = read_start(chosen, trust=self.trust)
        dims = encoder.backbone.dims
        if dims != 2:
            takes = "signals" if dims == 1 else "clips" if encoder.clips is not None else "volumes"
            raise ValueError(
                f"{encoder.name} takes {takes}, and two random crops of one of these may show nothing in common; "
                "`sparkmim refine` is for encoders of images. Fine-tune this one, or use its features as they are"
            )
        return encoder

    def _open(self, data: str, channels: int, files: Any) -> ImageSource:
        """Return the images at an address.

        Raises:
            ValueError: if it holds something else.
        """
        kind = kind_of(data)
        if kind != "images":
            raise ValueError(f"--data {data} holds {kind}; `sparkmim refine` takes images")
        return by_page(open_source(data), channels, files)

    def require_effects(self, chosen: Mapping[str, Any], config: RefineConfig) -> None:
        """Raise for settings of the user's that change nothing beside the others."""
        neighbors = config.contrast.positives == "neighbors"
        native = config.data.crop == "native"
        require_effect(
            chosen,
            {
                "val_every": (False, "on a refinement, which has no held-out loss"),
                "queue": (neighbors, "with --positives views; use --positives neighbors"),
                "crop_scale": (not native, "with --crop native, which cuts at the image's resolution"),
            },
        )

    def read_data(self, config: RefineConfig) -> ImageSource:
        """Return the images of a configuration."""
        return self._open(config.data.data, config.model.in_chans, files_of(vars(config.data)))

    def fingerprints(self, data: ImageSource) -> dict[str, str]:
        """Return what identifies the images."""
        return {"images": fingerprint_of(data)}

    def validate(self, ready: Ready, processes: int) -> None:
        """Raise for what would go wrong later; reads the encoder of a run that has no checkpoint yet."""
        config = ready.config
        if ready.state is None and self.encoder is None:
            self.encoder = self._read_encoder(config.flat())
        first_readable(ready.data, config.model.in_chans, config.data)
        validate_training(config, len(ready.data), config.model.in_chans, processes)
        together = config.run.batch_size // config.run.accumulate
        if together < 2:
            raise ValueError(
                f"--batch-size {config.run.batch_size} with --accumulate {config.run.accumulate} takes one image at a "
                "time, which has no other to differ from; use a larger batch, or fewer --accumulate"
            )
        if ready.state is None:
            self._odd = peculiarities(ready.data, config.model.in_chans, config.data)

    def build(self, ready: Ready, fabric: Fabric) -> RefinementTask:
        """Return the task of a run."""
        config = ready.config
        model = config.model
        with torch.random.fork_rng(devices=()), code_of(model.model):
            torch.manual_seed(keyed_seed(config.run.seed, Stream.REFINE_WEIGHTS))
            backbone = load_backbone(
                model.model, model.stages, model.in_chans, levels=model.levels, drop_path=model.drop_path
            )
            network = ContrastiveNetwork(backbone, config.contrast)
        if ready.state is None and self.encoder is not None:
            backbone.module.load_state_dict(self.encoder.backbone.module.state_dict())
        require_image_size(backbone, backbone.module, model.model, model.in_chans, config.data.image_size)
        return RefinementTask(config, network, ready.data, ready.run, fabric)

    def describe(self, ready: Ready, task: RefinementTask) -> dict[str, str]:
        """Return the plan: label to text."""
        config, network, source = ready.config, task.network, ready.data
        data, optimizer, schedule, run = config.data, config.optimizer, config.schedule, config.run
        contrast, strong = config.contrast, config.views
        steps = steps_of(schedule.epochs, len(source), run.batch_size)
        encoder = sum(p.numel() for p in network.encoder.parameters())
        others = sum(p.numel() for p in network.parameters()) - encoder
        groups = layer_groups(network)
        together = run.batch_size // run.accumulate
        outside = files_outside(source)
        compared = {
            "views": f"NT-Xent among {2 * together} views",
            "neighbors": f"nearest neighbors among {contrast.queue} images, against {together} predictions",
        }[contrast.positives]
        return {
            "recipe": Path(ready.recipe).name,
            "network": f"{Path(config.model.model).name}, {encoder / 1e6:.1f} million parameters, from "
            f"{Path(config.model.encoder).name}; projector {others / 1e6:.1f} million",
            "images": f"{len(source):,} ({Path(data.data).name})"
            + ("" if outside is None else f"; {outside}")
            + "".join(f"; {text}" for text in self._odd),
            "views": f"two of {' x '.join(map(str, data.image_size))} pixels, "
            + ("native crops" if data.crop == "native" else f"crops from {data.crop_scale[0]:g} of the area on")
            + f", jitter {strong.jitter:g}, gray {strong.gray:g}, blur {strong.blur:g}",
            "values": f"mean {' '.join(f'{v:.10g}' for v in data.mean)}, deviation "
            + " ".join(f"{v:.10g}" for v in data.std)
            + ("" if data.nodata is None else f"; {data.nodata:g} is no data"),
            "contrast": f"{compared}, temperature {contrast.temperature:g}",
            "batch": f"{run.batch_size} images"
            + (f"; taken in {run.accumulate} parts, which are not compared with each other" * (run.accumulate > 1))
            + (f"; of {task.fabric.world_size} processes" if task.fabric.world_size > 1 else ""),
            "length": f"{schedule.epochs:g} epochs = {steps:,} steps, {schedule.warmup_epochs:g} epochs of warm-up",
            "optimizer": f"{optimizer.optimizer}, learning rate up to {optimizer.lr:.3g}, layer decay "
            f"{optimizer.layer_decay:g} over {1 + max(groups.values())} groups, weight decay "
            f"{optimizer.weight_decay:g}",
            "computation": f"{device_name(task.fabric.device)}, {run.precision}{COMPUTATION[run.compile]}, "
            f"{data.workers} worker{'s' * (data.workers != 1)}",
            "steps": f"{steps}",
        }


def views_of_pretraining(encoder: str) -> float | None:
    """Return how many views the run in a folder was trained with, None if it is none or does not say."""
    folder = Path(encoder).expanduser()
    run = RunFolder(folder)
    if not (folder.is_dir() and run.config.is_file()):
        return None
    recorded = run.read_config() or {}
    epochs = recorded_value(recorded, "schedule", "epochs", (int, float))
    images = str(recorded.get("images", "")).partition(" ")[0]
    return float(epochs) * int(images) if epochs is not None and images.isdecimal() else None
