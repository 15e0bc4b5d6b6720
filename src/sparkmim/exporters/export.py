"""Export an encoder to the format of another library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder, load_trained_encoder, with_input
from ..utils.io import require_utf8, require_writable, write_atomically, write_json
from ..utils.logging import log
from .detectron2 import detectron2_config, to_detectron2, write_pickle
from .detr import Body, to_detr, to_rt_detr
from .formats import ADAPTED, ANY_CHANNELS, SUFFIXES, Format, ModelFormat
from .huggingface import CARD_FILE, check_folder, write_folder
from .monai import to_monai
from .nnunet import to_nnunet
from .openmmlab import Library, to_openmmlab
from .smp import to_smp
from .torchvision import to_torchvision
from .ultralytics import to_ultralytics

RT_DETR_MAPS = 'out_features=["stage2", "stage3", "stage4"]'
"""The maps that RT-DETR takes of its body."""


class Exported(NamedTuple):
    """An exported encoder.

    Attributes:
        network: name of the network.
        format: the library's name.
        path: the file or folder.
        usage: lines of code or configuration that load it.
        card_kept: whether the folder had a model card, which was left unchanged.
    """

    network: str
    format: Format
    path: Path
    usage: str
    card_kept: bool = False


def export(
    encoder: str | Path,
    output: str | Path,
    *,
    format: Format = "timm",
    model: str | None = None,
    plans: str | None = None,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    trust: bool = False,
) -> Exported:
    """Write an encoder in the format of another library, after verifying that it computes the same there.

    Args:
        encoder: an `encoder.safetensors` or the run folder that holds one, other weights, or "timm"; see
            :func:`sparkmim.load_encoder`.
        output: file (.pkl for detectron2, .pt for ultralytics, .pth for the others) or, for timm, a folder that is new,
            empty, or an earlier export. Beside that of nnunet, nnssl's adaptation plan is written as
            `STEM.adaptation_plan.json`.
        format: the library.
        model: the network's name, for weights that do not record it.
        plans: for nnunet, `PLANS.json#CONFIGURATION` of the data set to train on, or a preset; those of the network's
            name by default.
        stages: names of the submodules whose outputs are the feature maps, for networks that do not offer them.
        in_chans: channels of the images, if not recorded; for nnunet and monai those of the images that will be trained
            on, to which the first convolution is adapted.
        mean: mean of each channel that the export names; as recorded by default.
        std: standard deviation of each channel, likewise.
        image_size: side of the images in pixels that the export names; as recorded by default.
        trust: run the code of a network that the file names, where `model` does not.

    Raises:
        ValueError: for an output that does not fit the format or cannot be written, an encoder that cannot be loaded,
            or one that the library does not have (:class:`~sparkmim.exporters.equivalence.Mismatch`).
    """
    output = Path(output)
    if format in get_args(ModelFormat) and format not in get_args(Format):
        raise ValueError(
            f"--format {format} is for a whole fine-tuned model: name it by --run RUN instead of --encoder (in Python "
            "sparkmim.export_model)"
        )
    if format not in get_args(Format):
        raise ValueError(f"--format {format} is unknown; use one of {', '.join(get_args(Format))}")
    if plans is not None and format != "nnunet":
        raise ValueError(f"--plans {plans} has no effect with --format {format}; it is for --format nnunet")
    suffix = SUFFIXES.get(format)
    if suffix is not None and output.suffix != suffix:
        raise ValueError(f"--output {output} must end in {suffix} for --format {format}")
    if suffix is None and (output.is_file() or output.suffix in (".pth", ".pkl", ".safetensors")):
        raise ValueError(f"--output {output} is a file; --format timm takes a folder")
    if suffix is None:
        require_utf8(output, "--output")
        check_folder(output)
    elif output.resolve() == Path(encoder).resolve():
        raise ValueError(f"--output {output} is the file of --encoder; name another")
    else:
        require_writable(output)
    adapts = format in ADAPTED
    loaded = load_trained_encoder(encoder, model, stages=stages, in_chans=None if adapts else in_chans, trust=trust)
    network = with_input(loaded, image_size=image_size, mean=mean, std=std)
    if format not in ANY_CHANNELS and network.backbone.in_chans != 3:
        raise ValueError(f"networks of {format} take images of 3 channels, this one {network.backbone.in_chans}")
    if network.backbone.aligned:
        log.warning(
            f"{network.name} was pretrained with {len(network.backbone.aligned)} of its layers padded, and is computed "
            f"here without: with {format} its features differ near the edges of an image"
        )
    if format == "timm":
        card_kept = (output / CARD_FILE).exists()
        write_folder(network, output)
        usage = f'timm.create_model("local-dir:{output}", pretrained=True)'
        return Exported(network.name, format, output, usage, card_kept)
    if format == "torchvision":
        usage = _write_torchvision(network, output)
    elif format == "detectron2":
        usage = _write_detectron2(network, output)
    elif format == "nnunet":
        usage = _write_nnunet(network, output, plans, in_chans)
    elif format == "monai":
        usage = _write_monai(network, output, in_chans)
    elif format == "smp":
        usage = _write_smp(network, output)
    elif format == "detr":
        usage = _write_detr(network, output, to_detr(network.backbone.module))
    elif format == "rt-detr":
        usage = _write_detr(network, output, to_rt_detr(network.backbone.module))
    elif format == "ultralytics":
        usage = _write_ultralytics(network, output)
    else:
        usage = _write_openmmlab(network, output, format)
    return Exported(network.name, format, output, usage)


def _write_torchvision(encoder: TrainedEncoder, output: Path) -> str:
    found = to_torchvision(encoder.backbone.module)
    _save(found.weights, output)
    return (
        f"network = torchvision.models.{found.builder}()\n"
        f'network.load_state_dict(torch.load("{output}"), strict=False)  # all but the classifier'
    )


def _write_detectron2(encoder: TrainedEncoder, output: Path) -> str:
    weights, network = to_detectron2(encoder.backbone.module)
    write_atomically(output, lambda file: write_pickle(weights, file))
    settings = {"MODEL.WEIGHTS": str(output), **detectron2_config(network, encoder.data.mean, encoder.data.std)}
    return "\n".join(f"{key} {value}" for key, value in settings.items())


def _write_nnunet(encoder: TrainedEncoder, output: Path, plans: str | None, in_chans: int | None) -> str:
    found = to_nnunet(encoder, plans, in_chans)
    _save(found.content, output)
    named = "" if found.plans is None else f" -p {found.plans}"
    usage = f"nnUNetv2_train DATASET {found.configuration} FOLD{named} -pretrained_weights {output}"
    if found.adaptation is not None:
        beside = output.with_suffix(".adaptation_plan.json")
        write_json(beside, found.adaptation)
        usage += f"\n# nnssl's adaptation plan: {beside}"
    if found.started_anew:
        usage += f"\n# {found.started_anew:,} parameters (of decoder and outputs) start as nnU-Net initializes them"
    return usage


def _write_monai(encoder: TrainedEncoder, output: Path, in_chans: int | None) -> str:
    found = to_monai(encoder, in_chans)
    _save(found.weights, output)
    return (
        f"network = {found.call}\n"
        f'network.load_state_dict(torch.load("{output}"), strict=False)  # all but the output layers'
    )


def _write_smp(encoder: TrainedEncoder, output: Path) -> str:
    found = to_smp(encoder)
    _save(found.weights, output)
    channels = encoder.backbone.in_chans
    return (
        f'network = smp.Unet("{found.encoder_name}", encoder_weights=None, in_channels={channels}, classes=N)\n'
        f'network.encoder.load_state_dict(torch.load("{output}"))'
    )


def _write_detr(encoder: TrainedEncoder, output: Path, body: Body) -> str:
    _save(body.weights, output)
    mean, std = ([round(value, 4) for value in values] for values in (encoder.data.mean, encoder.data.std))
    if body.name.endswith("d"):
        config = f"RTDetrConfig(backbone_config=RTDetrResNetConfig(depths={list(body.blocks)}, {RT_DETR_MAPS}))"
        kind = "RTDetr"
    else:
        config = f'DetrConfig(use_timm_backbone=True, backbone="{body.name}", use_pretrained_backbone=False)'
        kind = "Detr"
    count = sum(tensor.numel() for name, tensor in body.weights.items() if name.endswith(("weight", "bias")))
    return (
        f"detector = {kind}ForObjectDetection({config})\n"
        f'detector.model.backbone.model.load_state_dict(torch.load("{output}"))  # all {count:,} weights of the body\n'
        f"processor = {kind}ImageProcessor(do_normalize=True, image_mean={mean}, image_std={std})"
    )


def _write_ultralytics(encoder: TrainedEncoder, output: Path) -> str:
    found = to_ultralytics(encoder)
    write_atomically(output, lambda file: file.write(found.content))
    anew = f"; {', '.join(found.left)} starts anew" if found.left else ""
    return (
        f'model = YOLO("{found.config}").load("{output}")  # transfers {found.items} of {found.total} items{anew}\n'
        f'model.train(data="DATA.yaml", imgsz={encoder.data.image_size[-1]})'
    )


def _write_openmmlab(encoder: TrainedEncoder, output: Path, library: Library) -> str:
    exported = to_openmmlab(encoder.backbone.module, library)
    prefix = "backbone." if library == "mmpretrain" else ""
    _save({"state_dict": {prefix + name: tensor for name, tensor in exported.weights.items()}}, output)
    pretrained = {"type": "Pretrained", "checkpoint": str(output), **({"prefix": "backbone."} if prefix else {})}
    mean, std = ([round(255 * value, 3) for value in values] for values in (encoder.data.mean, encoder.data.std))
    # These libraries read images as BGR and, unless configured otherwise, pass them on as such.
    kind = {"mmdet": "DetDataPreprocessor", "mmseg": "SegDataPreProcessor"}.get(library)
    rgb = "to_rgb=True" if kind is None else f'type="{kind}", bgr_to_rgb=True'
    lines = [
        f"backbone={exported.backbone | {'init_cfg': pretrained}}",
        f"data_preprocessor=dict({rgb}, mean={mean}, std={std})",
    ]
    if exported.backbone["type"].startswith("mmpretrain."):
        lines.append('custom_imports=dict(imports=["mmpretrain.models"])  # at the top of the configuration')
    return "\n".join(lines)


def _save(content: dict[str, Any] | dict[str, Tensor], output: Path) -> None:
    write_atomically(output, lambda file: torch.save(content, file))
