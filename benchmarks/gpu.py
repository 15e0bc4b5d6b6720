"""Whole training steps on an accelerator: bf16 and compiled, beside the authors' code as released (float32, eager), the
masked dense reference in bf16 (eager: its shapes depend on data), and a masked autoencoder's step of a ViT-B; prints
Markdown tables. Networks with depthwise convolutions are run without the Triton kernels as well.

    python benchmarks/gpu.py --batch 128 --official ~/SparK --official-deps ~/old-timm
    python benchmarks/gpu.py --device cpu --size 64 --batch 2 --rounds 1 --models resnet18   (to try it)

Without `--official` the authors' code is left out. The floor of a step is the greater of two times: its arithmetic at
the speed of a product of large matrices, and the bytes kept for backward, written and read once, at that of a copy.
"""

from __future__ import annotations

import argparse
import datetime
import statistics

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sparkmim
from compare import Contestant, cpu_name
from contestant import settings
from sparkmim.diagnostics.benchmark.machine import peak_flops
from sparkmim.diagnostics.benchmark.measure import forward_flops, seconds
from sparkmim.diagnostics.benchmark.run import TRAINING


def main() -> None:
    parser = settings()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.set_defaults(device="cuda", batch=128, part="step", precision="bf16")
    parser.add_argument("--models", nargs="+", default=["resnet50", "convnext_base"])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    device = torch.device(args.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    peak, bandwidth = peak_flops(device, torch.bfloat16), copied_bytes(device)
    print(
        f"{args.size} x {args.size} pixels, batch {args.batch}, {datetime.date.today()}, {where}, torch "
        f"{torch.__version__}, {args.rounds} rounds in turn, medians; a product of large matrices in bf16 reaches "
        f"{peak / 1e12:.3g} TFLOP/s, a copy {bandwidth / 1e9:.0f} GB/s\n"
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for model in args.models:
        run(model, args, peak, bandwidth)


def run(model: str, args: argparse.Namespace, peak: float, bandwidth: float) -> None:
    """Return the table of a network."""
    shared = [f"--model={model}", "--part=step", f"--device={args.device}", f"--decoder-width={args.decoder_width}"]
    shared += [f"--batch={args.batch}", f"--size={args.size}", f"--ratio={args.ratio}"]
    specs = ["packed:--precision=bf16,--compile", "packed:--precision=bf16", "masked-dense:--precision=bf16"]
    if args.device == "cuda" and is_depthwise(model):
        specs.append("packed:--precision=bf16,--compile,--triton=off")
    specs += ["mae:--precision=bf16,--compile"]
    if args.official:
        specs.append("official:--precision=fp32")
        shared += [f"--official={args.official}", f"--official-deps={args.official_deps}"]
    contestants = [Contestant(spec, shared) for spec in specs]
    for _ in range(args.rounds):
        for contestant in contestants:
            contestant.times.append(contestant.ask("time"))
    ours = contestants[0]
    flops = arithmetic(model, args)
    compute, memory = flops / peak, 2 * contestants[1].bytes / bandwidth
    own = statistics.median(ours.times)
    print(f"**{model}**\n\n| step | ms | its time over the first's, pair by pair | peak memory |\n|---|---|---|---|")
    for c in contestants:
        ratio = statistics.median(other / mine for other, mine in zip(c.times, ours.times, strict=True))
        print(f"| {c.label} | {1e3 * statistics.median(c.times):.1f} | {ratio:.2f} | {c.peak / 2**20:.0f} MiB |")
    print(
        f"\nFloor of the first: {1e3 * compute:.2f} ms by arithmetic ({flops / 1e9:.0f} GFLOP), {1e3 * memory:.2f} ms "
        f"by bytes; it takes {own / max(compute, memory):.1f} times the greater.\n"
    )
    for contestant in contestants:
        contestant.process.kill()
        contestant.process.wait()


def is_depthwise(model: str) -> bool:
    """Return whether a network has convolutions that the Triton kernels compute."""
    convolutions = [m for m in sparkmim.Backbone.create(model).module.modules() if isinstance(m, torch.nn.Conv2d)]
    return any(1 < c.groups == c.in_channels == c.out_channels and c.stride == (1, 1) for c in convolutions)


def arithmetic(model: str, args: argparse.Namespace) -> float:
    """Return the operations of forward and backward."""
    network = sparkmim.SparK(model, mask_ratio=args.ratio, decoder_width=args.decoder_width).to(args.device).train()
    # Of the whole batch on its device, which decide how convolutions are computed; nothing is, here.
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(args.batch, network.backbone.in_chans, args.size, args.size, device=args.device)
        return float(TRAINING * forward_flops(lambda: network(images)))


def copied_bytes(device: torch.device) -> float:
    """Return bytes read and written per second by a copy."""
    a = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.nbytes / min(seconds(lambda: b.copy_(a), device) for _ in range(5))


if __name__ == "__main__":
    main()
