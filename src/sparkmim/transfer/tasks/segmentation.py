"""Segmentation: a class for each pixel of an image or voxel of a volume, from masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...checkpoints.encoder import TrainedEncoder
from ...data.config import ViewConfig, VolumeConfig
from ...data.segmentation.classes import IGNORED, ClassTable, read_classes
from ...data.segmentation.images import SegmentedImages, read_images
from ...data.segmentation.masks import read_mask
from ...data.segmentation.pairs import Place, find_places
from ...data.segmentation.volumes import SegmentedVolumes, channels_of, holds_volumes, read_volumes, sizes_of
from ...data.tables import shown
from ...data.targets import Splits
from ...data.volumes.label_store import read_label_map
from ...data.volumes.opening import Stores, prepared_as
from ...models.backbone import Levels
from ...models.factory import load_backbone
from ...pretraining.volumes import described, is_normalized, require_few_unreadable
from ...utils.fields import show
from ...utils.text import counted
from ..config import SegmentationSettings
from ..network import Network
from ..outputs import Outputs
from ..segmentation.heads import build_segmenter
from ..segmentation.losses import balanced_weights, segmentation_loss
from ..segmentation.pictures import draw_worst
from ..segmentation.scores import SegmentationScore, confusion, image_scores
from ..segmentation.views import ImageCrops, SegmentedViews, VolumeCrops
from ..segmentation.whole import Predictor, Whole, to_grid
from ..views import TargetBatch
from ..volumes import settings_of_volumes
from .base import TransferTask

Segmented = SegmentedImages | SegmentedVolumes

WORST = 8
"""Images that are shown, those of the lowest scores."""


class Segmentation(TransferTask[Any]):
    """Predict a class for each pixel or voxel.

    What is kept of an image that is scored (a row of :class:`~sparkmim.transfer.outputs.Outputs`) is its confusion
    matrix, the sum of the cross entropy, and the number of pixels that have a class.

    Args:
        settings: of the segmentation.
        volumes: how volumes are prepared and seen.
    """

    settings_type = SegmentationSettings
    metric = "miou"
    dims = (2, 3)
    whole_images = True

    def __init__(self, settings: SegmentationSettings, volumes: VolumeConfig | None = None) -> None:
        super().__init__(settings)
        self.volumes = VolumeConfig() if volumes is None else volumes

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the task with its settings among a configuration's fields, by flat name."""
        own, volumes = (
            {field.name: values[field.name] for field in fields(group) if field.name in values}
            for group in (SegmentationSettings, VolumeConfig)
        )
        return cls(SegmentationSettings(**own), VolumeConfig(**volumes))

    def decisive(self) -> dict[str, Any]:
        """Return the fields that decide which images, masks and classes are read."""
        own = ("classes", "image_folder", "ignore_index", "class_weights")
        return {**{name: getattr(self.settings, name) for name in own}, **asdict(self.volumes)}

    def defaults(self, encoder: TrainedEncoder) -> dict[str, Any]:
        """Return how the volumes that an encoder has learned from were prepared."""
        return settings_of_volumes(encoder)

    def in_chans(self, data: str, encoder: str) -> int | None:
        """Return the channels of volumes, where a network starts from random weights."""
        if encoder != "none" or not holds_volumes(data):
            return None
        return channels_of(find_places(data, None, None)[0], self._stores, "--data")

    def require_dims(self, dims: int, network: str, data: str) -> None:
        """Raise unless a network takes what the images are, volumes or pictures.

        Raises:
            ValueError: naming both, and what to do.
        """
        volumes = holds_volumes(data)
        if dims not in self.dims or volumes != (dims == 3):
            raise ValueError(
                f"{data} holds {'volumes' if volumes else 'images'}, and {network} takes images of {dims} axes; name a "
                + ("network of 3-D convolutions, such as nnunet:resenc-m" if volumes else "network of images (--model)")
            )

    @property
    def _stores(self) -> Stores:
        return Stores() if self.stores is None else self.stores

    # --- images and masks ---------------------------------------------------------------------------------------

    def read_split(self, path: Path, option: str, train: Segmented | None) -> Segmented:
        """Return the images of a folder or CSV file with their masks."""
        return self._read(Place.of(path), option, train)

    def _read(self, place: Place, option: str, train: Segmented | None) -> Segmented:
        ignore, folder = self.settings.ignore_index, self.settings.image_folder
        if folder is not None:
            place = place._replace(images=Path(folder).expanduser())
        table = None if train is None else train.table
        if table is None and self.settings.classes is not None:
            table = read_classes(self.settings.classes, ignore)
        if train is None:
            volumes = place.volumes or holds_volumes(place.path)
        else:
            volumes = isinstance(train, SegmentedVolumes)
            if volumes != (place.volumes or holds_volumes(place.path)):
                kinds = ("images", "volumes") if volumes else ("volumes", "images")
                raise ValueError(
                    f"{option} {place.path} holds {kinds[0]}, and --data {kinds[1]}; use the same for both"
                )
        if not volumes:
            return read_images(place, table, ignore, option)
        like = None if train is None else train.source
        return read_volumes(place, self._stores, self.volumes, table, ignore, option, like)

    def read(self, data: Any, seed: int) -> Splits[Any]:
        """Return the splits of folders of images and masks, or of CSV files."""
        if data.folds and data.val_data is not None:
            raise ValueError("--folds and --val-data both say what to validate with; use one of them")
        if data.fold and not data.folds:
            raise ValueError(f"--fold {data.fold} requires --folds")
        places = find_places(data.data, data.val_data, data.test_data)
        train = self._read(places[0], "--data", None)
        val = None if places[1] is None else self._read(places[1], "--val-data", train)
        test = None if places[2] is None else self._read(places[2], "--test-data", train)
        if data.folds:
            train, val = self.fold(train, data.folds, data.fold, seed)
        return Splits(self.share(train, data.label_share, seed), val, test)

    def describe(self, train: Segmented) -> str:
        """Return the number of images, and the share of each class."""
        shares = train.pixels.sum(0) / max(1, train.pixels.sum())
        named = ", ".join(
            f"{shown(name)} {share:.2g}" for name, share in zip(train.table.names[:8], shares, strict=False)
        )
        classes = counted(len(train.table), "class", "classes")
        return f"{len(train):,} of {classes} ({named}{', ...' * (len(train.table) > 8)} of the pixels)"

    def extents(self, train: Segmented) -> tuple[int, ...]:
        """Return the median size of the images along each axis."""
        sizes = sizes_of(train) if isinstance(train, SegmentedVolumes) else train.sizes
        return tuple(int(extent) for extent in np.median(sizes, axis=0))

    def input_statistics(
        self, train: Segmented, encoder: TrainedEncoder
    ) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return 0 and 1 for volumes that were normalized when they were prepared."""
        if encoder.statistics_known or not is_normalized(train.source):
            return None
        channels = encoder.backbone.in_chans
        return (0.0,) * channels, (1.0,) * channels

    def target(self, images: Segmented, index: int) -> Tensor:
        """Return the classes of an image's pixels `(*size)`, uint8, 255 for none; those of a volume as prepared."""
        if isinstance(images, SegmentedVolumes):
            labels = images.labels[index]
            return images.numbers(torch.from_numpy(labels.open().decode(1)[0].numpy().astype(np.int64)))
        return torch.from_numpy(read_mask(images.masks[index], images.table))

    def truth(self, images: Segmented, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the classes of an image's pixels in its own grid, and that grid's affine, of a volume."""
        if not isinstance(images, SegmentedVolumes):
            return read_mask(images.masks[index], images.table), None
        labels = read_label_map(images.labels[index].file)
        return images.table.numbers_of(labels.values), labels.affine

    def describe_targets(self, train: Segmented) -> dict[str, Any]:
        """Return the classes, their weights, and how volumes were prepared."""
        preparation = prepared_as(train.source)
        return {
            **train.table.as_json(),
            "background": train.table.background,
            "class_weights": self._weights(train),
            "volumes": None if preparation is None else preparation.as_json(),
        }

    def _weights(self, train: Segmented) -> list[float] | None:
        """Return the weights of the classes in the cross entropy.

        Raises:
            ValueError: if they are not one for each class.
        """
        asked = self.settings.class_weights
        if isinstance(asked, str):
            return balanced_weights(train.pixels.sum(0).tolist()) if asked == "balanced" else None
        if len(asked) != len(train.table) or not sum(asked) > 0:
            raise ValueError(
                f"--class-weights {show(asked)} has {len(asked)} values for {len(train.table)} classes "
                f"({', '.join(map(shown, train.table.names[:8]))}); give one for each, not all 0"
            )
        return list(asked)

    # --- the network --------------------------------------------------------------------------------------------

    def head(self, channels: int, targets: Mapping[str, Any]) -> nn.Module:
        """Raise: a segmentation's head takes all maps, see :meth:`build`."""
        raise NotImplementedError("the head of a segmentation takes the whole pyramid; see Segmentation.build")

    def build(self, config: Any, targets: Mapping[str, Any]) -> Network:
        """Return the network with the head that the settings name."""
        own = self.settings.head == "own"
        levels: Levels = "all" if own and config.levels is None else config.levels
        backbone = load_backbone(
            config.model, config.stages, config.in_chans, levels=levels, drop_path=config.drop_path
        )
        module = build_segmenter(backbone, self.settings.head, self.settings.decoder_width, len(targets["classes"]))
        return Network(module, backbone, backbone.module)

    # --- training -----------------------------------------------------------------------------------------------

    def validate(self, config: Any, train: Segmented, micro_batch: int) -> None:
        """Raise for settings that do not fit the images."""
        if config.data.crop != "native":
            raise ValueError(
                "--crop resized brings crops to another scale than that of whole images, which are predicted at their "
                "own; use --crop native, and --zoom for other scales"
            )
        if isinstance(train, SegmentedVolumes):
            require_few_unreadable(train.source, config.data.max_broken)
        if config.data.pages == "images":
            raise ValueError("--pages images takes one target for all pages of a file; use --pages channels or first")

    def effects(self, config: Any) -> dict[str, tuple[bool, str]]:
        """Return which settings have an effect on images, on volumes, and beside each other."""
        volumes = holds_volumes(config.data.data)
        for_volumes = volumes, "on images; it is for volumes"
        return {
            "zoom": (not volumes, "on volumes; see --rotate"),
            "oversample": for_volumes,
            "image_folder": (find_places(config.data.data, None, None)[0].is_coco, "on data that are not a COCO file"),
            **{field.name: for_volumes for field in fields(VolumeConfig)},
            "decoder_width": (self.settings.head != "own", "with --head own, the network's; use fpn or unet"),
            "class_weights": (self.settings.loss != "dice", "with --loss dice; use ce or ce+dice"),
        }

    def views(self, train: Segmented, config: Any) -> Dataset[TargetBatch]:
        """Return random crops with their masks."""
        show: Any
        if isinstance(train, SegmentedVolumes):
            show = VolumeCrops(train, config.data, self.settings, rotate=self.volumes.rotate)
        else:
            show = ImageCrops(train, config.data, self.settings, config.model.in_chans)
        return SegmentedViews(len(train), show, config.run.seed)

    def blank_target(self, train: Segmented, config: Any) -> Tensor:
        """Return a mask of a crop's size."""
        return torch.zeros(*config.data.image_size, dtype=torch.uint8)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits `(B, classes, *size)`, without weights."""
        return segmentation_loss(outputs, targets, self.settings.loss)

    def training_loss(
        self,
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        targets: Tensor,
        config: Any,
        described: Mapping[str, Any],
    ) -> Tensor:
        """Return the configured loss of crops."""
        return segmentation_loss(
            model(images), targets, self.settings.loss, described["class_weights"], described["background"]
        )

    def describe_training(self, config: Any) -> list[str]:
        """Return augmentations, head and loss in words."""
        own, volumes = self.settings, len(config.data.image_size) == 3
        weights = "" if own.class_weights == "none" else ", classes weighted"
        low, high = own.zoom
        return [
            *([f"zoom {low:g} to {high:g}"] if not volumes and (low, high) != (1, 1) else []),
            *(["rotated"] if volumes and self.volumes.rotate else []),
            *([f"{own.oversample:.0%} around a class"] if volumes and own.oversample else []),
            *([f"jitter {own.jitter:g}"] if own.jitter else []),
            f"head {own.head}, loss {own.loss}{weights}",
            f"whole images by windows that overlap by {own.overlap:.0%}",
        ]

    def describe_lines(self, train: Segmented, config: Any) -> dict[str, str]:
        """Return how volumes were prepared."""
        return described(train.source)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def outputs(
        self,
        module: nn.Module,
        images: Segmented,
        data: ViewConfig,
        channels: int,
        targets: Mapping[str, Any],
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> Outputs:
        """Return for each image its confusion matrix, the sum of the cross entropy, and its pixels with a class."""
        predictor = Predictor(module, data, channels, self.settings.overlap, batch_size, device)
        classes = len(targets["classes"])
        rows: list[Tensor] = []
        indices: list[int] = []
        broken: list[tuple[int, str]] = []
        for whole, logits in predictor.each(images.source, workers):
            if logits is None:
                broken.append((whole.number, whole.error))
                continue
            try:
                truth, predicted, row = self._compared(images, whole, logits, targets)
            except ValueError as error:
                broken.append((whole.number, str(error)))
                continue
            counts = confusion(truth, predicted, classes).reshape(-1).astype(np.float64)
            rows.append(torch.from_numpy(np.concatenate([counts, row])))
            indices.append(whole.number)
        return Outputs(torch.stack(rows) if rows else torch.zeros(0, 0), indices, broken)

    def _compared(
        self, images: Segmented, whole: Whole, logits: Tensor, targets: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return truth and prediction in an image's own grid, and the sum of the cross entropy with its pixels.

        Raises:
            ValueError: if the mask cannot be read any more, or has another size than the image.
        """
        drawn = self.target(images, whole.number)
        if drawn.shape != logits.shape[1:]:
            raise ValueError(f"it has {tuple(logits.shape[1:])} pixels, and its mask {tuple(drawn.shape)}")
        wanted = drawn.to(logits.device).long()
        entropy = F.cross_entropy(logits.unsqueeze(0), wanted.unsqueeze(0), ignore_index=IGNORED, reduction="sum")
        row = np.array([float(entropy), float((wanted != IGNORED).sum())])
        truth, affine = self.truth(images, whole.number)
        return truth, classify(logits, whole.affine, affine, truth.shape, targets), row

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the scores of rows of :meth:`outputs`."""
        classes = int((outputs.shape[1] - 2) ** 0.5)
        scored = SegmentationScore.of(confusions_of(outputs, classes), None)
        return {name: value for name, value in asdict(scored).items() if isinstance(value, float)}

    def evaluate(self, outputs: Outputs, images: Segmented, config: Any) -> dict[str, float]:
        """Return the cross entropy and the scores of a split."""
        scored = self._scored(outputs, images.table)
        numbers = {name: value for name, value in asdict(scored).items() if isinstance(value, float)}
        return {"loss": _entropy(outputs), **numbers}

    def results(self, outputs: Outputs, images: Segmented, config: Any, pictures: Path) -> dict[str, Any]:
        """Return the scores, those of each class, and the confusion matrix of the pixels."""
        total = confusions_of(outputs.values, len(images.table)).sum(0)
        return {
            "images": len(outputs.indices),
            "broken": len(outputs.broken),
            "loss": _entropy(outputs),
            **asdict(self._scored(outputs, images.table)),
            "pixels": total.tolist(),
        }

    def _scored(self, outputs: Outputs, table: ClassTable) -> SegmentationScore:
        return SegmentationScore.of(confusions_of(outputs.values, len(table)), table.background)

    def pictures(
        self,
        module: nn.Module,
        outputs: Outputs,
        images: Segmented,
        config: Any,
        targets: Mapping[str, Any],
        folder: Path,
        device: torch.device,
    ) -> dict[str, Any]:
        """Draw the images of the lowest mean Dice with the boundaries of truth and prediction."""
        table = images.table
        scores = image_scores(confusions_of(outputs.values, len(table)), table.background)
        order = [row for row in np.argsort(scores, kind="stable").tolist() if not np.isnan(scores[row])][:WORST]
        chosen = [outputs.indices[row] for row in order]
        predictor = Predictor(module, config.data, config.model.in_chans, self.settings.overlap, 1, device)
        shown = []
        for place, (whole, logits) in enumerate(predictor.each(images.subset(chosen).source, 0)):
            if logits is None or whole.pixels is None:
                continue
            truth = self.target(images, chosen[place]).numpy()
            path = folder / f"{place:02}.png"
            predicted = logits.argmax(0).cpu().numpy()
            draw_worst(whole.pixels, truth, predicted, table, config.data, path, self.volumes.orientation)
            name = images.source.name(chosen[place])
            shown.append({"image": name, "dice": round(float(scores[order[place]]), 4), "picture": path.name})
        return {"worst": shown}


def classify(
    logits: Tensor,
    affine: np.ndarray | None,
    grid: np.ndarray | None,
    shape: tuple[int, ...],
    targets: Mapping[str, Any],
) -> np.ndarray:
    """Return the most likely class of each pixel in an image's own grid, uint8.

    Args:
        logits: of the image, or of the prepared volume.
        affine: of the prepared volume.
        grid: affine of the volume as it was taken, RAS.
        shape: of the image or volume.
        targets: what a model's file records of the classes.
    """
    if affine is None or grid is None:
        return logits.argmax(0).to(torch.uint8).cpu().numpy()
    background = targets["background"]
    return to_grid(logits, affine, grid, shape, 0 if background is None else background).cpu().numpy()


def confusions_of(values: Tensor, classes: int) -> np.ndarray:
    """Return the confusion matrices in rows of :meth:`Segmentation.outputs`, `(images, classes, classes)`."""
    found: np.ndarray = values[:, : classes**2].numpy().round().astype(np.int64).reshape(-1, classes, classes)
    return found


def _entropy(outputs: Outputs) -> float:
    """Return the mean cross entropy of all pixels that have a class."""
    total, pixels = outputs.values[:, -2:].double().sum(0).tolist()
    return total / max(1.0, pixels)
