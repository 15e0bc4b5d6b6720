"""The command `sparkmim`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import nn

from .backbone import Backbone


def load_backbone(model: str, stages: tuple[str, ...] = (), in_chans: int = 3) -> Backbone:
    """A backbone from what a user writes on the command line.

    Args:
        model: a timm name, or `FILE.py:FUNCTION`, a function without arguments that returns a module or a Backbone.
        stages: names of the submodules whose outputs are the feature maps.
        in_chans: channels of the images.

    Raises:
        ValueError: for an unknown model, file or function.
    """
    path, colon, function = model.rpartition(":")
    if model.endswith(".py"):
        raise ValueError(f"which function of {model} makes the network? Write FILE.py:FUNCTION")
    if not (colon and path.endswith(".py")):
        backbone = Backbone.create(model, in_chans=in_chans)
        return Backbone(backbone.module, stages, in_chans=in_chans) if stages else backbone
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    namespace = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(namespace)
    if not callable(getattr(namespace, function, None)):
        raise ValueError(f"{path} defines no function {function!r}")
    made = getattr(namespace, function)()
    if isinstance(made, Backbone):
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{model} returns a {type(made).__name__}, not a torch.nn.Module or a sparkmim.Backbone")
    return Backbone(made, stages or None, in_chans=in_chans)


def check(
    model: Annotated[str, tyro.conf.Positional],
    /,
    stages: tuple[str, ...] = (),
    patch_size: int | None = None,
    in_chans: int = 3,
    precision: Literal["float64", "float32"] = "float64",
) -> int:
    """Check that a network works on visible patches: identity, crop, leak and oracle.

    Args:
        model: a timm model name, or FILE.py:FUNCTION that returns a module or a sparkmim.Backbone.
        stages: names of the submodules whose outputs are the feature maps, if the network does not offer them itself.
        patch_size: pixels of a patch; the network's total stride by default.
        in_chans: channels of the images.
        precision: of the computation; the tolerance is 1e-8 in float64 and 2e-3 in float32.
    """
    backbone = load_backbone(model, stages, in_chans)
    for level in backbone.levels:
        print(f"stride {' x '.join(map(str, level.stride)):<9} {level.channels} channels")
    unreached = backbone.unreached_parameters()
    reached = sum(p.numel() for n, p in backbone.module.named_parameters() if n not in set(unreached))
    total = sum(p.numel() for p in backbone.module.parameters())
    print(f"{reached / 1e6:.2f} of {total / 1e6:.2f} million parameters are reached by pretraining\n")
    report = backbone.check(patch_size, dtype=getattr(torch, precision))
    print(report)
    print(f"\n{model} {'works' if report.passed else 'does NOT work'} on visible patches")
    return 0 if report.passed else 1


def main() -> None:
    """Entry point. Errors a user can mend are one line on standard error and exit code 2."""
    try:
        code = tyro.extras.subcommand_cli_from_dict({"check": check}, prog="sparkmim", description=__doc__)
    except ValueError as error:
        print(f"sparkmim: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
