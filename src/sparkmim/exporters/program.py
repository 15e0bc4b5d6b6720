"""A fine-tuned model as a program: ONNX, `torch.export` and TorchScript, each verified against the model itself."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..data.config import ViewConfig
from .equivalence import Mismatch

TOLERANCE = 1e-4
"""Largest deviation of logits relative to the largest one: float32 in other orders of summation."""

BATCHES = (1, 3)
"""Numbers of images on which a program is compared."""

TRACED = 2
"""Images of the batch that a program is made with: sizes of 0 and 1 are taken for constants."""

INPUT, OUTPUT = "images", "logits"

METADATA = "sparkmim"
"""Key of what a program's file tells of its input and classes, as JSON."""

MISSING = "--format onnx needs the packages onnx, onnxscript and onnxruntime: pip install 'sparkmim[onnx]'"


class Program(nn.Module):
    """A model with the normalization of its input in front, so that a program takes images as they are.

    Args:
        model: the network, in evaluation mode.
        data: mean and deviation of the channels, and the size of images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, data: ViewConfig) -> None:
        super().__init__()
        self.model = model
        shape = (1, -1, *(1 for _ in data.image_size))
        self.register_buffer("mean", torch.tensor(data.mean).view(shape))
        self.register_buffer("std", torch.tensor(data.std).view(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of images `(B, C, *size)`, from 0 to 1 as means and deviations are."""
        out: Tensor = self.model((images - self.mean) / self.std)
        return out


def example(batch: int, channels: int, size: Sequence[int], seed: int = 0) -> Tensor:
    """Return random images from 0 to 1."""
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def require_logits(program: nn.Module, images: Tensor, task: str) -> None:
    """Raise unless a model takes a batch of images and returns one tensor.

    Raises:
        Mismatch: with what it does instead.
    """
    try:
        with torch.no_grad():
            out = program(images)
    except Exception as error:  # of any kind: the network of a task of one's own may take something else
        raise Mismatch(f"a model of the task {task} does not run on a batch of images ({failure(error)})") from error
    if not isinstance(out, Tensor):
        raise Mismatch(f"a model of the task {task} returns a {type(out).__name__}; programs return one tensor")


def onnx_program(program: nn.Module, images: Tensor, known: dict[str, Any]) -> bytes:
    """Return an ONNX model for any number of images, verified in onnxruntime.

    Raises:
        ValueError: if a package is missing.
        Mismatch: if the model cannot be exported, or computes something else there.
    """

    def write(path: Path) -> None:
        exported = torch.onnx.export(
            _exported(program, images),
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
        assert exported is not None
        exported.save(str(path), external_data=False)

    content, session = onnx_content(write, known, "onnxscript")
    _verify(program, lambda x: torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0]), images, "onnxruntime")
    return content


def onnx_content(write: Callable[[Path], None], known: dict[str, Any], *packages: str) -> tuple[bytes, Any]:
    """Return an ONNX model that tells of its input and classes, and a session of onnxruntime that runs it.

    Args:
        write: exports the model to a file.
        known: what it tells.
        packages: that exporting needs besides onnx and onnxruntime.

    Raises:
        ValueError: if a package is missing.
        Mismatch: if the model cannot be exported.
    """
    try:
        onnx, runtime, *_ = map(import_module, ("onnx", "onnxruntime", *packages))
    except ImportError as error:
        raise ValueError(f"{MISSING} ({error})") from error
    with quiet(), TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            write(path)
        except Mismatch:
            raise
        except Exception as error:  # of the exporter's own kinds
            raise Mismatch(f"it cannot be exported to ONNX ({failure(error)})") from error
        model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(known)
    content: bytes = model.SerializeToString()
    return content, runtime.InferenceSession(content, providers=["CPUExecutionProvider"])


def export_program(program: nn.Module, images: Tensor, known: dict[str, Any]) -> bytes:
    """Return a file for `torch.export.load`, for any number of images, verified.

    Raises:
        Mismatch: if the model cannot be exported, or computes something else there.
    """
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(_exported(program, images), buffer, extra_files={METADATA: json.dumps(known)})
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
        _verify(program, loaded, images, "torch.export")
    return buffer.getvalue()


def script_program(program: nn.Module, images: Tensor, known: dict[str, Any]) -> bytes:
    """Return a file for `torch.jit.load`, for any number of images, verified.

    Raises:
        Mismatch: if the model cannot be traced, or computes something else there.
    """
    buffer = io.BytesIO()
    with quiet():
        try:
            traced = torch.jit.trace(program, (images,), check_trace=False)
            torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(known)})
        except Exception as error:  # torch raises many kinds
            raise Mismatch(f"it cannot be traced as TorchScript ({failure(error)})") from error
        _verify(program, torch.jit.load(io.BytesIO(buffer.getvalue())), images, "TorchScript")
    return buffer.getvalue()


def _exported(program: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Return a program whose first axis is of any size."""
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(program, (images,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # torch raises many kinds
        raise Mismatch(f"torch.export cannot follow it ({failure(error)})") from error


def _verify(program: nn.Module, other: Callable[[Tensor], Tensor], images: Tensor, where: str) -> None:
    """Verify that a program computes what the model does, for several numbers of images.

    Raises:
        Mismatch: if not.
    """
    for batch in BATCHES:
        given = example(batch, images.shape[1], images.shape[2:], seed=batch)
        with torch.no_grad():
            wanted, found = program(given), other(given)
        if wanted.shape != found.shape:
            raise Mismatch(f"of {batch} images {where} returns {tuple(found.shape)} and not {tuple(wanted.shape)}")
        deviation = float((wanted - found).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not deviation <= TOLERANCE:
            raise Mismatch(f"{where} computes something else (by {deviation:.1e} of the largest logit)")


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what exporters say of their own ways."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def failure(error: Exception) -> str:
    """Return the kind and the beginning of an error, in one line."""
    return f"{type(error).__name__}: " + " ".join(str(error).split())[:300]
