"""`sparkmim export`: an encoder in the form that another library reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder, load_network
from ..exporters.detectron2 import detectron2_config, to_detectron2, write_pickle
from ..exporters.huggingface import CARD_FILE, check_folder, write_folder
from ..exporters.openmmlab import Library, to_openmmlab
from ..exporters.torchvision import to_torchvision
from ..utils.io import require_writable, write_atomically

Format = Literal["timm", "torchvision", "detectron2", "mmpretrain", "mmdet"]
SUFFIXES: dict[str, str] = {"torchvision": ".pth", "detectron2": ".pkl", "mmpretrain": ".pth", "mmdet": ".pth"}
"""Ending of the file; timm takes a folder."""


def export(encoder: Path, output: Path, format: Format = "timm", model: str | None = None) -> int:
    """Write an encoder in the form that another library reads, having checked that it computes the same there.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights of a network; or timm.
        output: the file (torchvision, mmpretrain, mmdet: .pth; detectron2: .pkl) to write; for timm a folder: new,
            empty, or of an earlier export.
        format: timm, a folder with weights, config.json and model card, as on the Hugging Face hub; torchvision, a
            state dict; detectron2 (ResNet, ResNeXt); mmpretrain or mmdet (ResNet, ResNeXt, ConvNeXt).
        model: the network's timm name, if the file of weights does not know it.
    """
    if format not in get_args(Format):
        raise ValueError(f"--format {format} is unknown; use one of {', '.join(get_args(Format))}")
    suffix = SUFFIXES.get(format)
    if suffix is not None and output.suffix != suffix:
        raise ValueError(f"--output {output} must end in {suffix} for --format {format}")
    if suffix is None and (output.is_file() or output.suffix in (".pth", ".pkl", ".safetensors")):
        raise ValueError(f"--output {output} is a file; --format timm takes a folder")
    if suffix is None:
        check_folder(output)
    elif output.resolve() == encoder.resolve():
        raise ValueError(f"--output {output} is the file of --encoder; name another")
    else:
        require_writable(output)
    network = load_network(encoder, model)
    if suffix is not None and network.backbone.in_chans != 3:
        raise ValueError(f"networks of {format} take images of 3 channels, this one {network.backbone.in_chans}")
    hint = _write(format, network, output)
    print(f"{network.name} for {format}: {output}\n{hint}")
    return 0


def _write(format: Format, encoder: TrainedEncoder, output: Path) -> str:
    """Write the file or folder; how to load it, in words."""
    module, data = encoder.backbone.module, encoder.data
    if format == "timm":
        kept = (output / CARD_FILE).exists()
        write_folder(encoder, output)
        note = f"\n{output / CARD_FILE} is left as it was; remove it, and export again, for a new one" * kept
        return f'    timm.create_model("local-dir:{output}", pretrained=True){note}'
    if format == "torchvision":
        found = to_torchvision(module)
        _save(found.weights, output)
        return (
            f"    network = torchvision.models.{found.builder}()\n"
            f'    network.load_state_dict(torch.load("{output}"), strict=False)  # all but the classifier'
        )
    if format == "detectron2":
        weights, network = to_detectron2(module)
        write_atomically(output, lambda file: write_pickle(weights, file))
        settings = {"MODEL.WEIGHTS": str(output), **detectron2_config(network, data.mean, data.std)}
        return "\n".join(f"    {key} {value}" for key, value in settings.items())
    library: Library = format
    exported = to_openmmlab(module, library)
    prefix = "backbone." if library == "mmpretrain" else ""
    _save({"state_dict": {prefix + name: tensor for name, tensor in exported.weights.items()}}, output)
    pretrained = {"type": "Pretrained", "checkpoint": str(output), **({"prefix": "backbone."} if prefix else {})}
    mean, std = ([round(255 * value, 3) for value in values] for values in (data.mean, data.std))
    # Both libraries read images as BGR, and leave them so unless told otherwise.
    rgb = "to_rgb=True" if library == "mmpretrain" else 'type="DetDataPreprocessor", bgr_to_rgb=True'
    lines = [
        f"    backbone={exported.backbone | {'init_cfg': pretrained}}",
        f"    data_preprocessor=dict({rgb}, mean={mean}, std={std})",
    ]
    if exported.backbone["type"].startswith("mmpretrain."):
        lines.append('    custom_imports=dict(imports=["mmpretrain.models"])  # at the top of the configuration')
    return "\n".join(lines)


def _save(content: dict[str, Any] | dict[str, Tensor], output: Path) -> None:
    write_atomically(output, lambda file: torch.save(content, file))
