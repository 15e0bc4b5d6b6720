"""`sparkmim benchmark`: what a training step costs on this machine, and on what."""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch

from ..data.config import DataConfig
from ..data.loader import MaskedViews
from ..data.sources.builtin import builtin_photographs
from ..data.sources.folder import find_images
from ..data.views import training_view
from ..diagnostics.benchmark.machine import describe, peak_flops
from ..diagnostics.benchmark.measure import forward_flops, peak_bytes, seconds
from ..diagnostics.benchmark.step import DTYPES, Step
from ..models.config import Execution, ModelConfig
from ..models.factory import code_of, load_backbone
from ..models.spark import SparK
from ..training.config import LoopConfig, Precision
from ..utils.devices import pick_device
from ..utils.fields import validate_as
from ..utils.io import require_writable, write_text

EXECUTIONS: dict[Execution, str] = {
    "packed": "packed",
    "masked-dense": "masked-dense",
    "zero-out": "plain dense (zero-out)",
}
"""What is compared, and what to call it: the ordinary dense network is the one that sees images with holes."""

TRAINING = 3
"""Arithmetic of a step by that of its forward pass: backward takes a gradient for the input and one for the weight."""


class Measured(NamedTuple):
    """One execution's step.

    Attributes:
        step: median seconds of a whole one.
        parts: median seconds of each part, computed alone; those that all executions share, of the first.
        peak: bytes of memory that it takes at most, beyond model and images; None where unknown.
        flops: of forward and backward.
    """

    step: float
    parts: dict[str, float]
    peak: int | None
    flops: int


def benchmark(
    model: str = "resnet50",
    data: Path | None = None,
    image_size: int = 224,
    batch_size: int = 8,
    precision: Precision = "32",
    compile: Literal["on", "off"] = "off",
    mask_ratio: float = 0.6,
    decoder_width: int = 768,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    rounds: int = 5,
    output: Path | None = None,
) -> int:
    """Measure the training step: images a second, where its time goes, memory, and how much of the machine it uses.

    Three executions take turns: packed (visible patches alone), masked-dense (the same numbers, computed on whole
    images), and the ordinary dense network on images with holes.

    Args:
        model: a timm name, or FILE.py:FUNCTION.
        data: folder of images, for the time to read them; the built-in photographs, in memory, if not given.
        image_size: pixels of the square view.
        batch_size: images of a step.
        precision: 32, bf16-mixed or 16-mixed.
        compile: compile the model with torch.compile; the masked-dense reference cannot be, and is not.
        mask_ratio: share of patches to hide.
        decoder_width: channels of the decoder at the deepest scale.
        device: where to compute.
        rounds: steps of each execution to time, of which the median is told.
        output: Markdown file for the table.
    """
    validate_as(LoopConfig, batch_size=batch_size)
    validate_as(ModelConfig, mask_ratio=mask_ratio, decoder_width=decoder_width)
    if rounds < 1 or image_size < 1:
        raise ValueError(f"--rounds {rounds} and --image-size {image_size} must be at least 1")
    if output is not None:
        if output.suffix != ".md":
            raise ValueError(f"--output {output} is a Markdown file; write {output.with_suffix('.md')}")
        require_writable(output)
    where = pick_device(device)
    torch.manual_seed(0)
    with code_of(model):
        backbone = load_backbone(model)
    network = SparK(backbone, mask_ratio=mask_ratio, decoder_width=decoder_width).to(where).train()
    grid = network.grid_shape((image_size, image_size))
    reading = time_to_read(data, network, (image_size, image_size), grid) * batch_size
    images = torch.randn(batch_size, network.backbone.in_chans, image_size, image_size, device=where)
    steps: dict[Execution, Step] = {}
    for execution in EXECUTIONS:
        first = steps.get("packed")
        steps[execution] = Step(network, execution, images, precision, compile=compile == "on", like=first)
    measured = measure(steps, where, rounds)
    peak = peak_flops(where, DTYPES[precision])
    compiled = ", compiled (not masked-dense)" if compile == "on" else ""
    about = (
        f"{model}, {image_size} x {image_size} pixels, batch {batch_size}, {mask_ratio:.0%} hidden, decoder width "
        f"{decoder_width}, {precision}{compiled}, {where.type}; medians of {rounds} rounds in turn; "
        f"{datetime.date.today()}"
    )
    text = f"{about}\n\n{describe(where)}\n\n{table(measured, reading, batch_size, peak)}"
    print(text)
    if output is not None:
        command = shlex.join(["sparkmim", *sys.argv[1:]])
        write_text(output, f"# Training step\n\n`{command}`\n\n{text}\n")
        print(f"\ntable: {output}")
    return 0


