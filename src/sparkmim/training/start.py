"""The network that a training of an encoder starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoints.encoder import TrainedEncoder, load_trained_encoder
from ..models.factory import code_of


def read_start(chosen: Mapping[str, Any], *, trust: bool = False) -> TrainedEncoder:
    """Return the network that a training starts from.

    Args:
        chosen: settings of the user's: the encoder, and what is said of its network.
        trust: run the code that its file names.

    Raises:
        ValueError: if it cannot be loaded.
    """
    with code_of(chosen.get("model", chosen["encoder"])):
        return load_trained_encoder(
            chosen["encoder"],
            chosen.get("model"),
            chosen.get("seed", 0),
            stages=chosen.get("stages", ()),
            levels=chosen.get("levels"),
            in_chans=chosen.get("in_chans"),
            trust=trust,
        )
