"""One contestant of a comparison: builds a training step in its own process and times it when told to.

Started by `compare.py`; reads "time", "peak" or "bytes" from standard input and answers with one JSON line each.
A process of its own lets the official code run with the old timm it needs, beside ours with a current one.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], None]


def official(args: argparse.Namespace) -> Step:
    """Build the authors' code from `--official` (a checkout) and `--official-deps` (timm 0.5.4 and others)."""
    sys.path[:0] = [args.official_deps, os.path.join(args.official, "pretrain")]
    import encoder as official_encoder  # type: ignore[import-not-found]
    from decoder import LightDecoder  # type: ignore[import-not-found]
    from encoder import SparseEncoder
    from spark import SparK  # type: ignore[import-not-found]
    from timm import create_model

    import models  # noqa: F401 (registers its networks)

    kwargs: dict[str, Any] = {"sparse": True} if "convnext" in args.model else {}
    network = create_model(args.model, pretrained=False, num_classes=0, global_pool="", **kwargs)
    sparse = SparseEncoder(network, input_size=args.size)
    images, visible = inputs(args)
    if args.part == "encoder":
        big = visible.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1)
        masked = images * big

        def forward() -> list[Tensor]:
            official_encoder._cur_active = visible.unsqueeze(1)
            return sparse(masked)

        return encoder_step(forward, sparse, visible, args)
    norm = "ln" if "convnext" in args.model else "bn"
    model = SparK(
        sparse, LightDecoder(32, width=args.decoder_width, sbn=False), mask_ratio=args.ratio, densify_norm=norm
    )
    return training_step(lambda: model(images, visible.unsqueeze(1)), model, args)


def dense(args: argparse.Namespace) -> Step:
    """Build the ordinary network on whole images."""
    import sparkmim

    backbone = sparkmim.Backbone.create(args.model)
    images, visible = inputs(args)

    def forward() -> list[Tensor]:
        with autocast(args):
            return backbone(images)

    if args.compile:
        forward = torch.compile(forward, fullgraph=True)
    return encoder_step(forward, backbone.module, visible, args)


def ours(args: argparse.Namespace, execution: Any = "packed") -> Step:
    """Build sparkmim's model."""
    import sparkmim
    from sparkmim.models.compiled import check_compilable

    model = sparkmim.SparK(
        args.model,
        mask_ratio=args.ratio,
        patch_size=args.patch,
        decoder_width=args.decoder_width,
        execution=execution,
        triton=None if args.triton == "auto" else args.triton == "on",
    )
    images, visible = inputs(args)
    if args.part == "encoder":

        def forward() -> list[Tensor]:
            with autocast(args):
                return model.encode_visible(images, model.mask(images, visible))

        if args.compile:
            check_compilable(model, images)
            forward = torch.compile(forward, fullgraph=True)
        return encoder_step(forward, model.encoder, None, args)

    if args.compile:
        model.compile(fullgraph=True)

    def loss() -> Tensor:
        with autocast(args):
            return model(images, visible).loss

    return training_step(loss, model, args)


def masked_dense(args: argparse.Namespace) -> Step:
    """Build sparkmim's reference: the same numbers, computed on whole images."""
    return ours(args, "masked-dense")