def time_to_read(data: Path | None, model: SparK, size: tuple[int, int], grid: tuple[int, ...]) -> float:
    """Seconds in which one process reads an image, decoded and cut; the median of up to 64."""
    source = builtin_photographs() if data is None else find_images(data)
    channels = model.backbone.in_chans
    config = DataConfig(image_size=size, mean=(0.0,) * channels, std=(1.0,) * channels)
    views = MaskedViews(source, training_view(config), channels, grid, model.mask_ratio, seed=0)
    views[0, 0]
    if data is None:
        for index in range(len(views)):  # decoded once
            views[0, index]
    times = []
    for index in range(min(64, len(views))):
        start = time.perf_counter()
        views[1, index]
        times.append(time.perf_counter() - start)
    return median(times)


def measure(steps: dict[Execution, Step], device: torch.device, rounds: int) -> dict[Execution, Measured]:
    """Time the steps and their parts, in turn."""
    flops = {execution: TRAINING * forward_flops(step.eager_forward) for execution, step in steps.items()}
    for step in steps.values():
        step.train()  # compiles, and chooses kernels
        step.train()
        for part in step.parts.values():
            part.run()
    whole: dict[Execution, list[float]] = {execution: [] for execution in steps}
    parts: dict[Execution, dict[str, list[float]]] = {execution: {} for execution in steps}
    first = next(iter(steps))
    for _ in range(rounds):
        for execution, step in steps.items():
            whole[execution].append(seconds(step.train, device))
            for name, part in step.parts.items():
                parts[execution].setdefault(name, []).append(seconds(part.run, device))
            if execution == first:  # after its parts have left gradients
                parts[execution].setdefault("optimiser", []).append(seconds(step.update, device))
    shared = {name: median(times) for name, times in parts[first].items()}
    for step in steps.values():
        step.optimizer.zero_grad()  # what parts have left would count as in use before
    return {
        execution: Measured(
            median(whole[execution]),
            {**shared, **{name: median(times) for name, times in parts[execution].items()}},
            peak_bytes(step.train, device),
            flops[execution],
        )
        for execution, step in steps.items()
    }


def table(measured: dict[Execution, Measured], reading: float, batch_size: int, peak: float) -> str:
    """The numbers in Markdown, an execution a row."""
    names = list(next(iter(measured.values())).parts)
    head = ["execution", "images/s", "s a step", *(f"{name}, s" for name in names)]
    head += ["peak memory", "arithmetic", "of the peak"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for execution, m in measured.items():
        row = [EXECUTIONS[execution], f"{batch_size / m.step:.3g}", f"{m.step:.3g}"]
        row += [f"{m.parts[name]:.3g}" for name in names]
        row += ["-" if m.peak is None else f"{m.peak / 2**20:.0f} MiB", f"{m.flops / 1e9:.3g} GFLOP"]
        lines.append(f"| {' | '.join([*row, f'{m.flops / m.step / peak:.0%}'])} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Reading the images of a step takes one process {reading:.3g} s. A product of large matrices reaches "
            f"{peak / 1e12:.3g} TFLOP/s here, which is the peak. Parts are forward and backward, each computed alone. "
            f"Arithmetic is three times that of convolutions and products in the forward pass.",
        ]
    )
