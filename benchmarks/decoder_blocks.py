"""Times the decoder alone, forward and backward: both kinds of block at several widths, in float32 and bf16, in turn;
prints a Markdown table. A second one says what computing the last blocks around hidden patches alone could save.

    python benchmarks/decoder_blocks.py [--batch 8] [--size 224] [--widths 768 512 384 256] [--rounds 7] [--device cpu]

The maps are those of a network of strides 4 to 32, as ResNet-50's, already densified. The first contestant is the
paper's decoder. Multiply-accumulates are those of the layers as they are written, of a forward pass of one image; the
paper's block fuses two of its layers where that saves arithmetic (`sparkmim/models/fused_upsample.py`).
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import nn

from compare import cpu_name
from sparkmim.diagnostics.benchmark.measure import peak_bytes, seconds
from sparkmim.models.config import DecoderBlock
from sparkmim.models.decoder import UNetDecoder, upsampling_steps
from sparkmim.models.masking import random_visible

PATCH = 32
STRIDES = [(32, 32), (16, 16), (8, 8), (4, 4)]
MASK_RATIO = 0.6
MASKS = 200


class Contestant(NamedTuple):
    """A decoder at a precision, and the seconds it took."""

    block: DecoderBlock
    width: int
    dtype: torch.dtype
    step: Callable[[], None]
    macs: int
    times: list[float]


def contestant(
    block: DecoderBlock, width: int, dtype: torch.dtype, batch: int, size: int, device: torch.device
) -> Contestant:
    """Build a decoder, with random maps and a random gradient of its prediction."""
    torch.manual_seed(0)
    decoder = UNetDecoder(upsampling_steps(STRIDES), width, block=block).to(device).train()
    maps = [
        torch.randn(batch, decoder.width_of(level), size // stride, size // stride, device=device)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for level, (stride, _) in enumerate(STRIDES)
    ]
    gradient = torch.randn(batch, 3, size, size, device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            prediction = decoder(maps)
        prediction.backward(gradient.to(prediction.dtype))
        decoder.zero_grad()
        for each in maps:
            each.grad = None

    return Contestant(block, width, dtype, step, macs(decoder, size // PATCH), [])


def peak(block: DecoderBlock, width: int, dtype: torch.dtype, given: argparse.Namespace) -> int | None:
    """Return the peak memory of a step; call it in a new process, which has freed none before."""
    device = torch.device(given.device)
    contestant(block, 32, dtype, 1, PATCH, device).step()  # what the first step of all loads
    return peak_bytes(contestant(block, width, dtype, given.batch, given.size, device).step, device)


def macs(decoder: UNetDecoder, side: int) -> int:
    """Return multiply-accumulates of a forward pass of one image whose deepest map has `side` x `side` positions."""
    total = 0
    for step, block in zip(decoder.steps, decoder.blocks, strict=True):
        fine = side * step.factor[0]
        for layer in block.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                positions = side if isinstance(layer, nn.ConvTranspose2d) else fine
                total += layer.weight.numel() * positions**2
        side = fine
    return total + decoder.proj.weight.numel() * side**2


class Reach(NamedTuple):
    """Arithmetic of a block of the paper's decoder, and the share of it that hidden pixels depend on."""

    work: float
    needed: float
    positions: tuple[float, float, float]  # the share of them needed of conv2's, conv1's and the upsampled map


def reach(size: int) -> list[Reach]:
    """Return what hidden pixels depend on in each of the paper's blocks, last block first: means over random masks.

    A position is needed if a hidden pixel lies within reach of the layers after it. The arithmetic of the backward pass
    has the same shares, as the gradients of other positions are zero.
    """
    grid = (size // PATCH, size // PATCH)
    visible = random_visible(MASKS, grid, MASK_RATIO, torch.Generator().manual_seed(0))
    needed = F.interpolate((~visible).float().unsqueeze(1), scale_factor=PATCH)
    found = []
    for _ in range(PATCH.bit_length() - 1):
        maps = [needed]
        for _ in ("conv2", "conv1"):
            maps.append(F.max_pool2d(maps[-1], 3, 1, 1))
        positions = [m.mean().item() for m in maps]
        # Products for a channel in and out at the higher resolution. Each block halves channels and doubles the
        # resolution, so all blocks cost the same.
        costs = (9 / 2, 9.0, 16 / 4)
        share = sum(cost * p for cost, p in zip(costs, positions, strict=True)) / sum(costs)
        found.append(Reach(1.0, share, (positions[0], positions[1], positions[2])))
        needed = F.max_pool2d(maps[-1], 4, 2, 1)  # inputs of a transposed convolution of kernel 4, stride 2, padding 1
    return found


def print_reach(size: int) -> None:
    """Print what the last blocks could save."""
    blocks = reach(size)
    print(f"\nComputing around hidden patches alone, the paper's block: {MASK_RATIO:.0%} hidden, {size // PATCH} x "
          f"{size // PATCH} patches of {PATCH}, {MASKS} masks\n")  # fmt: skip
    print("| from this block on | positions of it needed: conv2 | conv1 | upsampled | its arithmetic needed "
          f"| saved of the decoder, at most |\n{'|---' * 6}|")  # fmt: skip
    saved = 0.0
    for number, block in zip(range(len(blocks), 0, -1), blocks, strict=True):
        saved += block.work * (1 - block.needed) / sum(b.work for b in blocks)
        cells = [f"{share:.2f}" for share in (*block.positions, block.needed)]
        print(f"| {number} | {' | '.join(cells)} | {saved:.1%} |")
    print("\nBatch norm would take its statistics over the needed positions, which changes what is computed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 512, 384, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    contestants = [
        contestant(block, width, dtype, given.batch, given.size, device)
        for block in get_args(DecoderBlock)
        for width in given.widths
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for each in contestants:
        each.step()
    for _ in range(given.rounds):
        for each in contestants:
            each.times.append(seconds(each.step, device))
    where = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    print(f"batch {given.batch}, {given.size} px, {datetime.date.today()}, {where}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, {given.rounds} rounds in turn, medians\n")  # fmt: skip
    print(f"| block | width | GMAC | precision | seconds | its time over the first's, pair by pair | peak memory |\n"
          f"{'|---' * 7}|")  # fmt: skip
    first = contestants[0]
    for each in contestants:
        ratio = statistics.median(mine / other for mine, other in zip(each.times, first.times, strict=True))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            memory = process.submit(peak, each.block, each.width, each.dtype, given).result()
        cells = [each.block, str(each.width), f"{each.macs / 1e9:.2f}", str(each.dtype).removeprefix("torch.")]
        cells += [f"{statistics.median(each.times):.3f}", f"{ratio:.2f}", _mebibytes(memory)]
        print(f"| {' | '.join(cells)} |")
    print_reach(given.size)


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
