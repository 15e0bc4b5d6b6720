"""`sparkmim benchmark`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

from ..training.config import Device, Precision


def command(
    model: str = "resnet50",
    data: str | None = None,
    image_size: int = 224,
    in_chans: int | None = None,
    batch_size: int = 8,
    precision: Precision = "32",
    compile: Literal["on", "off"] = "off",
    mask_ratio: float = 0.6,
    decoder_width: int = 768,
    device: Device = "auto",
    rounds: int = 5,
    output: Path | None = None,
) -> int:
    """Measure the training step: images per second, time by part, memory, and share of the machine's peak.

    Three executions alternate: packed (visible patches only), masked-dense (the same numbers, computed on whole
    images), and the ordinary dense network on images with holes.

    Args:
        model: a timm name, or FILE.py:FUNCTION.
        data: folder or address of images, to measure reading; the built-in photographs, in memory, if not given.
        image_size: side of the square view in pixels.
        in_chans: channels of the images; 3 by default, or those of a sparkmim.Backbone.
        batch_size: images of a step.
        precision: 32, bf16-mixed or 16-mixed.
        compile: compile the model with torch.compile, except for masked-dense, which cannot be compiled.
        mask_ratio: share of patches to hide.
        decoder_width: channels of the decoder at the lowest resolution.
        device: where to compute.
        rounds: steps of each execution to time; the median is reported.
        output: Markdown file for the table.
    """
    from ..utils.io import require_suffix, require_writable, write_text

    if output is not None:
        require_suffix(output, ".md")
    from ..diagnostics.benchmark.run import benchmark

    if output is not None:
        require_writable(output)
    measured = benchmark(
        model,
        data,
        image_size=image_size,
        in_chans=in_chans,
        batch_size=batch_size,
        precision=precision,
        compile=compile == "on",
        mask_ratio=mask_ratio,
        decoder_width=decoder_width,
        device=device,
        rounds=rounds,
    )
    print(measured)
    if output is not None:
        command_line = shlex.join(["sparkmim", *sys.argv[1:]])
        write_text(output, f"# Training step\n\n`{command_line}`\n\n{measured}\n")
        print(f"\ntable: {output}")
    return 0
