"""Export a whole fine-tuned model, its head included: as a program, or for torchvision."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import torchvision
from torch import Tensor, nn

from ..transfer.detection.network import LEAST_SCORE
from ..transfer.model_file import SavedModel, load_for_prediction
from ..transfer.network import PooledNetwork
from ..transfer.tasks.classification import Classification
from ..transfer.tasks.detection import Detection
from ..utils.copies import copied
from ..utils.io import require_writable, write_atomically
from ..utils.modules import eval_mode
from .detector import THRESHOLD, detector_program
from .detectron2 import detectron2_config, write_pickle
from .equivalence import Mismatch, counterpart_weights
from .formats import MODEL_SUFFIXES, ModelFormat
from .program import INPUT, TRACED, Program, example, export_program, onnx_program, require_logits, script_program
from .pyramid import to_detectron2_pyramid, to_mmdet_pyramid
from .torchvision import to_torchvision

PROGRAMS: dict[str, Callable[[nn.Module, Tensor, dict[str, Any]], bytes]] = {
    "onnx": onnx_program,
    "torch-export": export_program,
    "torchscript": script_program,
}


class ExportedModel(NamedTuple):
    """An exported model.

    Attributes:
        task: its task.
        format: of the file.
        path: of the file.
        usage: lines of code that load it.
    """

    task: str
    format: ModelFormat
    path: Path
    usage: str


def export_model(
    run: str | Path,
    output: str | Path,
    *,
    format: ModelFormat = "onnx",
    image_size: int | None = None,
    model: str | None = None,
    trust: bool = False,
) -> ExportedModel:
    """Write a whole fine-tuned model, after verifying that it computes the same there.

    Programs (`onnx`, `torch-export`, `torchscript`) take any number of images of one size, float32 from 0 to 1, which
    they normalize themselves, and return logits: of classes `(B, classes)`, or of pixels `(B, classes, *size)`.
    Those of detectors (`onnx`, `torchscript`) take one image and the least score of a detection, and return boxes,
    labels, scores and masks.

    Args:
        run: folder of a fine-tuning, or its `model.safetensors`.
        output: file to write: .onnx, .pt2 for torch-export, .pt for torchscript, .pkl for detectron2, .pth for
            torchvision and mmdet.
        format: onnx, torch-export, torchscript, torchvision (a classifier's state dict), or mmdet and detectron2 (body
            and feature pyramid of a detector).
        image_size: side of the images in pixels or voxels; that of the fine-tuning by default.
        model: the network, where the file names code: `FILE.py:FUNCTION` or `MODULE:FUNCTION`.
        trust: run the code of a network or a task that the file names, where `model` does not.

    Raises:
        ValueError: for an output that does not fit the format or cannot be written, a model that cannot be read, a
            package that is missing, or a model that the format does not hold
            (:class:`~sparkmim.exporters.equivalence.Mismatch`).
    """
    output = Path(output)
    if format not in get_args(ModelFormat):
        raise ValueError(
            f"--format {format} does not take --run, a fine-tuned model as a whole; use one of "
            f"{', '.join(get_args(ModelFormat))}, or --encoder RUN/model.safetensors for its network without the head"
        )
    suffix = MODEL_SUFFIXES[format]
    if output.suffix != suffix:
        raise ValueError(f"--output {output} must end in {suffix} for --format {format}")
    require_writable(output)
    saved, path = load_for_prediction(run, model, trust=trust, image_size=image_size, batch_size=1, workers=1, files={})
    if output.resolve() == path.resolve():
        raise ValueError(f"--output {output} is the file of the model; name another")
    task = type(saved.task).__name__.lower()
    if format == "torchvision":
        return ExportedModel(task, format, output, _write_torchvision(saved, output))
    if format in ("detectron2", "mmdet"):
        return ExportedModel(task, format, output, _write_pyramid(saved, format, output))
    if isinstance(saved.task, Detection):
        content = detector_program(saved, format, _known(saved, task))
        write_atomically(output, lambda file: file.write(content))
        return ExportedModel(task, format, output, _detector_usage(saved, format, output))
    program = Program(saved.module, saved.view).eval()
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    images = example(TRACED, saved.in_chans, saved.view.image_size)
    require_logits(program, images, task)
    content = PROGRAMS[format](program, images, _known(saved, task))
    write_atomically(output, lambda file: file.write(content))
    return ExportedModel(task, format, output, _usage(saved, format, output))


def _known(saved: SavedModel, task: str) -> dict[str, Any]:
    """Return what a program's file tells of its input and outputs."""
    names = ("classes", "categories", "values", "colors", "ignore_index", "volumes")
    return {
        "task": task,
        "image_size": list(saved.view.image_size),
        "channels": saved.in_chans,
        "crop": saved.view.crop,
        **{name: saved.targets[name] for name in names if saved.targets.get(name) is not None},
    }


def _usage(saved: SavedModel, format: ModelFormat, output: Path) -> str:
    size = ", ".join(map(str, saved.view.image_size))
    shape = f"(N, {saved.in_chans}, {size})"
    what = "prepared as for the training" if saved.targets.get("volumes") is not None else "values from 0 to 1"
    comment = f"  # {INPUT} {shape}, float32, {what}"
    lines = {
        "onnx": f'session = onnxruntime.InferenceSession("{output}")\n'
        f'logits = session.run(None, {{"{INPUT}": images}})[0]',
        "torch-export": f'program = torch.export.load("{output}").module()\nlogits = program(images)',
        "torchscript": f'program = torch.jit.load("{output}")\nlogits = program(images)',
    }
    return lines[format] + comment


