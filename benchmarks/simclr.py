"""A contrastive baseline: SimCLR (Chen et al. 2020) with the loss, projection head and views of lightly.

    python benchmarks/simclr.py --lightly DIR --data FOLDER --output RUN [--model resnet18] [--epochs 100]

lightly is not among the project's dependencies; `--lightly` is a folder with it (`pip install --target DIR --no-deps
lightly`). An epoch shows every image twice. What is left in RUN is an `encoder.safetensors` that every command of
sparkmim takes, and `metrics.jsonl`; the same command continues after the last whole epoch. bf16 where it is native.

The learning rate falls along a cosine after a warm-up of a twentieth. Of the settings tried on 3,068 photographs the
defaults are the best by k-NN (docs/results/clothing.md); lightly's examples have SGD, 0.06 for 256 images, temperature
0.5.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.data.sources.folder import find_images
from sparkmim.training.recipes import native_precision
from sparkmim.utils.devices import pick_device
from sparkmim.utils.io import write_atomically


class TwoViews(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, folder: Path, size: int) -> None:
        from lightly.transforms import SimCLRTransform

        self.source = find_images(folder)
        self.views = SimCLRTransform(input_size=size)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.source.root / self.source.name(index)) as file:
            one, other = self.views(file.convert("RGB"))
        return one, other


def train(
    data: Path,
    output: Path,
    *,
    lightly: Path,
    model: str,
    image_size: int,
    epochs: float,
    batch_size: int = 64,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    temperature: float = 0.1,
    seed: int = 0,
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Train from the last whole epoch on."""
    sys.path.append(str(lightly))
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    if (output / "encoder.safetensors").exists():
        return
    output.mkdir(parents=True, exist_ok=True)
    where = pick_device(device)
    mixed = native_precision(where) == "bf16-mixed"
    state_file, metrics = output / "state.pt", output / "metrics.jsonl"
    torch.manual_seed(seed)
    encoder = timm.create_model(model, num_classes=0)
    head = SimCLRProjectionHead(encoder.num_features, encoder.num_features, 128)
    network = nn.Sequential(encoder, head).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = NTXentLoss(temperature=temperature)
    updates = create_optimizer_v2(network, optimizer, lr, weight_decay)
    views = TwoViews(data, image_size)
    batch_size = min(batch_size, len(views))
    steps = max(1, round(epochs * len(views) / batch_size))
    step = 0
    lines: list[dict[str, Any]] = []
    if state_file.exists():
        state = torch.load(state_file, map_location=where, weights_only=True)
        network.load_state_dict(state["network"])
        updates.load_state_dict(state["optimizer"])
        step, lines = state["step"], state["lines"]
    while step < steps:
        torch.manual_seed(seed * 1_000_003 + step)  # an epoch's views do not depend on where a run was continued
        loader = DataLoader(views, batch_size, shuffle=True, drop_last=True, num_workers=workers)
        start, first, total = time.monotonic(), step, 0.0
        for pair in loader:
            if step == steps:
                break
            share = step / steps
            rate = lr * (share * 20 if share < 0.05 else 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95)))
            for group in updates.param_groups:
                group["lr"] = rate
            with torch.autocast(where.type, torch.bfloat16, enabled=mixed):
                both = network(torch.cat(pair).to(where, memory_format=torch.channels_last))
            loss = criterion(*both.float().chunk(2))
            updates.zero_grad()
            loss.backward()
            updates.step()
            total += loss.item()
            step += 1
        images = (step - first) * batch_size
        line = {
            "step": step,
            "epoch": round(step * batch_size / len(views), 4),
            "loss": total / (step - first),
            "images_per_second": images / (time.monotonic() - start),
        }
        lines.append(line)
        print(f"SimCLR step {step} of {steps}: loss {line['loss']:.4f}", flush=True)
        state = {"network": network.state_dict(), "optimizer": updates.state_dict(), "step": step, "lines": lines}
        write_atomically(state_file, lambda file, state=state: torch.save(state, file))  # type: ignore[misc]
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    described = {
        "model": model,
        "stages": [],
        "in_chans": 3,
        "image_size": [image_size, image_size],
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "step": step,
    }
    save_encoder(encoder.cpu(), output / "encoder.safetensors", {"sparkmim": json.dumps(described)})
    state_file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("lightly", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    for name, kind, default in (
        ("image-size", int, 96),
        ("epochs", float, 100.0),
        ("batch-size", int, 64),
        ("optimizer", str, "adamw"),
        ("lr", float, 1e-3),
        ("weight-decay", float, 1e-4),
        ("temperature", float, 0.1),
        ("seed", int, 0),
        ("workers", int, 1),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
