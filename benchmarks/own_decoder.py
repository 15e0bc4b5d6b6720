"""Compare a step with the network's own decoder with that of nnssl's Spark3D: numbers, time and peak memory.

    git clone https://github.com/MIC-DKFZ/nnssl   # and pip install dynamic-network-architectures einops
    python benchmarks/own_decoder.py --nnssl nnssl --equality
    python benchmarks/own_decoder.py --nnssl nnssl --network resenc --mask-ratio 0.75

nnssl's network is built as its trainer does (`SparkTrainer.py`): the encoder's layers are exchanged for imitations
under a mask that is global, then `SparK3D`. Only its `architectures/spark_model.py` and `spark_utils.py` are imported.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import (  # type: ignore[import-untyped]
    PlainConvUNet,
    ResidualEncoderUNet,
)
from torch import Tensor, nn

from sparkmim import SparK, random_visible
from sparkmim.objectives.pixels import Pixels
from sparkmim.objectives.settings import PixelsSettings
from sparkmim.sparse import mask_at

WIDTHS = {"resenc": (32, 64, 128, 256, 320, 320), "plain": (32, 64, 128, 256, 320, 320), "small": (4, 8, 8, 16)}
BLOCKS = {"resenc": (1, 3, 4, 6, 6, 6), "plain": (2, 2, 2, 2, 2, 2), "small": (1, 1, 1, 1)}
CONTESTANTS = ("nnssl", "masked-dense", "packed")


def build(name: str, widths: tuple[int, ...], residual: bool) -> nn.Module:
    """Return a U-Net of nnU-Net's."""
    n = len(widths)
    common = {
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[3, 3, 3]] * n,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (n - 1),
        "num_classes": 1,
        "n_conv_per_stage_decoder": [1 if residual else 2] * (n - 1),
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    blocks = list(BLOCKS[name])
    if residual:
        return ResidualEncoderUNet(1, n, list(widths), n_blocks_per_stage=blocks, **common)
    return PlainConvUNet(1, n, list(widths), n_conv_per_stage=blocks, **common)


