"""Times the reading of images: sparkmim's loader against torchvision's ImageFolder and its transforms, in turn.

    python benchmarks/input_pipeline.py [--quality 90] [--data FOLDER] [--workers 0]

Without `--data`, JPEG files of 500 x 375 pixels are made from scikit-image's photographs. All contestants do the same:
decode, a random resized crop of 67 to 100% of the area to 224 pixels (bicubic), a flip, normalised float32 in batches;
sparkmim draws the masks too. The measure is images for each second of processor time, of all processes together: what
one core does. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import transforms as v1

from compare import cpu_name
from sparkmim.data.config import DataConfig
from sparkmim.data.decoding import jpeg
from sparkmim.data.loader import MaskedViews, training_batches
from sparkmim.data.normalize import Normalize
from sparkmim.data.sampler import Positions
from sparkmim.data.sources.builtin import PHOTOGRAPHS
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import training_view

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, SCALE = 224, (0.67, 1.0)
Pass = Callable[[], int]
"""Function that reads images and returns their number."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images in folders; made of photographs if not given")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files that are made")
    parser.add_argument(
        "--width", type=int, default=500, help="of the JPEG files that are made, three quarters as high"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument(
        "--images", type=int, default=512, help="read in each round, again and again if there are fewer"
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = args.data or photographs(Path(made), args.width, args.quality)
        contestants: dict[str, Pass] = {
            "ImageFolder, transforms v1": image_folder(folder, v1_transforms(), args),
            "ImageFolder, transforms v2": image_folder(folder, v2_transforms(), args),
            "sparkmim": ours(folder, args),
        }
        if jpeg.simplejpeg is not None:
            contestants["sparkmim without simplejpeg"] = without_simplejpeg(contestants["sparkmim"])
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        walls: dict[str, list[float]] = {name: [] for name in contestants}
        for round_ in range(args.rounds + 1):
            for name, read in contestants.items():
                start, spent = time.perf_counter(), processor_seconds()
                count = read()
                if round_:  # the first warms up
                    rates[name].append(count / (processor_seconds() - spent))
                    walls[name].append(count / (time.perf_counter() - start))
        size = statistics.median(path.stat().st_size for path in folder.rglob("*.*") if path.is_file()) / 1000
        what = args.data.name if args.data else f"photographs of {args.width} x {args.width * 3 // 4}"
        print(
            f"`benchmarks/input_pipeline.py {' '.join(sys.argv[1:])}`; {datetime.date.today()}, {cpu_name()}; {what}, "
            f"median {size:.0f} kB; torch {torch.__version__}, torchvision {torchvision.__version__}, "
            f"Pillow {PIL.__version__}; {args.rounds} rounds in turn of {args.images} images, "
            f"{args.workers} workers\n"
        )
        print("| reader | images a second of processor time, median (min to max) | times the first | images/s |")
        print("|---|---|---|---|")
        first = rates[next(iter(rates))]
        for name, rate in rates.items():
            ratio = statistics.median(own / other for own, other in zip(rate, first, strict=True))
            print(
                f"| {name} | {statistics.median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f}) | {ratio:.2f} "
                f"| {statistics.median(walls[name]):.0f} |"
            )


def image_folder(folder: Path, transform: Callable[[Image.Image], Tensor], args: argparse.Namespace) -> Pass:
    """Return torchvision's reader."""
    data = ImageFolder(str(folder), transform)
    batches = [[j % len(data) for j in range(i, i + args.batch)] for i in range(0, args.images, args.batch)]
    loader = DataLoader(data, batch_sampler=batches, num_workers=args.workers)  # type: ignore[arg-type]
    return lambda: sum(len(images) for images, _ in loader)


def ours(folder: Path, args: argparse.Namespace) -> Pass:
    """Return sparkmim's reader."""
    config = DataConfig(image_size=(SIZE, SIZE), crop_scale=SCALE, mean=MEAN, std=STD)
    source, normalise = find_images(folder), Normalize(config)
    views = MaskedViews(source, training_view(config), 3, (7, 7), 0.6, seed=0)
    positions = Positions(len(source), args.batch, args.images // args.batch, seed=0)
    loader = training_batches(views, positions, args.workers)
    return lambda: sum(len(normalise(batch.images)) for batch in loader)


def without_simplejpeg(read: Pass) -> Pass:
    """Return the reader as it works on a machine without simplejpeg."""

    def reading() -> int:
        kept, jpeg.simplejpeg = jpeg.simplejpeg, None
        try:
            return read()
        finally:
            jpeg.simplejpeg = kept

    return reading


def v1_transforms() -> Callable[[Image.Image], Tensor]:
    crop = v1.RandomResizedCrop(SIZE, SCALE, interpolation=InterpolationMode.BICUBIC)
    return v1.Compose([crop, v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)])


def v2_transforms() -> Callable[[Image.Image], Tensor]:
    crop = v2.RandomResizedCrop(SIZE, SCALE, interpolation=InterpolationMode.BICUBIC)
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return v2.Compose([crop, v2.RandomHorizontalFlip(), to_float, v2.Normalize(MEAN, STD)])


def photographs(folder: Path, width: int, quality: int) -> Path:
    """Write JPEG files of scikit-image's photographs, cropped to 4 : 3 and resized."""
    (folder / "photographs").mkdir()
    root = Path(str(resources.files("skimage.data")))
    for name in PHOTOGRAPHS:
        with Image.open(root / name) as file:
            picture = file.convert("RGB")
        side = min(picture.width, picture.height * 4 // 3)
        picture = picture.crop((0, 0, side, side * 3 // 4)).resize((width, width * 3 // 4), Image.Resampling.LANCZOS)
        picture.save(folder / "photographs" / f"{Path(name).stem}.jpg", quality=quality)
    return folder


def processor_seconds() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main()
