"""Build the backbone that a user names: a timm name, a function of a file or of a module."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import timm
from torch import nn

from ..utils.specs import is_function, load_object
from .backbone import Backbone
from .user_code import code_of as code_of  # documented here


def load_backbone(
    model: str,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    *,
    levels: int | None = None,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> Backbone:
    """Return the backbone that a user names.

    Args:
        model: a timm name, or `FILE.py:FUNCTION` or `MODULE:FUNCTION`, a function that returns a module or a Backbone.
        stages: names of the submodules whose outputs are the feature maps.
        in_chans: channels of the images; 3 if not given, or those of a Backbone.
        levels: number of feature maps to keep, see :class:`Backbone`.
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
        if levels not in (None, len(made.levels)):
            raise ValueError(
                f"--levels {levels}, but {model} returns a sparkmim.Backbone of {len(made.levels)} feature maps; leave "
                f"it out, or make the Backbone with levels={levels}"
            )
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{model} returns a {type(made).__name__}, not a torch.nn.Module or a sparkmim.Backbone")
    return Backbone(made, stages or None, in_chans=in_chans or 3, levels=levels)


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
    if is_function(model):
        return "drop_path_rate" in inspect.signature(load_object(model)).parameters
    try:
        timm.create_model(model, num_classes=0, drop_path_rate=0.1)
    except TypeError:
        return False
    return True
