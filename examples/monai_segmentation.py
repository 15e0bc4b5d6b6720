"""Train a segmentation network of MONAI from a pretrained encoder: `python examples/monai_segmentation.py --data FOLDER`.

The training loop is that of MONAI's tutorial on the spleen (`3d_segmentation/spleen_segmentation_3d.ipynb`): its
transforms, DiceCELoss, sliding windows for validation. What is added is one line that loads the encoder:

    sparkmim pretrain --data FOLDER/imagesTr --in-chans 1 --output runs/mine --model "monai:UNet(channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)"
    sparkmim export --encoder runs/mine --format monai --output mine.pth
    python examples/monai_segmentation.py --data FOLDER --weights mine.pth

FOLDER is a task of the Medical Segmentation Decathlon (with imagesTr and labelsTr), or any folder with `images` and
`labels` whose files have the same names. Needs `pip install monai nibabel`.
"""  # noqa: E501

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandShiftIntensityd,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism
from torch import nn

FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
KEYS = ("image", "label")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with imagesTr and labelsTr, or images and labels"
    )
    parser.add_argument(
        "--weights", type=Path, help="file of `sparkmim export --format monai`; random weights without it"
    )
    parser.add_argument("--train", type=int, default=10, help="labeled volumes to train on")
    parser.add_argument("--val", type=int, default=20, help="volumes to validate with")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--crop", type=int, default=32, help="voxels of a side of the crops; a multiple of the stride")
    parser.add_argument(
        "--spacing", type=float, nargs=3, default=(1.0, 1.0, 1.0), help="millimeters; as in pretraining"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def find_pairs(root: Path) -> list[dict[str, str]]:
    """Return images and label maps of the same name, in alphabetical order."""
    for images, labels in FOLDERS:
        if (root / images).is_dir():
            pairs = [(path, root / labels / path.name) for path in sorted((root / images).glob("[!.]*.nii*"))]
            missing = [str(label) for _, label in pairs if not label.is_file()]
            if missing or not pairs:
                raise SystemExit(
                    f"{root}: {missing[0]} is missing" if missing else f"{root / images} has no .nii.gz file"
                )
            return [{"image": str(image), "label": str(label)} for image, label in pairs]
    raise SystemExit(f"{root} has neither imagesTr nor images; name the folder of a task of the Decathlon")


def transforms(options: argparse.Namespace) -> tuple[Compose, Compose]:
    """Return transforms for training and for validation; geometry and intensities are those of the pretraining."""
    shared: list[Any] = [
        LoadImaged(keys=KEYS),
        EnsureChannelFirstd(keys=KEYS),
        Orientationd(keys=KEYS, axcodes="RAS"),
        Spacingd(keys=KEYS, pixdim=options.spacing, mode=("bilinear", "nearest")),
        NormalizeIntensityd(keys=["image"], channel_wise=True),
        SpatialPadd(keys=KEYS, spatial_size=(options.crop,) * 3),
    ]
    random = [
        RandCropByPosNegLabeld(
            keys=KEYS, label_key="label", spatial_size=(options.crop,) * 3, pos=2, neg=1, num_samples=4
        ),
        *(RandFlipd(keys=KEYS, spatial_axis=axis, prob=0.5) for axis in range(3)),
        RandShiftIntensityd(keys=["image"], offsets=0.1, prob=0.5),
    ]
    return Compose([*shared, *random]), Compose(shared)


def build(classes: int, weights: Path | None) -> nn.Module:
    """Return the network; as `sparkmim export` prints it, with the number of classes in place of N."""
    network = UNet(
        spatial_dims=3,
        out_channels=classes,
        in_channels=1,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )
    if weights is not None:
        found = network.load_state_dict(torch.load(weights), strict=False)  # all but the output layers
        if found.unexpected_keys:
            raise SystemExit(f"{weights} is of another network: it has {found.unexpected_keys[0]}; see build()")
        total = len(network.state_dict())
        print(f"{weights}: {total - len(found.missing_keys)} of {total} tensors loaded, without {found.missing_keys}")
    return network


@torch.no_grad()
def validate(network: nn.Module, loader: Any, classes: int, crop: int, device: str) -> float:
    """Return the mean Dice over volumes and classes but the background."""
    network.eval()
    metric = DiceMetric(include_background=False, reduction="mean")
    predicted, wanted = AsDiscrete(argmax=True, to_onehot=classes), AsDiscrete(to_onehot=classes)
    for batch in loader:
        outputs = sliding_window_inference(batch["image"].to(device), (crop,) * 3, 4, network, overlap=0.5)
        metric(
            y_pred=[predicted(output) for output in decollate_batch(outputs)],
            y=[wanted(label) for label in decollate_batch(batch["label"].to(device))],
        )
    return float(metric.aggregate())


def main() -> None:
    """Train, and print loss and Dice of each epoch."""
    options = parse()
    set_determinism(options.seed)
    pairs = find_pairs(options.data)
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    if options.train + options.val > len(pairs):
        raise SystemExit(
            f"{len(pairs)} volumes are fewer than --train {options.train} and --val {options.val} together"
        )
    train, val = order[: options.train], order[options.train : options.train + options.val]
    training, validation = transforms(options)
    loaders = [
        DataLoader(
            CacheDataset([pairs[i] for i in part], how, num_workers=0, progress=False),
            batch_size=size,
            shuffle=size > 1,
        )
        for part, how, size in ((train, training, 2), (val, validation, 1))
    ]
    classes = 1 + int(max(LoadImaged(keys=["label"])(pairs[i])["label"].max() for i in order))
    network = build(classes, options.weights).to(options.device)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), options.lr, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    print(f"{len(train)} volumes to train on, {len(val)} to validate with, {classes} classes")
    for epoch in range(1, options.epochs + 1):
        start, losses = time.monotonic(), []
        network.train()
        for batch in loaders[0]:
            optimizer.zero_grad()
            loss = loss_of(network(batch["image"].to(options.device)), batch["label"].to(options.device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        dice = validate(network, loaders[1], classes, options.crop, options.device)
        print(
            f"epoch {epoch}: loss {np.mean(losses):.4f}, Dice {dice:.4f}, {time.monotonic() - start:.1f} s", flush=True
        )


if __name__ == "__main__":
    main()
