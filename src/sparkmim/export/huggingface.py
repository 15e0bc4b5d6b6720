"""A folder that timm, and the Hugging Face hub, load as a network: weights, `config.json`, model card."""

from __future__ import annotations

from pathlib import Path

from timm.models import save_for_hf

from ..atomic import write_text
from ..trained import TrainedEncoder
from .equivalence import Mismatch

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

With `num_classes=N` it gets a new classifier to fine-tune. On the hub, write `hf-hub:USER/NAME` for `local-dir:FOLDER`.

## Training data, intended use, limitations

To be told by whoever publishes the weights: which images they were pretrained on, and under which license they are.

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
"""What timm says of the weights that it has for a network, which are not these."""


def write_folder(encoder: TrainedEncoder, folder: Path) -> None:
    """Write `model.safetensors`, `config.json` and `README.md`.

    Raises:
        Mismatch: for a network that is not timm's.
    """
    network = encoder.backbone.module
    if not hasattr(network, "pretrained_cfg") or encoder.name.partition(":")[0].endswith(".py"):
        raise Mismatch(f"timm has no network {encoder.name}; its weights load into the code that made it, as they are")
    height, width = encoder.data.image_size
    described = {
        "input_size": (encoder.backbone.in_chans, height, width),
        "mean": encoder.data.mean,
        "std": encoder.data.std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    others = {"pretrained_cfg": dict.fromkeys(OF_TIMM_S_OWN_WEIGHTS)}
    save_for_hf(network, str(folder), others, safe_serialization=True, data_config=described)
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
    write_text(folder / "README.md", card)
