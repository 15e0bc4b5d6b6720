"""Export to a folder for timm and the Hugging Face hub: weights, `config.json`, model card."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from ..checkpoints.encoder import TrainedEncoder
from ..utils.copies import copied
from ..utils.io import SUFFIX, read_json, write_text
from .equivalence import Mismatch, compare_maps

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"

MARK = "exported_by"
"""Key of `config.json` that marks an earlier export."""

CARD = """---
tags:
- image-feature-extraction
- timm
library_name: timm
pipeline_tag: image-feature-extraction
---
# {name}

{origin}

| | |
|---|---|
| Network | `{name}` of timm, {millions:.1f} million parameters |
| Features | {features} |
| Input | {channels} channels, {height} x {width} pixels |
| Mean | {mean} |
| Standard deviation | {std} |

## Usage

```python
import timm
import torch

encoder = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(encoder)
transform = timm.data.create_transform(**settings, is_training=False)

features = encoder(torch.zeros(1, {channels}, {height}, {width}))  # (1, {features})
maps = encoder.forward_intermediates(torch.zeros(1, {channels}, {height}, {width}), intermediates_only=True)
```

With `num_classes=N` it has a new classifier to fine-tune. On the hub, write `hf-hub:USER/NAME` for `local-dir:FOLDER`.

## Training data, intended use, limitations

To be completed by the publisher of the weights: the images that they were pretrained on, and their license.

## Citation

```bibtex
@inproceedings{{tian2023designing,
  title={{Designing {{BERT}} for Convolutional Networks: Sparse and Hierarchical Masked Modeling}},
  author={{Keyu Tian and Yi Jiang and Qishuai Diao and Chen Lin and Liwei Wang and Zehuan Yuan}},
  booktitle={{International Conference on Learning Representations}},
  year={{2023}}
}}
```
"""

PRETRAINED = """An encoder without classifier. It was pretrained on images without labels by sparse and hierarchical
masked modeling ([SparK](https://arxiv.org/abs/2301.03580)) with sparkmim, {steps:,} steps."""

OTHER = "An encoder without classifier, exported with sparkmim."

OF_TIMM_S_OWN_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes")
"""Keys that describe timm's own weights of a network, which these are not."""


def check_folder(folder: Path) -> None:
    """Validate that a folder is new, empty, or an earlier export, so that nothing else is overwritten.

    Raises:
        ValueError: if not.
    """
    others = sorted(p.name for p in folder.iterdir() if p.suffix != SUFFIX) if folder.is_dir() else []
    try:
        config = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError):
        config = None
    if others and not (isinstance(config, dict) and MARK in config):
        raise ValueError(
            f"--output {folder} is not empty (it holds {others[0]}) and not an earlier export; name a new folder"
        )


def write_folder(encoder: TrainedEncoder, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and, unless there is one, `README.md`.

    Raises:
        Mismatch: for a network that timm does not have, or if timm builds a different one from the files. Nothing is
            written then.
    """
    network = encoder.backbone.module
    if not hasattr(network, "pretrained_cfg") or encoder.name.partition(":")[0].endswith(".py"):
        raise Mismatch(f"timm has no network {encoder.name}; its weights load into the code that made it, as they are")
    height, width = encoder.data.image_size
    size = (encoder.backbone.in_chans, height, width)
    described = {
        "input_size": size,
        "mean": encoder.data.mean,
        "std": encoder.data.std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    others = {"pretrained_cfg": dict.fromkeys(OF_TIMM_S_OWN_WEIGHTS), MARK: f"sparkmim {version('sparkmim')}"}
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, suffix=SUFFIX) as temporary:
        save_for_hf(network, temporary, others, safe_serialization=True, data_config=described)
        _check(encoder.name, network, temporary, size)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            (Path(temporary) / name).replace(folder / name)
    if (folder / CARD_FILE).exists():  # it may have been completed by hand
        return
    card = CARD.format(
        name=encoder.name,
        origin=OTHER if encoder.step is None else PRETRAINED.format(steps=encoder.step),
        millions=sum(p.numel() for p in network.parameters()) / 1e6,
        features=network.num_features,
        channels=encoder.backbone.in_chans,
        height=height,
        width=width,
        mean=", ".join(f"{value:g}" for value in encoder.data.mean),
        std=", ".join(f"{value:g}" for value in encoder.data.std),
    )
    write_text(folder / CARD_FILE, card)


def _check(name: str, network: nn.Module, folder: str, size: tuple[int, ...]) -> None:
    """Verify that timm builds the same network from a folder."""
    images = torch.randn(1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    try:
        loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().double()
        own: Any = copied(network).double()
        with torch.no_grad():
            compare_maps(own.forward_features(images), loaded.forward_features(images), "its head")
            compare_maps(own(images), loaded(images), "its end")
    except (RuntimeError, TypeError, Mismatch) as error:
        raise Mismatch(f"what timm makes of the files is not {name}: {error}") from error
