"""From what a user writes to a model: network names and files, and a file of weights to start from."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import timm
from torch import nn

from .backbone import Backbone
from .decoder import DecoderBlock
from .device import out_of_memory
from .interchange import load_encoder
from .spark import Execution, LossOn, SparK
from .sparse import UnsupportedOperation


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


@contextmanager
def code_of(spec: str) -> Iterator[None]:
    """Tell in words where the code of a user's file fails, or that a network of timm's is none for this.

    Raises:
        ValueError: instead of whatever other code than ours raised.
    """
    try:
        yield
    except UnsupportedOperation:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
            raise
        what = f"{type(error).__name__}: {error}"
        if ".py:" not in spec:
            raise ValueError(
                f"{spec} does not give feature maps of images of any size ({what}); wanted is a convolutional network"
            ) from error
        own = [frame.lineno for frame in frames if f"{frame.filename}:" in spec]
        raise ValueError(f"{spec} fails{f' at line {own[-1]}' if own else ''}: {what}") from error


def is_function(model: str) -> bool:
    """Whether a model is named as `FILE.py:FUNCTION` or `MODULE:FUNCTION`, not by a name or address of timm's."""
    return ":" in model and not model.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


def load_function(spec: str) -> Callable[..., Any]:
    """The function of a Python file, written `FILE.py:FUNCTION`, or of an installed module, `MODULE:FUNCTION`.

    Raises:
        ValueError: if there is no such file, module or function.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py"):
        try:
            module = importlib.import_module(path)
        except (ImportError, ValueError, TypeError) as error:
            raise ValueError(f"{spec!r} is not FILE.py:FUNCTION, nor MODULE:FUNCTION of a module ({error})") from None
        if not callable(getattr(module, name, None)):
            close = get_close_matches(name, [n for n in dir(module) if callable(getattr(module, n))], n=4)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"module {path} defines no function {name!r}{hint}")
        return getattr(module, name)  # type: ignore[no-any-return]
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    found = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert found is not None
    assert found.loader is not None
    namespace = importlib.util.module_from_spec(found)
    found.loader.exec_module(namespace)
    function = getattr(namespace, name, None)
    if not callable(function):
        raise ValueError(f"{path} defines no function {name!r}")
    return function  # type: ignore[no-any-return]


def load_backbone(
    model: str,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    *,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> Backbone:
    """A backbone from what a user writes.

    Args:
        model: a timm name, or `FILE.py:FUNCTION` or `MODULE:FUNCTION`, a function that returns a module or a Backbone.
        stages: names of the submodules whose outputs are the feature maps.
        in_chans: channels of the images; 3 if not given, or those of a Backbone.
        drop_path: highest rate of stochastic depth; a function is called with it as `drop_path_rate`.
        pretrained: start from timm's weights.

    Raises:
        ValueError: for an unknown model, file or function, one that takes no stochastic depth where some is wanted, or
            a Backbone that has other stages or channels.
    """
    if model.endswith(".py"):
        raise ValueError(f"which function of {model} makes the network? Write FILE.py:FUNCTION")
    settings = {"drop_path_rate": drop_path} if drop_path else {}
    if not is_function(model):
        with stochastic_depth(model, drop_path):
            backbone = Backbone.create(model, in_chans=in_chans or 3, pretrained=pretrained, **settings)
        return Backbone(backbone.module, stages, in_chans=backbone.in_chans) if stages else backbone
    if pretrained:
        raise ValueError(f"timm has no weights for {model}; use --init none or a file")
    function = load_function(model)
    if drop_path and "drop_path_rate" not in inspect.signature(function).parameters:
        raise ValueError(f"{model} takes no drop_path_rate; give it one, or use --drop-path 0")
    made = function(**settings)
    if isinstance(made, Backbone):
        if stages:
            raise ValueError(f"{model} returns a sparkmim.Backbone, which has its stages; leave --stages to its code")
        if in_chans not in (None, made.in_chans):
            raise ValueError(
                f"--in-chans {in_chans}, but {model} returns a sparkmim.Backbone for {made.in_chans} channels; leave "
                f"it out, or make the Backbone with in_chans={in_chans}"
            )
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{model} returns a {type(made).__name__}, not a torch.nn.Module or a sparkmim.Backbone")
    return Backbone(made, stages or None, in_chans=in_chans or 3)


@contextmanager
def stochastic_depth(model: str, drop_path: float) -> Iterator[None]:
    """Tell in words that a network of timm's takes no stochastic depth, while it is made.

    Raises:
        ValueError: instead of a TypeError, if some is wanted.
    """
    try:
        yield
    except TypeError as error:
        if not drop_path:
            raise
        raise ValueError(f"{model} takes no stochastic depth; use --drop-path 0 ({error})") from error


def takes_drop_path(model: str) -> bool:
    """Whether a network can be made with stochastic depth."""
    if is_function(model):
        return "drop_path_rate" in inspect.signature(load_function(model)).parameters
    try:
        timm.create_model(model, num_classes=0, drop_path_rate=0.1)
    except TypeError:
        return False
    return True


def build_model(config: ModelConfig) -> SparK:
    """The model that a configuration describes, its encoder from the weights it names.

    Raises:
        ValueError: for a setting that does not fit the network.
    """
    backbone = load_backbone(
        config.model, config.stages, config.in_chans, drop_path=config.drop_path, pretrained=config.init == "timm"
    )
    if config.init not in ("none", "timm"):
        load_encoder(backbone.module, config.init)
    model = SparK(
        backbone,
        mask_ratio=config.mask_ratio,
        patch_size=config.patch_size,
        decoder_width=config.decoder_width,
        decoder_block=config.decoder_block,
        densify_norm=config.densify_norm,
        in_chans=config.in_chans,
        hierarchy=config.hierarchy,
        execution=config.execution,
        loss_on=config.loss_on,
        shared_mask_token=config.shared_mask_token,
    )
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except ValueError as error:
            raise ValueError(f"--grad-checkpointing on: {error}") from error
    return model
