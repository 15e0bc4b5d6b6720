"""Pretrain a network in a training loop of your own.

    python examples/pretrain.py FOLDER --model resnet18 --image-size 96 --epochs 10 --output encoder.safetensors

`sparkmim pretrain` does more: recipes, resuming, several devices, a report. This is the method alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import sparkmim

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png"}


class Images(Dataset[torch.Tensor]):
    """All images below a folder, as random crops."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        crop = v2.RandomResizedCrop(size, scale=(0.67, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.view = v2.Compose([crop, v2.RandomHorizontalFlip(), *to_tensor])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.view(Image.open(self.paths[index]).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet18", help="name of a timm network")
    parser.add_argument("--image-size", type=int, default=96, help="a multiple of the network's total stride")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decoder-width", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("encoder.safetensors"))
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = sparkmim.SparK(args.model, decoder_width=args.decoder_width).to(device)
    images = Images(args.folder, args.image_size)
    loader = DataLoader(images, args.batch_size, shuffle=True, drop_last=True)
    if not len(loader):
        parser.error(f"{args.folder} holds {len(images)} images, fewer than --batch-size {args.batch_size}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.epochs * len(loader), pct_start=0.1)

    for epoch in range(args.epochs):
        for images in loader:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = model(images.to(device)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss of the last step {loss.item():.4f}")

    safetensors.torch.save_file(model.encoder.state_dict(), args.output)  # the network's own keys
    print(f"encoder: {args.output}")


if __name__ == "__main__":
    main()
