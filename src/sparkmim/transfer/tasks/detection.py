"""Detection: a box and a class for each object of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...data.config import ViewConfig
from ...data.detection.coco_masks import require_coco
from ...data.detection.opening import Source, read_splits
from ...data.detection.table import DetectionImages
from ...data.tables import shown
from ...data.targets import Splits
from ...utils.fields import show
from ...utils.text import counted, verb
from ..config import VAL_SHARE, DetectionSettings
from ..detection.anchors import box_statistics
from ..detection.network import COLUMNS, MASK_SIDE, build_detector
from ..detection.pictures import draw_errors
from ..detection.scores import Kind, Score, score_of
from ..detection.targets import BatchObjects, ViewObjects
from ..detection.views import ObjectViews
from ..detection.whole import Detections, each_detected
from ..network import Network, load_config_backbone
from ..outputs import Outputs
from ..views import TargetBatch
from .base import TransferTask

NUMBERS = ("map", "map50", "map75", "recall")
"""Scores of a validation."""


class Detection(TransferTask[DetectionImages]):
    """Find objects: their boxes and classes.

    What is kept of an image that is scored (a row of :class:`~sparkmim.transfer.outputs.Outputs`) is its detections, in
    pixels of the image.
    """

    settings_type = DetectionSettings
    metric = "map"
    kind: ClassVar[Kind] = "bbox"
    heads: ClassVar[tuple[str, ...]] = ("faster-rcnn", "retinanet", "fcos")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the task with its settings among a configuration's fields, by flat name."""
        own = {field.name: values[field.name] for field in fields(DetectionSettings) if field.name in values}
        return cls(DetectionSettings(**{"head": cls.heads[0], **own}))

    @property
    def with_masks(self) -> bool:
        """Return whether objects have masks."""
        return self.kind == "segm"

    def decisive(self) -> dict[str, Any]:
        """Return the fields that decide which images, boxes and classes are read."""
        return {name: getattr(self.settings, name) for name in ("classes", "image_folder", "val_share")}

    def require_dims(self, dims: int, network: str, data: str) -> None:
        """Raise unless a network takes images."""
        if dims not in self.dims:
            raise ValueError(
                f"{network} takes images of {dims} axes, and objects are detected in those of two; name a network of "
                "images (--model)"
            )

    # --- images and objects -------------------------------------------------------------------------------------

    def read_split(self, path: Path, option: str, train: DetectionImages | None) -> DetectionImages:
        """Return the images of a folder or file, none held out."""
        own = Source(str(path), None, None, self.settings.classes, self.settings.image_folder, 0.0)
        return self._with_masks(read_splits(own, 0, hold_out=False).train, option)

    def read(self, data: Any, seed: int) -> Splits[DetectionImages]:
        """Return the splits of a data set, see :func:`~sparkmim.data.detection.opening.read_splits`."""
        require_coco("detection needs")
        if data.folds and data.val_data is not None:
            raise ValueError("--folds and --val-data both say what to validate with; use one of them")
        if data.fold and not data.folds:
            raise ValueError(f"--fold {data.fold} requires --folds")
        own = self.settings
        source = Source(data.data, data.val_data, data.test_data, own.classes, own.image_folder, own.val_share)
        splits = read_splits(source, seed, hold_out=not data.folds)
        train, val, test = (
            images if images is None else self._with_masks(images, option)
            for images, option in zip(splits, ("--data", "--val-data", "--test-data"), strict=True)
        )
        assert train is not None
        if data.folds:
            train, val = self.fold(train, data.folds, data.fold, seed)
        shared = self.share(train, data.label_share, seed)
        for images, what in ((shared, "to train on"), (val, "to validate with")):
            if images is not None and not any(images.counts()):
                raise ValueError(
                    f"none of the {len(images)} images {what} shows an object; use another --seed, or a larger share"
                )
        return Splits(shared, val, test)

    def _with_masks(self, images: DetectionImages, option: str) -> DetectionImages:
        """Return the images.

        Raises:
            ValueError: if masks are wanted, and objects have none.
        """
        if self.with_masks and not images.with_masks:
            lacking = sum(
                mask is None and not off
                for one in images.objects
                for mask, off in zip(one.masks, one.ignored, strict=True)
            )
            raise ValueError(
                f"{option}: {lacking} of {sum(images.counts())} objects "
                f"{verb(lacking, 'have')} no mask, which --task instance learns "
                "from: polygons or run lengths of COCO, or polygons of YOLO; use --task detection for boxes alone"
            )
        return images

    def describe(self, train: DetectionImages) -> str:
        """Return the number of images, and of the objects of each class."""
        counts = train.counts()
        named = ", ".join(f"{n:,} {shown(name)}" for name, n in list(zip(train.classes, counts, strict=True))[:8])
        more = ", ..." * (len(counts) > 8)
        objects, classes = counted(sum(counts), "object"), counted(len(counts), "class", "classes")
        return f"{len(train):,} with {objects} of {classes} ({named}{more})"

    def extents(self, train: DetectionImages) -> tuple[int, ...]:
        """Return the median size of the images along each axis."""
        known = train.sizes[train.sizes.all(1)]
        return tuple(int(extent) for extent in np.median(known, axis=0)) if len(known) else ()

    def target(self, images: DetectionImages, index: int) -> Tensor:
        """Return the boxes of an image in its own pixels, with the number of each one's class, from 1: `(N, 5)`."""
        own = images.objects[index]
        table = np.concatenate([own.boxes, own.labels[:, None] + 1], 1)[~own.ignored]
        return torch.from_numpy(table.astype(np.float32))

    def describe_targets(self, train: DetectionImages) -> dict[str, Any]:
        """Return the classes, and what anchors are chosen by."""
        return {"categories": [asdict(category) for category in train.categories], "boxes": box_statistics(train)}

    # --- the network --------------------------------------------------------------------------------------------

    def head(self, channels: int, targets: Mapping[str, Any]) -> nn.Module:
        """Raise: a detector's head takes all maps, see :meth:`build`."""
        raise NotImplementedError("the head of a detection takes the whole pyramid; see Detection.build")

    def build(self, config: Any, targets: Mapping[str, Any]) -> Network:
        """Return the detector that the settings name.

        Raises:
            ValueError: for a head of another task, or anchors that do not fit the network's levels.
        """
        if self.settings.head not in self.heads:
            task = "instance" if self.settings.head == "mask-rcnn" else "detection"
            raise ValueError(
                f"--head {self.settings.head} is for --task {task}; use {' or '.join(self.heads)}, or --task {task}"
            )
        backbone = load_config_backbone(config)
        module: Any = build_detector(backbone, self.settings, len(targets["categories"]))
        return Network(module, backbone, module.backbone.body)

    # --- training -----------------------------------------------------------------------------------------------

    def validate(self, config: Any, train: DetectionImages, micro_batch: int) -> None:
        """Raise for settings that do not fit detection."""
        if config.data.crop != "native":
            raise ValueError(
                "--crop resized is for classification; views of objects are cut by --zoom: use --crop native"
            )
        share = self.settings.val_share
        if share not in (0, VAL_SHARE) and not train.held_out and not config.data.folds:
            raise ValueError(
                f"--val-share {share:g} has no effect: {config.data.data} names images to validate with; leave it out"
            )
        if config.data.pages == "images":
            raise ValueError("--pages images takes one target for all pages of a file; use --pages channels or first")
        if config.run.compile != "off":
            raise ValueError(
                f"--compile {config.run.compile}: a detector computes with as many boxes as it finds, for which it is "
                "compiled again and again; use --compile off"
            )

    def effects(self, config: Any) -> dict[str, tuple[bool, str]]:
        """Return which settings have an effect beside each other."""
        own = self.settings
        by_anchors = own.head != "fcos", "with --head fcos, which has no anchors; use another head"
        return {
            "anchor_sizes": by_anchors,
            "anchor_ratios": by_anchors,
            "head_norm": (own.head != "fcos", "with --head fcos, whose group norms are its own"),
            "val_share": (
                config.data.val_data is None and not config.data.folds,
                "with --val-data or --folds, which say what to validate with",
            ),
        }

    def views(self, train: DetectionImages, config: Any) -> Dataset[TargetBatch]:
        """Return random views with their objects."""
        channels, seed = config.model.in_chans, config.run.seed
        return ObjectViews(train, config.data, self.settings, channels, seed, masks=self.with_masks)

    def blank_targets(self, train: DetectionImages, config: Any, images: int) -> BatchObjects:
        """Return a box in the middle of each of as many views."""
        height, width = config.data.image_size
        box = torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]])
        mask = torch.ones(1, height, width, dtype=torch.uint8) if self.with_masks else None
        return BatchObjects((ViewObjects(box, torch.ones(1, dtype=torch.int64), mask),) * images)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the sum of a detector's losses."""
        total: Tensor = torch.stack([value.float() for value in outputs.values()]).sum()
        return total

    def training_loss(
        self,
        model: Callable[..., Any],
        images: Tensor,
        targets: Any,
        config: Any,
        described: Mapping[str, Any],
    ) -> Tensor:
        """Return the sum of the detector's losses."""
        return self.loss(model(images, targets.as_torchvision()), None)

    def describe_training(self, config: Any) -> list[str]:
        """Return augmentations and head in words."""
        own = self.settings
        low, high = own.zoom
        norm = {"none": "", "batch": " with norms"}[own.head_norm]
        return [
            f"scaled by {low:g} to {high:g} of what fits",
            *([f"jitter {own.jitter:g}"] if own.jitter else []),
            f"head {own.head}{norm}, pyramid of {own.fpn_width} channels",
            "whole images fitted in to be scored",
        ]

    def describe_lines(self, train: DetectionImages, config: Any) -> dict[str, str]:
        """Return the anchors, what was found in reading, and which images were drawn to validate with."""
        own = self.settings
        anchors = f"{show(own.anchor_sizes)} pixels by level, height / width {show(own.anchor_ratios)}"
        return {
            **({} if own.head == "fcos" else {"anchors": anchors}),
            "annotations": "; ".join([train.kind, *train.notes]),
            **({"validation": train.held_out} if train.held_out else {}),
        }

    # --- evaluation ---------------------------------------------------------------------------------------------

    def outputs(
        self,
        module: nn.Module,
        images: DetectionImages,
        data: ViewConfig,
        channels: int,
        targets: Mapping[str, Any],
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> Outputs:
        """Return the detections of each image."""
        rows: list[Tensor] = []
        indices: list[int] = []
        broken: list[tuple[int, str]] = []
        found = each_detected(
            module,
            images.source,
            data,
            channels,
            batch_size=batch_size,
            workers=workers,
            device=device,
            sizes=images.sizes,
        )
        for one, row in found:
            if row is None:
                broken.append((one.number, one.error))
            else:
                rows.append(row.flatten())
                indices.append(one.number)
        return Outputs(torch.stack(rows) if rows else torch.zeros(0, 0), indices, broken)

    def detections(self, outputs: Outputs) -> list[Detections]:
        """Return what is found in each image that could be read."""
        columns = COLUMNS + (MASK_SIDE**2 if self.with_masks else 0)
        return [Detections.of(row.reshape(-1, columns)) for row in outputs.values]

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Raise: scores need the images' objects, see :meth:`evaluate`."""
        raise NotImplementedError("a detection is scored by its images; see Detection.evaluate")

    def scores(self, outputs: Outputs, images: DetectionImages) -> dict[str, Score]:
        """Return the scores of boxes, and of masks where objects have them, by prefix."""
        found, own = self.detections(outputs), images.subset(outputs.indices)
        kinds: dict[str, Kind] = {"": "bbox", **({"mask_": "segm"} if self.with_masks else {})}
        return {prefix: score_of(found, own, kind, self.settings.detections) for prefix, kind in kinds.items()}

    def evaluate(self, outputs: Outputs, images: DetectionImages, config: Any) -> dict[str, float]:
        """Return the average precisions of a split."""
        return {
            f"{prefix}{name}": getattr(score, name)
            for prefix, score in self.scores(outputs, images).items()
            for name in NUMBERS
        }

    def results(self, outputs: Outputs, images: DetectionImages, config: Any, pictures: Path) -> dict[str, Any]:
        """Return the scores, those of each class, and curves of precision by recall."""
        found = {
            f"{prefix}{name}": value
            for prefix, score in self.scores(outputs, images).items()
            for name, value in asdict(score).items()
        }
        return {"images": len(outputs.indices), "broken": len(outputs.broken), **found}

    def pictures(
        self,
        module: nn.Module,
        outputs: Outputs,
        images: DetectionImages,
        config: Any,
        targets: Mapping[str, Any],
        folder: Path,
        device: torch.device,
    ) -> dict[str, Any]:
        """Draw the images with most mistakes: hits, misses and false alarms."""
        score = score_of(self.detections(outputs), images.subset(outputs.indices), "bbox", self.settings.detections)
        found = {
            index: one.at_least(score.threshold)
            for index, one in zip(outputs.indices, self.detections(outputs), strict=True)
        }
        return {"worst": draw_errors(found, images, config.data, config.model.in_chans, folder)}
