"""Conversions of state-dict keys: from the official SparK code, and by timm's own filters."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress

from torch import Tensor, nn

State = Mapping[str, Tensor]


TIMM_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained", "pretrained_filter_fn")
"""Names in timm's model files of the function that converts foreign keys, of `(state, model)` or of `(state)`."""


OFFICIAL_KEYS = (
    (r"^sparse_encoder\.sp_cnn\.", "encoder."),
    (r"^mask_tokens\.(\d+)$", r"densify.\1.mask_token"),
    (r"^densify_(norm|proj)s\.(\d+)\.", r"densify.\2.\1."),
    (r"^dense_decoder\.dec\.(\d+)\.up_sample\.", r"decoder.blocks.\1.upsample."),
    (r"^dense_decoder\.dec\.(\d+)\.conv\.0\.", r"decoder.blocks.\1.conv1."),
    (r"^dense_decoder\.dec\.(\d+)\.conv\.1\.", r"decoder.blocks.\1.norm1."),
    (r"^dense_decoder\.dec\.(\d+)\.conv\.3\.", r"decoder.blocks.\1.conv2."),
    (r"^dense_decoder\.dec\.(\d+)\.conv\.4\.", r"decoder.blocks.\1.norm2."),
    (r"^dense_decoder\.proj\.", "decoder.proj."),
)
"""Patterns of official `SparK` keys (pretrain/spark.py, pretrain/decoder.py) and our keys; both count scales from the
lowest resolution."""


COUNTER = ".num_batches_tracked"
"""Ending of a batch norm's counter: no computation here depends on it, and old files and conversions lack it."""


def our_key(key: str) -> str:
    """Convert a key of the official `SparK` to ours; return any other key unchanged."""
    for theirs, ours in OFFICIAL_KEYS:
        key = re.sub(theirs, ours, key)
    return key


def conversions(state: State, module: nn.Module) -> Iterator[tuple[str, State]]:
    """Yield the state dict unchanged, then as converted by timm's own filters, each with a description."""
    yield "", state
    source = next((c.__module__ for c in type(module).__mro__ if c.__module__.startswith("timm.models.")), "")
    for name in TIMM_FILTERS:
        function = getattr(sys.modules.get(source), name, None)
        if function is not None:
            with suppress(Exception):  # it may raise anything on weights of something else
                by_state_alone = len(inspect.signature(function).parameters) == 1
                converted = function(dict(state)) if by_state_alone else function(dict(state), module)
                yield f", names converted by {source}", converted