class Nnssl:
    """nnssl's model and step, on a copy of a network, with the weights of one of our models."""

    def __init__(self, folder: Path, network: nn.Module, ours: SparK) -> None:
        sys.path.insert(0, str(folder / "src"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nnssl.architectures import spark_model, spark_utils  # type: ignore[import-not-found]
        self.utils = spark_utils
        copied = copy.deepcopy(network)
        copied.encoder = spark_utils.convert_to_spark_cnn(copied.encoder)
        out = sys.stdout
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115  (it prints)
        self.model = spark_model.SparK3D(copied)
        sys.stdout = out
        parameter = next(network.parameters())
        self.model.to(parameter.dtype)
        with torch.no_grad():
            for i, densify in enumerate(reversed(ours.densify)):
                self.model.mask_tokens[i].copy_(densify.mask_token)
                self.model.densify_projs[i].load_state_dict(densify.proj.state_dict())
            head = copied.decoder.seg_layers[-1]
            head.load_state_dict(ours.decoder.proj.state_dict())

    def loss(self, images: Tensor, visible: Tensor, *, hide: bool = True) -> Tensor:
        """Return the loss of its trainer: the squared error over hidden voxels.

        Args:
            images: `(B, 1, D, H, W)`.
            visible: the mask.
            hide: set hidden voxels to zero first. nnssl does not: its stem sees those beside visible patches.
        """
        mask = visible.unsqueeze(1).to(images.dtype)
        self.utils._cur_active = mask
        shown = mask_at(visible, images.shape[2:]).unsqueeze(1)
        prediction = self.model(torch.where(shown, images, 0.0) if hide else images)
        return (prediction - images).square()[~shown].mean()

    def encode(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Return the encoder's maps."""
        self.utils._cur_active = visible.unsqueeze(1).to(images.dtype)
        return list(self.model.encoder(images))


def ours_of(network: nn.Module, patch: int, mask_ratio: float) -> SparK:
    objective = Pixels(PixelsSettings(normalize=False), in_chans=1, patch_size=(patch,) * 3)
    return SparK(network, decoder="own", in_chans=1, patch_size=patch, mask_ratio=mask_ratio, objective=objective)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(folder: Path, residual: bool, patch: int, size: int, coarse_hidden: bool) -> str:
    """Return a line of a table: the largest differences between nnssl's step and ours, in float64.

    Those of gradients are relative to the largest gradient. Where patches are smaller than the total stride, masks are
    alike unless a position of the deepest map holds hidden patches alone (`coarse_hidden`): nnssl takes all positions
    of such maps for visible.
    """
    torch.manual_seed(0)
    network = build("small", WIDTHS["small"], residual).double()
    ratio = 0.75 if coarse_hidden else 0.5
    ours = ours_of(network, patch, ratio).double()
    other = Nnssl(folder, network, ours)
    images = torch.randn(2, 1, size, size, size, dtype=torch.float64)
    grid = ours.grid_shape(images.shape[2:])
    total = ours.backbone.strides[-1][0]
    for seed in range(1000):
        visible = random_visible(2, grid, ratio, torch.Generator().manual_seed(seed))
        if patch >= total or bool(mask_at(visible, [size // total] * 3).all()) != coarse_hidden:
            break
    theirs = other.loss(images, visible)
    theirs.backward()
    leaky = other.loss(images, visible, hide=False)
    texts = []
    for execution in ("masked-dense", "packed"):
        ours.execution = execution
        ours.zero_grad()
        loss = ours(images, visible).loss
        loss.backward()
        worst, largest = 0.0, 0.0
        names = {f"encoder.{n}": n for n in gradients(ours.encoder)}
        mine, its = gradients(ours), gradients(other.model)
        compared = 0
        for name, plain in names.items():
            known = [f"architecture.{other_name}" for other_name in (plain, *_renamed(plain))]
            found = next((its[k] for k in known if k in its), None)
            if found is not None:
                compared += 1
                worst = max(worst, (mine[name] - found).abs().max().item())
                largest = max(largest, found.abs().max().item())
        assert compared == len(names), sorted(names)
        for i, densify in enumerate(reversed(ours.densify)):
            pairs = [(densify.mask_token, other.model.mask_tokens[i])]
            pairs += zip(densify.proj.parameters(), other.model.densify_projs[i].parameters(), strict=True)
            for ours_, its_ in pairs:
                if its_.grad is not None:  # nnssl has mask tokens where none is used
                    worst = max(worst, (ours_.grad - its_.grad).abs().max().item())
        texts.append(f"{abs(loss.item() - theirs.item()):.0e}, {worst / largest:.0e}")
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return (
        f"| {kind} | {total} | {patch} | {ratio:.0%} | {theirs.item():.6f} | {texts[0]} | {texts[1]} "
        f"| {leaky.item() - theirs.item():+.1e} |"
    )


def _renamed(name: str) -> list[str]:
    """Return how nnssl's copies of shared layers are called: those that compute are in `all_modules`."""
    parts = name.split(".")
    numbers = {"conv": 0, "norm": 1}
    found = []
    for i, part in enumerate(parts):
        if part in numbers and i > 0:
            for number in (numbers[part], numbers[part] + 1):
                found.append(".".join([*parts[:i], "all_modules", str(number), *parts[i + 1 :]]))
    return found


def equality(folder: Path) -> None:
    """Print the table of differences."""
    print(
        "| network | total stride | patch | hidden | loss | masked-dense: loss, gradients | packed | input not hidden |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for residual in (False, True):
        print(compare(folder, residual, 8, 32, True))
        print(compare(folder, residual, 4, 32, False))
        print(compare(folder, residual, 4, 32, True))


# --- time and memory --------------------------------------------------------------------------------------------------


def peak_mebibytes() -> float:
    """Return the process's peak of resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def steps(args: argparse.Namespace) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return what is timed, by contestant: the whole step, and the encoder forward and backward."""
    torch.manual_seed(0)
    widths = tuple(max(1, w // args.narrow) for w in WIDTHS[args.network])
    network = build(args.network, widths, args.network == "resenc")
    ours = ours_of(network, args.patch, args.mask_ratio)
    images = torch.randn(args.batch, 1, *[args.size] * 3)
    visible = random_visible(args.batch, ours.grid_shape(images.shape[2:]), args.mask_ratio)
    made: dict[str, dict[str, Callable[[], Any]]] = {}
    if "nnssl" in args.contestants:
        other = Nnssl(args.nnssl, network, ours)

        def its_step() -> None:
            other.model.zero_grad()
            other.loss(images, visible, hide=False).backward()

        def its_encoder() -> None:
            other.model.zero_grad()
            maps = other.encode(images, visible)
            torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])

        made["nnssl"] = {"step": its_step, "encoder": its_encoder}
    grid = ours.mask(images, visible)
    for execution in ("masked-dense", "packed"):
        if execution not in args.contestants:
            continue

        def our_step(execution: Any = execution) -> None:
            ours.execution = execution
            ours.zero_grad()
            ours(images, visible).loss.backward()

        def our_encoder(execution: Any = execution) -> None:
            ours.execution = execution
            ours.zero_grad()
            maps = ours.encode_visible(images, grid)
            torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])

        made[execution] = {"step": our_step, "encoder": our_encoder}
    return made


def timed(function: Callable[[], Any]) -> float:
    """Return the CPU time of a call: on one thread that of the clock, and less disturbed by other work."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(args: argparse.Namespace) -> None:
    """Time all contestants in turn, and measure each one's peak memory in a process of its own."""
    made = steps(args)
    seconds: dict[tuple[str, str], list[float]] = {}
    for round_ in range(args.rounds + 1):
        for part in ("step", "encoder"):
            for name, functions in made.items():
                taken = timed(functions[part])
                if round_:
                    seconds.setdefault((name, part), []).append(taken)
    print(f"{args.network}, widths / {args.narrow}, {args.size} voxels, batch {args.batch}, patches of {args.patch},")
    print(f"{args.mask_ratio:.0%} hidden, {torch.get_num_threads()} thread(s), torch {torch.__version__},")
    print("CPU time, medians and ranges; ratios are medians of those within each round")
    print(f"{platform.processor() or platform.machine()}, {args.rounds} rounds after one to warm up\n")
    print("| | encoder, s | of nnssl's | whole step, s | of nnssl's | peak memory above start, MiB | of nnssl's |")
    print("|---|---|---|---|---|---|---|")
    memory = {name: _memory_of(name) for name in made}
    for name in made:
        row = [name]
        for part in ("encoder", "step"):
            own = seconds[name, part]
            row.append(f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f})")
            base = seconds.get(("nnssl", part), own)
            row.append(f"{statistics.median(a / b for a, b in zip(own, base, strict=True)):.2f}")
        row += [f"{memory[name]:.0f}", f"{memory[name] / memory.get('nnssl', memory[name]):.2f}"]
        print(f"| {' | '.join(row)} |")


def _memory_of(name: str) -> float:
    """Return the peak memory of one contestant's step, above that before it, measured in a process of its own."""
    given = sys.argv[1:]
    out = subprocess.run(
        [sys.executable, __file__, *given, "--contestants", name, "--peak"], capture_output=True, text=True, check=True
    )
    return float(out.stdout.split()[-1])


def peak(args: argparse.Namespace) -> None:
    """Print how much one step adds to the process's peak memory."""
    (functions,) = steps(args).values()
    before = peak_mebibytes()
    for _ in range(2):
        functions["step"]()
    print(peak_mebibytes() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnssl", type=Path, required=True, help="a copy of nnssl's repository")
    parser.add_argument("--equality", action="store_true", help="compare numbers instead of measuring")
    parser.add_argument("--network", choices=("resenc", "plain", "small"), default="resenc")
    parser.add_argument("--narrow", type=int, default=1, help="divide all widths by this")
    parser.add_argument("--size", type=int, default=64, help="voxels along each axis")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--peak", action="store_true", help="print one contestant's peak memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.equality:
        equality(args.nnssl)
    elif args.peak:
        peak(args)
    else:
        measure(args)


if __name__ == "__main__":
    main()