def mae(args: argparse.Namespace) -> Step:
    """Build a masked autoencoder (He et al. 2022): ViT-B on a quarter of the patches, 8 decoder blocks of width 512."""
    from timm.models.vision_transformer import Block

    class MaskedAutoencoder(torch.nn.Module):
        def __init__(self, patch: int = 16, width: int = 768, heads: int = 12, depth: int = 12) -> None:
            super().__init__()
            self.patch, count = patch, (args.size // patch) ** 2
            self.keep = count // 4
            self.embed = torch.nn.Linear(3 * patch**2, width)
            self.place = torch.nn.Parameter(0.02 * torch.randn(1, count, width))
            self.encoder = torch.nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
            self.norm, self.project = torch.nn.LayerNorm(width), torch.nn.Linear(width, 512)
            self.token = torch.nn.Parameter(torch.zeros(1, 1, 512))
            self.decoder_place = torch.nn.Parameter(0.02 * torch.randn(1, count, 512))
            self.decoder = torch.nn.Sequential(*(Block(512, 16, qkv_bias=True) for _ in range(8)))
            self.head = torch.nn.Sequential(torch.nn.LayerNorm(512), torch.nn.Linear(512, 3 * patch**2))

        def forward(self, images: Tensor) -> Tensor:
            p = self.patch
            pixels = (
                images.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
            )
            order = torch.rand(pixels.shape[:2], device=images.device).argsort(1)
            shown, back = order[:, : self.keep, None], order.argsort(1)[..., None]
            x = (self.embed(pixels) + self.place).take_along_dim(shown, 1)
            x = self.project(self.norm(self.encoder(x)))
            tokens = self.token.to(x.dtype).expand(len(x), pixels.shape[1] - self.keep, -1)
            x = torch.cat([x, tokens], 1).take_along_dim(back, 1) + self.decoder_place
            target = (pixels - pixels.mean(2, keepdim=True)) / (pixels.var(2, keepdim=True) + 1e-6).sqrt()
            error = (self.head(self.decoder(x)).float() - target).square().mean(2)
            hidden = back[..., 0] >= self.keep
            return (error * hidden).sum() / hidden.sum()

    model = MaskedAutoencoder()
    images, _ = inputs(args)
    if args.compile:
        model.compile(fullgraph=True)

    def loss() -> Tensor:
        with autocast(args):
            return model(images)

    return training_step(loss, model, args)


def inputs(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return the same images and masks for every contestant."""
    generator = torch.Generator().manual_seed(0)
    side = args.size // args.patch
    keep = round(side * side * (1 - args.ratio))
    order = torch.rand(args.batch, side * side, generator=generator).argsort(1)[:, :keep]
    visible = torch.zeros(args.batch, side * side, dtype=torch.bool).scatter_(1, order, True).view(-1, side, side)
    images = torch.randn(args.batch, 3, args.size, args.size, generator=generator)
    return images.to(args.device), visible.to(args.device)


def autocast(args: argparse.Namespace) -> Any:
    return torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == "bf16")


def encoder_step(
    forward: Callable[[], list[Tensor]], network: torch.nn.Module, visible: Tensor | None, args: argparse.Namespace
) -> Step:
    """Return forward and backward of the encoder, from random gradients of its four maps (zero where hidden)."""
    network.to(args.device).train()
    gradients = []
    with torch.no_grad():
        for feature in forward():
            gradient = torch.randn_like(feature)
            if visible is not None:
                scale = feature.shape[-1] // visible.shape[-1]
                gradient *= visible.repeat_interleave(scale, 1).repeat_interleave(scale, 2).unsqueeze(1)
            gradients.append(gradient)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        torch.autograd.backward(list(forward()), gradients)

    return step


def training_step(loss: Callable[[], Tensor], model: torch.nn.Module, args: argparse.Namespace) -> Step:
    """Return forward and backward of the whole model (without optimizer, which is the same for all)."""
    model.to(args.device).train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    return step


def timed(step: Step, args: argparse.Namespace) -> float:
    if args.device == "cuda":
        step()  # takes memory again, which was given back for the other contestants
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(step: Step) -> int:
    """Return bytes of unique storages kept for backward, without parameters and inputs, which exist anyway.

    What checkpoints keep is not seen: those of the decoder keep a map each, so for a whole step look at the peak.
    """
    storages: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            storages[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(nbytes for nbytes, _ in storages.values())


def resident(which: str) -> int:
    """Return bytes of this process in memory, now ("VmRSS") or at most ("VmHWM")."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(which))


def peak_bytes(step: Step, idle: int, args: argparse.Namespace) -> int:
    """Return the peak memory of a step, beyond the process with its model and images."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - idle
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    step()
    return resident("VmHWM") - idle


def settings() -> argparse.ArgumentParser:
    """Return the options that contestants share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--part", choices=["encoder", "step"], default="encoder")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--decoder-width", type=int, default=768)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--triton", choices=["auto", "on", "off"], default="auto", help="our kernels for packed patches"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--official", help="checkout of the authors' code")
    parser.add_argument("--official-deps", help="folder with the old packages it needs")
    return parser


def main() -> None:
    parser = settings()
    parser.add_argument("contestant", choices=["official", "dense", "packed", "masked-dense", "mae"])
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the contestants print goes to standard error
    builds = {"official": official, "dense": dense, "packed": ours, "masked-dense": masked_dense, "mae": mae}
    build = builds[args.contestant]
    torch.manual_seed(0)
    step = build(args)
    idle = torch.cuda.memory_allocated() if args.device == "cuda" else resident("VmRSS")
    step()
    answers_to = {
        "time": lambda: timed(step, args),
        "peak": lambda: peak_bytes(step, idle, args),
        "bytes": lambda: saved_bytes(step),
    }
    for request in sys.stdin:
        gc.collect()
        answer = answers_to[request.strip()]()
        if args.device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
