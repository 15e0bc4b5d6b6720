"""Build the backbone that a user names: a timm name, a network of another library, a function of a file or module."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from ..utils.devices import out_of_memory
from ..utils.modules import eval_mode
from ..utils.orientation import RAS
from ..utils.specs import LOCAL_FOLDER, is_function, load_object
from .backbone import Backbone, Levels
from .named.base import NamedNetwork, find_named
from .networks import spatial_dims
from .user_code import code_of as code_of  # documented here


def is_registered(model: str) -> bool:
    """Return whether a network is named by timm's registry, is a builder of torchvision's, or one of another library
    that is built without running or fetching anything else, and needs no request.

    These alone are built because a file names them; see :mod:`sparkmim.utils.trust`.
    """
    named = find_named(model)
    if named is not None:
        return not named.needs_trust()
    module, found, name = model.rpartition(":")
    if not found:
        return re.fullmatch(r"[\w.-]+", model) is not None and timm.is_model(model.split(".")[0])
    if module not in ("torchvision.models", "torchvision.models.video"):
        return False
    namespace = torchvision.models.video if module.endswith("video") else torchvision.models
    return name in torchvision.models.list_models(module=namespace) and hasattr(namespace, name)


def orientation_of(model: str) -> str:
    """Return the order of the axes of volumes that a network is made for, RAS where its name says nothing.

    Raises:
        ValueError: for an unknown name.
    """
    named = find_named(model)
    return RAS if named is None else named.orientation()


def require_image_size(
    run: Callable[[torch.Tensor], Any], module: nn.Module, name: str, in_chans: int, image_size: Sequence[int]
) -> None:
    """Raise unless a network takes images of a size.

    Args:
        run: computes what is wanted of images `(1, C, H, W)`: a tensor, or feature maps.
        module: the network.
        name: of it.
        in_chans: channels of the images.
        image_size: height and width.

    Raises:
        ValueError: with the network's own reason.
    """
    parameter = next(module.parameters())
    try:
        with eval_mode(module), torch.no_grad():
            blank = torch.zeros(1, in_chans, *image_size, dtype=parameter.dtype, device=parameter.device)
            found = run(blank)
        if any(not out.numel() for out in (found if isinstance(found, (list, tuple)) else [found])):
            raise RuntimeError("a feature map has no position")
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split("\n")[0].split())
        raise ValueError(
            f"{name} does not take images of --image-size {' '.join(map(str, image_size))} ({reason}); use a "
            "larger one, or the one it is made for"
        ) from error


def load_backbone(
    model: str,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    *,
    levels: Levels = None,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> Backbone:
    """Return the backbone that a user names.

    Args:
        model: a timm name; `SCHEME:NAME`, a network of another library (:mod:`sparkmim.models.named`); or
            `FILE.py:FUNCTION` or `MODULE:FUNCTION`, a function that returns a module or a Backbone.
        stages: names of the submodules whose outputs are the feature maps.
        in_chans: channels of the images; if not given 3, those of a Backbone, or what another library's network says.
        levels: number of feature maps to keep, see :class:`Backbone`; of another library's U-Net all by default.
        drop_path: highest rate of stochastic depth; a function is called with it as `drop_path_rate`.
        pretrained: start from timm's weights.

    Raises:
        ValueError: for an unknown model, file or function, one that takes no stochastic depth where some is wanted, or
            a Backbone that has other stages or channels.
    """
    if in_chans is not None and in_chans < 1:
        raise ValueError(f"--in-chans is a number of channels, at least 1, not {in_chans}")
    if model.endswith(".py"):
        raise ValueError(f"expected FILE.py:FUNCTION, got {model!r}")
    require_local_folder(model)
    named = find_named(model)
    if named is not None:
        return _named_backbone(named, stages, in_chans, levels, drop_path=drop_path, pretrained=pretrained)
    settings = {"drop_path_rate": drop_path} if drop_path else {}
    if not is_function(model):
        with stochastic_depth(model, drop_path):
            if not stages:
                return Backbone.create(model, in_chans=in_chans or 3, pretrained=pretrained, levels=levels, **settings)
            module = Backbone.create_module(model, in_chans=in_chans or 3, pretrained=pretrained, **settings)
        return Backbone(module, stages, in_chans=in_chans or 3, levels=levels)
    if pretrained:
        raise ValueError(f"timm has no weights for {model}; use --init none or a file")
    function = load_object(model)
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
        if levels not in (None, "all", len(made.levels)):
            raise ValueError(
                f"--levels {levels}, but {model} returns a sparkmim.Backbone of {len(made.levels)} feature maps; leave "
                f"it out, or make the Backbone with levels={levels}"
            )
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{model} returns a {type(made).__name__}, not a torch.nn.Module or a sparkmim.Backbone")
    return Backbone(made, stages or None, in_chans=in_chans or 3, levels=levels)


def _named_backbone(
    named: NamedNetwork,
    stages: Sequence[str],
    in_chans: int | None,
    levels: Levels,
    *,
    drop_path: float,
    pretrained: bool,
) -> Backbone:
    """Return the backbone of a network of another library; see :func:`load_backbone`."""
    if pretrained:
        raise ValueError(f"timm has no weights for {named}; use --init none or a file")
    if drop_path:
        raise ValueError(f"{named} takes no stochastic depth; use --drop-path 0")
    built = named.build(in_chans)
    default = "all" if stages else built.levels
    own = stages or built.stages or None
    return Backbone(built.module, own, in_chans=built.in_chans, levels=default if levels is None else levels)


def axes_of(model: str) -> int:
    """Return the number of spatial axes of the network that a user names: 2 for one of timm.

    Raises:
        ValueError: for an unknown file or function, or a function that returns no network.
    """
    named = find_named(model)
    if named is None and not is_function(model):
        return 2
    with torch.random.fork_rng(devices=()):
        made = load_object(model)() if named is None else named.build(None).module
    if isinstance(made, Backbone):
        return made.dims
    if not isinstance(made, nn.Module):
        raise ValueError(f"{model} returns a {type(made).__name__}, not a torch.nn.Module or a sparkmim.Backbone")
    return spatial_dims(made)


def require_local_folder(model: str) -> None:
    """Raise for an address of timm's of a folder that holds no network.

    Raises:
        ValueError: naming the folder.
    """
    folder = Path(model.removeprefix(LOCAL_FOLDER)).expanduser()
    if model.startswith(LOCAL_FOLDER) and not (folder / "config.json").is_file():
        raise ValueError(f"there is no timm network in the folder {folder.absolute()}: it has no config.json")


@contextmanager
def stochastic_depth(model: str, drop_path: float) -> Iterator[None]:
    """Report in words that a timm network takes no stochastic depth, while it is built.

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
    """Return whether a network can be built with stochastic depth."""
    if find_named(model) is not None:
        return False
    if is_function(model):
        return "drop_path_rate" in inspect.signature(load_object(model)).parameters
    try:
        timm.create_model(model, num_classes=0, drop_path_rate=0.1)
    except TypeError:
        return False
    return True
