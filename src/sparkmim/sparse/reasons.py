"""Why functions have no rule, in the field's words, and what to write instead where that has one."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

_REASONS = {
    "scaled_dot_product_attention multi_head_attention_forward _native_multi_head_attention": (
        "positions attend to one another, and what a visible one should see of hidden ones is a choice; a rule that "
        "lets it see the visible ones is in docs/extending/operations.md"
    ),
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell": (
        "a recurrence along an axis of the map runs through hidden patches; run the recurrent module on the whole map"
    ),
    "grid_sample affine_grid deform_conv2d roi_align": (
        "it samples the map at places that may lie in hidden patches; run the module on the whole map"
    ),
    "rot90 fliplr flipud adjoint": "it moves positions to places that belong to other patches",
    "unique unique_consecutive nonzero argwhere masked_select bincount histc histogram take": (
        "it lists values of all images together; how many there are, and in what order, depends on what is visible"
    ),
    "item tolist __bool__ __int__ __float__ __index__ __array__ numpy equal allclose is_nonzero": (
        "it takes values out of the tensor, of all images together, and Python goes on with them; keep them a tensor, "
        "one value an image, as in x.amax((1, 2, 3), keepdim=True), and branch with torch.where"
    ),
    "fractional_max_pool2d fractional_max_pool3d": "it draws windows over the whole map, which do not keep to patches",
    "max_unpool1d max_unpool2d max_unpool3d": "it writes to places of the whole map, which patches do not have",
    "unfold": "its windows run from patch to patch; use torch.nn.functional.unfold, which has a rule",
    "native_layer_norm native_batch_norm native_group_norm": "call the norm by its public name, as F.layer_norm",
    "multinomial normal poisson": "it draws for each patch what the network draws for an image",
    "complex view_as_complex view_as_real real imag": "complex maps have no rules; keep two real ones",
    "cumulative_trapezoid trapezoid tril triu diagonal diag": "it takes rows and columns of patches for the map's",
}
_BY_NAME = {name: reason for names, reason in _REASONS.items() for name in names.split()}


def reason_for(func: Any) -> str:
    """Return why a function has no rule."""
    if torch.compiler.is_compiling():
        return "it has no rule"
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        return "it is an operator of ATen; call the function by its public name, as torch.relu for torch.ops.aten.relu"
    if getattr(func, "__name__", "").startswith("fft_"):
        return "a Fourier transform mixes all positions of the map, hidden ones included"
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return f"it has no rule: {_BY_NAME[name]}" if name in _BY_NAME else "it has no rule"
