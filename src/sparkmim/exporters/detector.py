"""A fine-tuned detector as a program: ONNX and TorchScript, for one image at a time, verified against the detector."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transfer.detection.network import LEAST_SCORE
from ..transfer.model_file import SavedModel
from .equivalence import Mismatch
from .program import INPUT, METADATA, Program, failure, onnx_content, quiet

OUTPUTS = ("boxes", "labels", "scores", "masks")
"""What a program returns; masks of Mask R-CNN alone."""

THRESHOLD = "min_score"
"""Second input: the least score of a detection."""

THRESHOLDS = (0.0, LEAST_SCORE)
"""With which a program is compared: at 0 any image shows as many objects as a detector returns."""

EDGE, SCORE = 1e-4, 1e-4
"""Largest deviation of edges, of the view's longer side, and of scores and masks: float32 in other orders."""

UNMATCHED = 0.02
"""Share of the detections that may have no counterpart: where scores or overlaps are equal, rounding decides which box
is suppressed."""


class DetectorProgram(Program):
    """A detector with the normalization of its input in front, whose least score is an input."""

    def forward(self, images: Tensor, min_score: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return boxes `(D, 4)`, labels `(D,)` from 1, scores `(D,)` and, of Mask R-CNN, masks `(D, 1, 28, 28)`.

        Args:
            images: one image `(1, C, H, W)`, from 0 to 1 as means and deviations are.
            min_score: least score, `()`.
        """
        detector: Any = self.model
        holder = detector.roi_heads if hasattr(detector, "roi_heads") else detector
        before, holder.score_thresh = holder.score_thresh, min_score
        try:
            found = detector.detect((images - self.mean) / self.std)[0]
        finally:
            holder.score_thresh = before
        kept = found["labels"] > 0  # detectors of one stage have an output for the background, which is never trained
        return tuple(found[name][kept] for name in OUTPUTS if name in found)


def detector_program(saved: SavedModel, format: str, known: dict[str, Any]) -> bytes:
    """Return the file of a detector's program.

    Args:
        saved: the detector.
        format: onnx or torchscript.
        known: what the file tells of its input and classes.

    Raises:
        ValueError: if a package is missing.
        Mismatch: for torch.export, or if the detector cannot be exported, or computes something else there.
    """
    if format == "torch-export":
        raise Mismatch(
            "torch.export does not follow the suppression of overlapping boxes, whose number depends on the image; use "
            "--format onnx or torchscript"
        )
    program = DetectorProgram(saved.module, saved.view).eval()
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    shape = (saved.in_chans, *saved.view.image_size)
    return {"onnx": _onnx, "torchscript": _script}[format](program, shape, known)


def examples(shape: Sequence[int]) -> list[Tensor]:
    """Return images `(1, *shape)` from 0 to 1: noise of pixels, and of coarse and fine spots."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, *shape, generator=generator)]
    for parts in (8, 24):
        coarse = torch.rand(1, shape[0], parts, parts, generator=generator)
        images.append(F.interpolate(coarse, tuple(shape[1:]), mode="bilinear"))
    return images


def _onnx(program: DetectorProgram, shape: Sequence[int], known: dict[str, Any]) -> bytes:
    image = examples(shape)[0]

    def write(path: Path) -> None:
        names = _names(program, image)
        torch.onnx.export(
            program,
            (image, torch.tensor(LEAST_SCORE)),
            path,
            dynamo=False,  # torch.export does not follow detectors
            opset_version=17,
            input_names=[INPUT, THRESHOLD],
            output_names=names,
            dynamic_axes={name: {0: "detections"} for name in names},
        )

    content, session = onnx_content(write, known)

    def run(images: Tensor, least: Tensor) -> list[Tensor]:
        given = {INPUT: images.numpy(), THRESHOLD: least.numpy()}
        return [torch.from_numpy(part) for part in session.run(None, given)]

    verify(program, run, shape, "onnxruntime")
    return content


def _script(program: DetectorProgram, shape: Sequence[int], known: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        try:
            given = (examples(shape)[0], torch.tensor(LEAST_SCORE))
            traced = torch.jit.trace(program, given, check_trace=False)
            torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(known)})
        except Exception as error:  # torch raises many kinds
            raise Mismatch(f"it cannot be traced as TorchScript ({failure(error)})") from error
        verify(program, torch.jit.load(io.BytesIO(buffer.getvalue())), shape, "TorchScript")
    return buffer.getvalue()


def _names(program: nn.Module, image: Tensor) -> list[str]:
    """Return the names of a program's outputs.

    Raises:
        Mismatch: if it does not run.
    """
    try:
        with torch.no_grad():
            found = program(image, torch.tensor(0.0))
    except Exception as error:  # of any kind: a network of one's own may do anything
        raise Mismatch(f"the detector does not run on one image ({failure(error)})") from error
    return list(OUTPUTS[: len(found)])


def verify(
    program: nn.Module, other: Callable[[Tensor, Tensor], Sequence[Tensor]], shape: Sequence[int], where: str
) -> None:
    """Verify that a program finds what the detector finds, on several images.

    Raises:
        Mismatch: if not.
    """
    for images in examples(shape):
        for threshold in THRESHOLDS:
            least = torch.tensor(threshold)
            with torch.no_grad():
                wanted, found = program(images, least), other(images, least)
            lost, total = unmatched(wanted, found, max(shape[1:])), max(len(wanted[0]), len(found[0]))
            if lost > UNMATCHED * total:
                raise Mismatch(f"{where} finds something else: {lost} of {total} detections without a counterpart")


def unmatched(wanted: Sequence[Tensor], found: Sequence[Tensor], side: int) -> int:
    """Return how many of the detections of one of two lists have no counterpart in the other.

    Detections of the lowest score of either list count as matched: of equal ones, rounding decides which are returned.

    Args:
        wanted: boxes, labels, scores and, optionally, masks.
        found: likewise.
        side: longer side of the view, in pixels.
    """
    edges = torch.cdist(wanted[0].double(), found[0].double(), p=float("inf")) if len(found[0]) else None
    if edges is None or not len(wanted[0]):
        return max(len(wanted[0]), len(found[0]))
    scores = (wanted[2][:, None] - found[2]).abs()
    alike = (edges <= EDGE * side) & (scores <= SCORE) & (wanted[1][:, None] == found[1])
    if len(wanted) > 3:
        alike &= torch.cdist(wanted[3].flatten(1), found[3].flatten(1), p=float("inf")) <= 10 * SCORE
    full = len(wanted[0]) == len(found[0])
    lowest = max(float(wanted[2].min()), float(found[2].min())) + SCORE if full else -1.0
    free = [~alike.any(1) & (wanted[2] > lowest), ~alike.any(0) & (found[2] > lowest)]
    return max(int(part.sum()) for part in free)
