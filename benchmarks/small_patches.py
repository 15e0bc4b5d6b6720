"""Patches smaller than the network's total stride: what stays hidden at each depth, and what a step costs.

    python benchmarks/small_patches.py [MODEL] [--size 224] [--batch 16] [--rounds 5]

Shares are means over 1000 random masks. Times are of forward and backward, of the encoder alone and of the whole model
(decoder width 512), float32, the patch sizes taken in turn; medians, and the median of the ratios to
the first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sparkmim import SparK, random_visible
from sparkmim.sparse import mask_at

MASK_RATIO = 0.6


def visible_shares(model: SparK, size: int) -> list[float]:
    """Return the share of visible positions in each feature map, highest resolution first."""
    visible = random_visible(1000, model.grid_shape((size, size)), MASK_RATIO, torch.Generator().manual_seed(0))
    return [
        mask_at(visible, [size // s for s in level.stride]).float().mean().item() for level in model.backbone.levels
    ]


def seconds(step: Callable[[], torch.Tensor]) -> float:
    begin = time.perf_counter()
    step().backward()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, nargs="+", default=[32, 16, 8])
    given = parser.parse_args()
    images = torch.randn(given.batch, 3, given.size, given.size)
    models = {patch: SparK(given.model, patch_size=patch, decoder_width=512) for patch in given.patches}
    masks = {
        patch: random_visible(given.batch, model.grid_shape((given.size, given.size)), MASK_RATIO)
        for patch, model in models.items()
    }

    def encoder(patch: int) -> torch.Tensor:
        model = models[patch]
        features = model.encode_visible(images, model.mask(images, masks[patch]))
        return torch.stack([f.square().mean() for f in features]).sum()

    def whole(patch: int) -> torch.Tensor:
        return models[patch](images, masks[patch]).loss

    print(f"{given.model}, {given.size} px, batch {given.batch}, torch {torch.__version__}, CPU, "
          f"{torch.get_num_threads()} threads\n")  # fmt: skip
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(given.rounds + 1):
        for name, step in (("encoder", encoder), ("whole", whole)):
            for patch in given.patches:
                times.setdefault((name, patch), []).append(seconds(lambda step=step, patch=patch: step(patch)))  # type: ignore[misc]
    first = given.patches[0]
    strides = ", ".join(str(level.stride[0]) for level in models[first].backbone.levels)
    print(f"| patch | visible at strides {strides} | encoder, s | ratio | whole step, s | ratio |\n{'|---' * 6}|")
    for patch, model in models.items():
        cells = [f"{patch}", ", ".join(f"{share:.2f}" for share in visible_shares(model, given.size))]
        for name in ("encoder", "whole"):
            mine, other = times[name, patch][1:], times[name, first][1:]
            ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
            cells += [f"{statistics.median(mine):.2f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
