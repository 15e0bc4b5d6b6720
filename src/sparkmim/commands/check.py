"""`sparkmim check`."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro


def command(
    model: Annotated[str, tyro.conf.Positional],
    /,
    stages: tuple[str, ...] = (),
    levels: int | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    precision: Literal["float64", "float32"] = "float64",
    image_size: tuple[int, ...] = (),
) -> int:
    """Check that a network works on visible patches: identity, crop, leak, oracle, image size.

    Args:
        model: a timm model name, or FILE.py:FUNCTION or MODULE:FUNCTION (torchvision.models:resnet50) that returns a
            module or a sparkmim.Backbone.
        stages: names of the submodules whose outputs are the feature maps, if the network does not offer them itself.
        levels: number of feature maps, the deepest ones; 4 by default, or as many as there are, without one of stride
            1.
        patch_size: side of a patch in pixels; the network's total stride by default, or a multiple or a divisor of it.
        in_chans: channels of the images; 3 by default, or those of a sparkmim.Backbone.
        precision: of the computation; the tolerance is 1e-8 in float64 and 2e-3 in float32.
        image_size: pixels of the images of training, one number or one an axis: the feature maps of one such image
            are compared too, in float32.
    """
    from ..diagnostics.check import check

    report = check(
        model,
        stages=stages,
        levels=levels,
        patch_size=patch_size,
        in_chans=in_chans,
        precision=precision,
        image_size=image_size if len(image_size) > 1 else next(iter(image_size), None),
    )
    print(report)
    return 0 if report.passed else 1
