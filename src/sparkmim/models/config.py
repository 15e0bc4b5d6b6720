"""The configuration of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .decoder import DecoderBlock
from .spark import Execution, LossOn


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network to pretrain, and how."""

    model: str
    """A timm model name, or FILE.py:FUNCTION or MODULE:FUNCTION (torchvision.models:resnet50): a function that returns
    a torch.nn.Module or a sparkmim.Backbone."""

    stages: tuple[str, ...] = ()
    """Names of the submodules whose outputs are the feature maps, if the network does not offer them itself."""

    in_chans: int = 3
    """Channels of the images: 1 (grey), 3 (RGB), 4 (RGBA), or those of .npy and TIFF files."""

    init: str = "none"
    """Weights to start from: none, timm (its pretrained ones), or a file: an encoder.safetensors, a checkpoint of
    sparkmim, timm, torchvision or the authors' code."""

    drop_path: float = 0.0
    """Highest rate of stochastic depth in the network."""

    patch_size: tuple[int, ...]
    """Pixels of a patch along each axis, or one number; a multiple or a divisor of the network's total stride, which is
    the default."""

    mask_ratio: float = 0.6
    """Share of patches to hide."""

    decoder_width: int = 768
    """Channels of the decoder at the deepest scale, halved by each of its blocks."""

    decoder_block: DecoderBlock = "unet"
    """What the decoder is made of: unet is the paper's blocks; convnext is cheaper ones, of a sixth of the
    arithmetic."""

    densify_norm: Literal["batch", "layer"] | None = None
    """Norm before the mask embeddings; the network's own kind if not given."""

    hierarchy: bool = True
    """Decode from all scales; off: from the deepest alone (the paper's ablation)."""

    execution: Execution = "packed"
    """packed computes visible patches only; masked-dense the same numbers at a dense network's cost; zero-out is the
    ordinary network on images with holes, the baseline that the paper argues against."""

    loss_on: LossOn = "hidden"
    """Patches whose prediction is compared: hidden, or all (an ablation of the paper)."""

    grad_checkpointing: bool = False
    """Compute the encoder's activations again in backward instead of keeping them, in blocks that the network chooses:
    less memory for more time, and the same numbers. For networks of timm that know how to."""

    shared_mask_token: bool = False
    """One mask embedding for all scales, each taking as many of its numbers as it has channels; off: one each (on is an
    ablation of the paper)."""
