"""The configuration of a fine-tuning, in groups. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..data.config import ViewConfig, VolumeConfig
from ..training.config import Configuration, LayeredOptimizerConfig, LoopConfig, ScheduleConfig, plugin
from ..utils.fields import NoSettings, Valid, at_least, rate, setting, share

CLASSIFICATION = "classification"
"""The task that is trained for where none is named."""

SEGMENTATION = "segmentation"

DETECTION, INSTANCE = "detection", "instance"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network to train."""

    task: str = setting(CLASSIFICATION, kind="code", shapes_model=True)
    """What to train for: classification, segmentation, detection, instance (detection with masks), another task by
    name, or FILE.py:CLASS."""

    model: str = setting(kind="code", shapes_model=True)
    """A timm model name, or FILE.py:FUNCTION that returns a module or a sparkmim.Backbone; not needed where the encoder
    records it."""

    stages: tuple[str, ...] = setting((), shapes_model=True)
    """Names of the submodules whose outputs are the feature maps, if the network does not offer them itself."""

    levels: int | None = setting(
        None, Valid(lambda v: v is None or v >= 1, "is a number of feature maps, at least 1"), shapes_model=True
    )
    """Number of feature maps, the deepest ones; those of the encoder if not given."""

    in_chans: int = setting(3, at_least(1, "a number of channels"), shapes_model=True)
    """Channels of the images."""

    encoder: str = setting("none", kind="weights")
    """Weights to start from: an encoder.safetensors or other weights, the folder of a pretraining, timm (its pretrained
    ones), or none (random ones: from scratch)."""

    drop_path: float = setting(0.0, rate())
    """Highest rate of stochastic depth in the network."""


@dataclass(frozen=True, kw_only=True)
class LabeledDataConfig(ViewConfig):
    """Which images, and which of their labels."""

    data: str = setting(kind="images", resumable=True)
    """Class folders, a CSV file of rows `path,class`, or a folder with train, val and test folders of classes."""

    val_data: str | None = setting(None, kind="images", resumable=True)
    """Class folders or a CSV file to validate with; val beside train if not given. The weights that score best on it
    are kept."""

    test_data: str | None = setting(None, kind="images", resumable=True)
    """Class folders or a CSV file on which the final weights are scored, once; test beside train if not given."""

    label_share: float = setting(1.0, Valid(lambda v: 0 < v <= 1, "is a share of the labels, above 0 and at most 1"))
    """Share of each class's training images to use, at least one."""

    folds: int = setting(
        0, Valid(lambda v: v == 0 or v >= 2, "is a number of folds, at least 2, or 0 for no cross-validation")
    )
    """Cross-validation: divide the training images into so many folds, and validate with one of them."""

    fold: int = setting(0, at_least(0, "the number of a fold"))
    """Which fold to validate with, from 0."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of training images beside the crop and the flip."""

    policy: Literal["none", "rand", "trivial"] = "none"
    """Changes of color and shape: rand (RandAugment: two of magnitude 9 of 30), trivial (TrivialAugment: one of any
    magnitude), or none."""

    erasing: float = setting(0.0, share("the views"))
    """Share of views in which a rectangle is replaced by noise."""

    mixup: float = setting(0.0, at_least(0))
    """Parameter of the Beta distribution of the weights by which two images are added; 0 never adds them."""

    cutmix: float = setting(0.0, at_least(0))
    """Likewise of the area of one image that replaces that of another; with mixup, each for half of the batches."""

    repeats: int = setting(1, at_least(1, "a number of views"))
    """Views of each image that follow each other; an epoch then shows a part of the images (repeated augmentation)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of a classification."""

    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    """cross-entropy (one class is right), or binary (the mean over classes of the binary cross entropy)."""

    smoothing: float = setting(0.1, Valid(lambda v: 0 <= v < 1, "is a share from 0 to below 1"))
    """Share of each target that is spread evenly over all classes."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimizerConfig(LayeredOptimizerConfig):
    """The update rule, and how it differs between layers."""

    ema: float = setting(0.0, rate())
    """Decay of a moving average of the weights (at first the mean of all), which is scored and kept; 0 keeps the
    weights themselves."""


def settings_of_task(name: str | None) -> type[Any]:
    """Return the class of a task's settings; imports the task, but for those with groups of their own."""
    if name is None or name in TASKS:
        return NoSettings
    from .tasks.base import find_task

    return find_task(str(name)).settings_type


