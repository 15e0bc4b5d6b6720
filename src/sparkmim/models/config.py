"""The configuration of a model. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..utils.fields import Valid, at_least, rate, setting

Decoder = Literal["unet", "own"]
"""What predicts: a decoder beside the network, or the network's own."""

DecoderBlock = Literal["unet", "convnext"]
"""Blocks of the decoder: the paper's, or one of a sixth of its arithmetic."""

DensifyNorm = Literal["batch", "layer", "instance"]
Execution = Literal["packed", "masked-dense", "zero-out"]
LossOn = Literal["hidden", "all"]
MaskShape = Literal["random", "blocks"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network to pretrain, and how."""

    model: str = setting(kind="code", shapes_model=True)
    """A timm model name; a network of nnU-Net, MONAI or Ultralytics (nnunet:resenc-l, nnunet:PLANS.json#3d_fullres,
    monai:UNet(...), ultralytics:yolo11n.yaml); or FILE.py:FUNCTION or MODULE:FUNCTION (torchvision.models:resnet50): a
    function that returns a torch.nn.Module or a sparkmim.Backbone."""

    stages: tuple[str, ...] = setting((), shapes_model=True)
    """Names of the submodules whose outputs are the feature maps, if the network does not offer them itself."""

    levels: int | None = setting(
        None, Valid(lambda v: v is None or v >= 1, "is a number of feature maps, at least 1"), shapes_model=True
    )
    """Number of feature maps to use, the deepest ones; 4 if not given, or as many as there are, without one of stride
    1; all with the own decoder, and of a U-Net of nnU-Net or MONAI."""

    in_chans: int = setting(3, at_least(1, "a number of channels"), shapes_model=True)
    """Channels of the images: 1 (gray), 3 (RGB), 4 (RGBA), or those of .npy and TIFF files."""

    init: str = setting("none", kind="weights")
    """Weights to start from: none, timm (its pretrained ones), or a file: an encoder.safetensors, a checkpoint of
    sparkmim, timm, torchvision or the authors' code; or the folder of a pretraining, decoder and mask embeddings
    included."""

    drop_path: float = setting(0.0, rate())
    """Highest rate of stochastic depth in the network."""

    patch_size: tuple[int, ...] = setting(per_axis=True)
    """Pixels of a patch along each axis, or one number; a multiple or a divisor of the network's total stride, which is
    the default."""

    mask_ratio: float = setting(0.6, Valid(lambda v: 0 <= v < 1, "is the share of patches to hide, from 0 to below 1"))
    """Share of patches to hide; 0, for --objective distill alone, trains the ordinary network on whole images."""

    mask_shape: MaskShape = "random"
    """random hides patches independently of each other, as the paper does; blocks hides as many in blocks of neighbors,
    which suits --objective latents."""

    masks_per_image: int = setting(1, at_least(1, "a number of masks"))
    """Masks of each image in a step, each hiding other patches: all see one view, whose target (that of --objective
    latents takes a pass of its own) is computed once."""

    objective: str = setting("pixels", kind="code", shapes_model=True)
    """What is predicted at hidden patches: pixels (the paper's), latents (feature maps of an averaged copy of the
    encoder), distill (those of a frozen network, see --teacher; of whole images by default), a sum (pixels+latents), or
    FILE.py:CLASS."""

    decoder: Decoder = setting("unet", shapes_model=True)
    """unet predicts by a light decoder that is discarded afterwards; own by that of a network that has one (a U-Net),
    which is pretrained and transferred with the encoder."""

    decoder_width: int = setting(768, at_least(1, "a number of channels"), shapes_model=True)
    """Channels of the decoder unet at the deepest scale, halved by each of its blocks."""

    decoder_block: DecoderBlock = setting("unet", shapes_model=True)
    """Blocks of the decoder unet: unet is the paper's; convnext is a cheaper one, of a sixth of the arithmetic."""

    densify_norm: DensifyNorm | None = setting(None, shapes_model=True)
    """Norm before the mask embeddings; the network's own kind if not given (instance with the own decoder only)."""

    hierarchy: bool = setting(True, shapes_model=True)
    """Decode from all scales; off: from the deepest alone (the paper's ablation)."""

    execution: Execution = "packed"
    """packed computes visible patches only; masked-dense the same numbers at a dense network's cost; zero-out is the
    ordinary network on images with holes, the baseline that the paper argues against."""

    loss_on: LossOn = "hidden"
    """Patches whose prediction is compared: hidden, or all (an ablation of the paper)."""

    grad_checkpointing: bool = setting(False, resumable=True)
    """Compute the encoder's activations again in backward instead of keeping them, in blocks that the network chooses:
    less memory for more time, and the same numbers. For networks of timm that support it."""

    shared_mask_token: bool = setting(False, shapes_model=True)
    """One mask embedding for all scales, each taking as many of its numbers as it has channels; off: one each (on is an
    ablation of the paper)."""
