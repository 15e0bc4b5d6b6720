"""What tasks on volumes share."""

from __future__ import annotations

from typing import Any

from ..checkpoints.encoder import TrainedEncoder
from ..models.factory import orientation_of


def settings_of_volumes(encoder: TrainedEncoder) -> dict[str, Any]:
    """Return how the volumes that an encoder has learned from were prepared: spacing, intensities and order of axes.

    Of an encoder that has learned from none it is the order of axes that its network is made for; of one of images
    nothing.
    """
    if encoder.backbone.dims != 3:
        return {}
    if encoder.volumes is None:
        return {"orientation": orientation_of(encoder.name)}
    kinds = set(encoder.volumes.kinds)
    intensity = {"intensity": kinds.pop()} if len(kinds) == 1 else {}
    learned = {name: getattr(encoder.volumes, name) for name in ("foreground", "orientation")}
    return {"spacing": encoder.volumes.spacing or "none", **learned, **intensity}