@dataclass(frozen=True, kw_only=True)
class TransferConfig(Configuration):
    """Everything that determines a fine-tuning for any task, every value resolved."""

    model: NetworkConfig
    data: LabeledDataConfig
    optimizer: FinetuneOptimizerConfig
    schedule: ScheduleConfig
    run: LoopConfig
    task_settings: Any = plugin("task", settings_of_task)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TransferConfig):
    """Everything that determines a fine-tuning for classification."""

    augment: AugmentConfig
    objective: LossConfig
    volumes: VolumeConfig = VolumeConfig()


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """How pixels and voxels are classified."""

    head: Literal["fpn", "unet", "own"] = setting("unet", shapes_model=True)
    """What predicts from the feature maps: fpn (a feature pyramid, whose levels are added up), unet (a decoder with
    skips, up to the image's resolution), or own (the network's own decoder, as of nnunet:resenc-m)."""

    decoder_width: int = setting(128, at_least(1, "a number of channels"), shapes_model=True)
    """Channels of the feature pyramid; most channels of a level of the decoder unet."""

    loss: Literal["ce", "dice", "ce+dice"] = "ce+dice"
    """ce (cross entropy), dice (1 - the mean of the classes' soft Dice over a batch), or the sum of both."""

    classes: str | None = setting(None, kind="file")
    """Table of the classes: a CSV file of rows `name,index` or `name,index,color`, or nnU-Net's dataset.json. If not
    given, the classes are the values that the training masks hold, or the categories of the COCO file."""

    image_folder: str | None = setting(None, kind="folder")
    """Folder of the images of COCO files; looked for beside the file if not given."""

    ignore_index: int = setting(255, at_least(-1, "a value of masks, or -1 for none"))
    """Value of pixels that belong to no class: they take no part in the loss and in scores. -1 for none."""

    class_weights: Literal["none", "balanced"] | tuple[float, ...] = setting(
        "none",
        Valid(
            lambda v: isinstance(v, str) or all(0 <= part < math.inf for part in v),
            "is none, balanced, or a weight of at least 0 for each class",
        ),
    )
    """Weights of the classes in the cross entropy: none, balanced (the median share of pixels by each class's share),
    or a number for each class in the table's order."""

    zoom: tuple[float, float] = setting(
        (0.75, 1.33), Valid(lambda v: 0 < v[0] <= v[1] < math.inf, "is two factors above 0, the smaller one first")
    )
    """Factors by which crops of images are enlarged at random, at least and at most; 1 1 cuts at the images' own
    resolution. For volumes see --rotate."""

    jitter: float = setting(0.25, rate())
    """Strength of random changes: of brightness, contrast and saturation of images of 8 bits and one or three channels,
    of scale and offset of the values of all others and of volumes; 0 for none."""

    oversample: float = setting(0.33, share("the crops"))
    """Share of crops of volumes that are placed around a voxel of a random class other than the background."""

    overlap: float = setting(0.5, rate())
    """Share of a window that the next one covers too, where whole images are predicted window by window."""


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(TransferConfig):
    """Everything that determines a fine-tuning for segmentation."""

    segmentation: SegmentationSettings
    volumes: VolumeConfig = VolumeConfig()


VAL_SHARE = 0.2
"""Share of the images that is drawn to validate with, where the data name none and nobody says."""


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """How objects are detected."""

    head: Literal["faster-rcnn", "retinanet", "fcos", "mask-rcnn"] = setting("faster-rcnn", shapes_model=True)
    """Detector, torchvision's, on a feature pyramid of the network's maps: faster-rcnn (two stages), retinanet or fcos
    (one stage), or mask-rcnn, for --task instance."""

    fpn_width: int = setting(
        256, Valid(lambda v: v >= 32 and v % 32 == 0, "is a number of channels, a multiple of 32"), shapes_model=True
    )
    """Channels of the feature pyramid and of the convolutions in the heads; a quarter of those of the box head."""

    head_norm: Literal["none", "batch"] = setting("none", shapes_model=True)
    """batch normalizes the pyramid and the box head of faster-rcnn and mask-rcnn, which gets four convolutions, as
    torchvision's models of version 2 and the paper have; of retinanet it is group norm. none does not."""

    anchor_sizes: tuple[float, ...] = setting(
        (), Valid(lambda v: all(0 < size < math.inf for size in v), "is sizes in pixels, above 0"), shapes_model=True
    )
    """Side of the square of the anchors of each level, in pixels of a view. The recipe chooses them by the strides and
    the boxes of the training images."""

    anchor_ratios: tuple[float, ...] = setting(
        (0.5, 1.0, 2.0),
        Valid(lambda v: bool(v) and all(0 < r < math.inf for r in v), "is ratios above 0, one or more"),
        shapes_model=True,
    )
    """Height / width of anchors, likewise chosen by the recipe."""

    zoom: tuple[float, float] = setting(
        (0.6, 1.6), Valid(lambda v: 0 < v[0] <= v[1] < math.inf, "is two factors above 0, the smaller one first")
    )
    """Scales of training images relative to the one that fits into a view, at least and at most: smaller ones lie
    somewhere in it, of larger ones a part is seen."""

    jitter: float = setting(0.25, rate())
    """Strength of random changes: of brightness, contrast and saturation of images of 8 bits and one or three channels,
    of scale and offset of the values of all others; 0 for none."""

    detections: int = setting(100, at_least(1, "a number of objects"))
    """Most objects that are found in an image; COCO's scores are of 100."""

    classes: str | None = setting(None, kind="file")
    """File of the classes' names, one in each line. If not given, they are those that the annotations declare (COCO,
    YOLO's data.yaml or classes.txt) or name (VOC)."""

    image_folder: str | None = setting(None, kind="folder")
    """Folder of the images of COCO files; looked for beside the file if not given."""

    val_share: float = setting(VAL_SHARE, Valid(lambda v: 0 <= v < 1, "is a share of the images, from 0 to below 1"))
    """Share of the training images that is drawn to validate with where the data name no others; 0 trains on all."""


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(TransferConfig):
    """Everything that determines a fine-tuning for detection."""

    detection: DetectionSettings


TASKS: dict[str, type[TransferConfig]] = {
    CLASSIFICATION: FinetuneConfig,
    SEGMENTATION: SegmentationConfig,
    DETECTION: DetectionConfig,
    INSTANCE: DetectionConfig,
}
"""Tasks whose settings are groups of a configuration of their own, so that their flags have no prefix."""


def config_type_of(task: str | None) -> type[TransferConfig]:
    """Return the class of a fine-tuning's configuration for a task by name."""
    return TASKS.get(CLASSIFICATION if task is None else task, TransferConfig)
