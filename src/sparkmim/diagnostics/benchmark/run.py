"""Measure the training step: throughput, time by part, memory and arithmetic, for three executions."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from ...data.config import DataConfig
from ...data.decoding.encoded import UnreadableImage
from ...data.loader import MaskedViews
from ...data.sources.address import open_source
from ...data.statistics import first_readable
from ...data.views import training_view
from ...models.config import Execution, ModelConfig
from ...models.factory import code_of, load_backbone
from ...models.spark import SparK
from ...training.config import Device, LoopConfig, Precision
from ...utils.devices import measured_algorithms, pick_device
from ...utils.fields import validate_as
from ...utils.text import counted
from .machine import describe, peak_flops
from .measure import forward_flops, peak_bytes, seconds
from .step import DTYPES, Step

EXECUTIONS: dict[Execution, str] = {
    "packed": "packed",
    "masked-dense": "masked-dense",
    "zero-out": "plain dense (zero-out)",
}
"""The executions compared, with their labels; the ordinary dense network is the one that sees images with holes."""

TRAINING = 3
"""Arithmetic of a step divided by that of its forward pass: backward computes gradients of input and weight."""


class Measured(NamedTuple):
    """Measurements of one execution.

    Attributes:
        step: median seconds of a step.
        parts: median seconds of each part, computed alone; parts shared by all executions are those of the first.
        peak: peak memory in bytes, beyond model and images; None where unknown.
        flops: arithmetic of forward and backward.
    """

    step: float
    parts: dict[str, float]
    peak: int | None
    flops: int


class Benchmark(NamedTuple):
    """Measurements of all executions.

    Attributes:
        settings: what was measured, in words.
        machine: where it was measured, in words.
        measured: measurements by execution.
        reading: seconds in which one process reads the images of a step.
        batch_size: images of a step.
        peak: operations per second of a large matrix product on this machine.
    """

    settings: str
    machine: str
    measured: dict[Execution, Measured]
    reading: float
    batch_size: int
    peak: float

    def __str__(self) -> str:
        return f"{self.settings}\n\n{self.machine}\n\n{self.table()}"

    def table(self) -> str:
        """Return a Markdown table with a row for each execution."""
        names = list(next(iter(self.measured.values())).parts)
        head = ["execution", "images/s", "s a step", *(f"{name}, s" for name in names)]
        head += ["peak memory", "arithmetic", "of the peak"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for execution, m in self.measured.items():
            row = [EXECUTIONS[execution], f"{self.batch_size / m.step:.3g}", f"{m.step:.3g}"]
            row += [f"{m.parts[name]:.3g}" for name in names]
            row += ["-" if m.peak is None else f"{m.peak / 2**20:.0f} MiB", f"{m.flops / 1e9:.3g} GFLOP"]
            lines.append(f"| {' | '.join([*row, f'{m.flops / m.step / self.peak:.0%}'])} |")
        return "\n".join(
            [
                *lines,
                "",
                f"One process reads the images of a step in {self.reading:.3g} s. The peak is the speed of a large "
                f"matrix product on this machine, {self.peak / 1e12:.3g} TFLOP/s. Parts are forward and backward, each "
                f"computed alone. Arithmetic is three times that of convolutions and products in the forward pass.",
            ]
        )


def benchmark(
    model: str = "resnet50",
    data: str | Path | None = None,
    *,
    image_size: int = 224,
    in_chans: int | None = None,
    batch_size: int = 8,
    precision: Precision = "32",
    compile: bool = False,
    mask_ratio: float = 0.6,
    decoder_width: int = 768,
    device: Device = "auto",
    rounds: int = 5,
) -> Benchmark:
    """Measure the training step of a network in alternating rounds of all executions.

    Args:
        model: a timm name, or `FILE.py:FUNCTION`.
        data: folder or address of images, to measure reading; the built-in photographs, in memory, by default.
        image_size: side of the square view in pixels.
        in_chans: channels of the images; 3 by default, or those of a Backbone.
        batch_size: images of a step.
        precision: 32, bf16-mixed or 16-mixed.
        compile: compile the model with torch.compile, except for masked-dense, which cannot be compiled.
        mask_ratio: share of patches to hide.
        decoder_width: channels of the decoder at the lowest resolution.
        device: where to compute.
        rounds: steps of each execution to time; the median is reported.

    Raises:
        ValueError: for an invalid setting, an unknown network, or unreadable images.
    """
    validate_as(LoopConfig, batch_size=batch_size)
    validate_as(ModelConfig, mask_ratio=mask_ratio, decoder_width=decoder_width)
    if rounds < 1 or image_size < 1:
        raise ValueError(f"--rounds {rounds} and --image-size {image_size} must be at least 1")
    where = pick_device(device)
    torch.manual_seed(0)
    with code_of(model):
        backbone = load_backbone(model, in_chans=in_chans)
    first_readable(open_source(data), backbone.in_chans)
    network = SparK(backbone, mask_ratio=mask_ratio, decoder_width=decoder_width).to(where).train()
    grid = network.grid_shape((image_size, image_size))
    reading = _time_to_read(data, network, (image_size, image_size), grid) * batch_size
    images = torch.randn(batch_size, network.backbone.in_chans, image_size, image_size, device=where)
    steps: dict[Execution, Step] = {}
    for execution in EXECUTIONS:
        first = steps.get("packed")
        steps[execution] = Step(network, execution, images, precision, compile=compile, like=first)
    with measured_algorithms(True):  # as training does
        measured = _measure(steps, where, rounds)
    compiled = ", compiled (except masked-dense)" if compile else ""
    settings = (
        f"{model}, {image_size} x {image_size} pixels, {counted(backbone.in_chans, 'channel')}, batch {batch_size}, "
        f"{mask_ratio:.0%} hidden, decoder width {decoder_width}, {precision}{compiled}, {where.type}; medians of "
        f"{rounds} alternating rounds; {datetime.date.today()}"
    )
    return Benchmark(settings, describe(where), measured, reading, batch_size, peak_flops(where, DTYPES[precision]))


def _time_to_read(data: str | Path | None, model: SparK, size: tuple[int, int], grid: tuple[int, ...]) -> float:
    """Return the median seconds in which one process decodes and crops an image, of up to 64 images."""
    source = open_source(data)
    channels = model.backbone.in_chans
    config = DataConfig(image_size=size, mean=(0.0,) * channels, std=(1.0,) * channels)
    views = MaskedViews(source, training_view(config), channels, grid, model.mask_ratio, seed=0)
    times = []
    try:
        views[0, 0]
        if data is None:
            for index in range(len(views)):  # these are decoded once and stay in memory
                views[0, index]
        for index in range(min(64, len(views))):
            start = time.perf_counter()
            views[1, index]
            times.append(time.perf_counter() - start)
    except UnreadableImage as error:
        raise ValueError(f"--data {data}: too many of its images cannot be read; {error}") from error
    return median(times)


def _measure(steps: dict[Execution, Step], device: torch.device, rounds: int) -> dict[Execution, Measured]:
    """Time the steps and their parts in alternating rounds."""
    flops = {execution: TRAINING * forward_flops(step.eager_forward) for execution, step in steps.items()}
    for step in steps.values():
        step.train()  # compiles, and selects kernels
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
                parts[execution].setdefault("optimizer", []).append(seconds(step.update, device))
    shared = {name: median(times) for name, times in parts[first].items()}
    for step in steps.values():
        step.optimizer.zero_grad()  # gradients left by parts would count as memory in use before
    return {
        execution: Measured(
            median(whole[execution]),
            {**shared, **{name: median(times) for name, times in parts[execution].items()}},
            peak_bytes(step.train, device),
            flops[execution],
        )
        for execution, step in steps.items()
    }