def _detector_usage(saved: SavedModel, format: ModelFormat, output: Path) -> str:
    height, width = saved.view.image_size
    names = "boxes, labels, scores" + (", masks" if saved.task.settings.head == "mask-rcnn" else "")
    least = f"numpy.array({LEAST_SCORE}, dtype=numpy.float32)"
    lines = {
        "onnx": f'session = onnxruntime.InferenceSession("{output}")\n'
        f'{names} = session.run(None, {{"{INPUT}": image, "{THRESHOLD}": {least}}})',
        "torchscript": f'import torchvision  # whose operations it needs\nprogram = torch.jit.load("{output}")\n'
        f"{names} = program(image, torch.tensor({LEAST_SCORE}))",
    }
    shape = f"(1, {saved.in_chans}, {height}, {width})"
    return f"{lines[format]}  # {INPUT} {shape}, float32, values from 0 to 1; labels count from 1"


def _write_pyramid(saved: SavedModel, format: ModelFormat, output: Path) -> str:
    """Write body and pyramid of a detector for MMDetection or Detectron2, and return settings that load it.

    Raises:
        Mismatch: for a model of another task, or a body or levels that the library does not have.
    """
    if not isinstance(saved.task, Detection):
        raise Mismatch(
            f"--format {format} with --run takes detectors; of a {type(saved.task).__name__.lower()} export the "
            f"network without its head: --encoder RUN/model.safetensors --format {format}"
        )
    mean, std = saved.view.mean, saved.view.std
    detector: Any = saved.module
    if format == "detectron2":
        found = to_detectron2_pyramid(detector)
        write_atomically(output, lambda file: write_pickle(found.weights, file))
        settings = {"MODEL.WEIGHTS": str(output), **detectron2_config(found.settings, mean, std)}
        lines = [f"{key} {value}" for key, value in settings.items()]
        lines += [f"MODEL.FPN.OUT_CHANNELS {detector.backbone.out_channels}", f"# {found.anew}"]
        return "\n".join(lines)
    found = to_mmdet_pyramid(detector)
    write_atomically(output, lambda file: torch.save({"state_dict": found.weights}, file))
    mean, std = (tuple(round(255 * value, 3) for value in values) for values in (mean, std))
    return "\n".join(
        [
            f'load_from="{output}"  # at the top of the configuration; the heads start anew',
            f"backbone={found.settings['backbone']}",
            f"neck={found.settings['neck']}",
            f'data_preprocessor=dict(type="DetDataPreprocessor", bgr_to_rgb=True, mean={list(mean)}, std={list(std)})',
        ]
    )


def _write_torchvision(saved: SavedModel, output: Path) -> str:
    """Write a classifier's state dict under torchvision's names, and return code that loads it.

    Raises:
        Mismatch: for a model of another task, or a network that torchvision does not have.
    """
    if isinstance(saved.task, Detection):
        raise Mismatch(
            "a detector's model.safetensors has torchvision's names already: build torchvision's detector from the "
            "same parts, and load it by load_state_dict(safetensors.torch.load_file(FILE)); see the guide on detection"
        )
    if not isinstance(saved.task, Classification):
        raise Mismatch(
            f"torchvision has no network with the head of a {type(saved.task).__name__.lower()}; export the program "
            "(--format onnx, torch-export or torchscript), or the network without its head: --encoder "
            "RUN/model.safetensors --format torchvision"
        )
    builder, weights = to_classifier(saved.module, len(saved.targets["classes"]))
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_atomically(output, lambda file: file.write(buffer.getvalue()))
    mean, std = ([round(value, 4) for value in values] for values in (saved.view.mean, saved.view.std))
    return (
        f"network = torchvision.models.{builder}(num_classes={len(saved.targets['classes'])})\n"
        f'network.load_state_dict(torch.load("{output}"))  # images are normalized by mean {mean}, std {std}'
    )


def to_classifier(module: nn.Module, classes: int) -> tuple[str, dict[str, Tensor]]:
    """Return the builder of torchvision's network that a classifier is, and its weights there, all of them.

    Raises:
        Mismatch: if there is none.
    """
    aside: set[str] = set()
    if isinstance(module, PooledNetwork):
        body = module.encoder
        aside = {f"encoder.{name}" for name in module._backbone.unreached_tensors()}
    else:
        body = copied(module)
        reset: Any = getattr(body, "reset_classifier", None)
        if reset is None:
            raise Mismatch(f"{type(module).__name__} is not a network of timm's or torchvision's")
        reset(0)
    with eval_mode(body):
        builder = to_torchvision(body).builder
    other = torchvision.models.get_model(builder, weights=None, num_classes=classes).eval()
    weights = counterpart_weights(module, other, aside)
    if missing := sorted(other.state_dict().keys() - weights.keys()):
        raise Mismatch(f"torchvision's {builder} has a tensor {missing[0]} that the model has not")
    return builder, weights
