"""Functions that act on each position alone: they run as they are, and only the meaning of the axes is followed.

The same for every execution, since nothing here mixes positions or images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autocast import layer_norm_in_own_precision
from ..errors import OUTSIDER, unsupported
from ..execution import MADE_OUTSIDE, Execution
from ..extent import MEASURED, Extent, MapSize, value_of
from ..functions import attributes_named, functions_named, operators_in_place, operators_named
from ..layout import Layout
from ..memory import KEEPING, formats, in_format
from ..registry import understands_sizes
from ..strides import UNKNOWN
from .calls import call

METADATA = operators_named(
    "dim is_floating_point is_complex is_contiguous element_size get_device ndimension storage_offset is_inference"
) | attributes_named(
    "ndim dtype device requires_grad is_cuda layout is_leaf grad_fn is_nested is_sparse is_quantized is_mkldnn is_meta "
    "is_mps is_xpu itemsize"
)

ARITHMETIC = """
    add sub subtract rsub mul multiply div divide true_divide truediv floordiv floor_divide pow neg negative pos
    positive abs absolute square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sign sgn floor ceil round
    trunc frac erf erfc sin cos tan asin acos atan sinh cosh tanh addcmul addcdiv lerp fmod remainder mod maximum
    minimum clamp clip clamp_min clamp_max where masked_fill nan_to_num hypot atan2 logit copysign heaviside xlogy
    logaddexp fill zero copy
"""
LOGIC = """
    eq ne lt le gt ge greater less not_equal greater_equal less_equal logical_and logical_or logical_not logical_xor
    and or xor invert bitwise_not bitwise_and bitwise_or bitwise_xor isnan isinf isfinite
"""
ACTIVATIONS = """
    relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh hardshrink
    softshrink tanhshrink softplus softsign logsigmoid threshold
"""

POINTWISE = operators_named(ARITHMETIC + LOGIC + ACTIVATIONS)
IN_PLACE = operators_in_place(ARITHMETIC + LOGIC + ACTIVATIONS)
WHERE = functions_named("where")

SAME_VALUES = functions_named(
    "clone contiguous to type_as float double half bfloat16 detach detach_ alias cpu cuda requires_grad_"
) | attributes_named("data")

KEEPING.update(POINTWISE | SAME_VALUES | functions_named("dropout prelu rrelu"))

# --- what the axes of the result mean -------------------------------------------------------------------------------


def broadcast_layout(execution: Execution, func: Any, operands: Sequence[Any]) -> tuple[Layout, int]:
    """Return the layout of an elementwise combination and its number of axes; raise where positions would mix.

    Axes are compared from the right, as broadcasting aligns them. Operands that do not descend from the input (weights,
    constants) must be the same for every sample and position.
    """
    tensors = [value for value in operands if isinstance(value, Tensor)]
    layouts = [execution.layout(value) for value in tensors]
    first = layouts[0]
    if len(tensors) == 1 and first is not None:
        if first.space:
            execution.require_no_padding(first, func)
        return first, tensors[0].ndim
    pair = len(tensors) == 2 and first is not None and bool(first.space) and first == layouts[1]
    if first is not None and pair and tensors[0].shape == tensors[1].shape:
        execution.require_no_padding(first, func)
        return first, tensors[0].ndim
    ndim = max(tensor.ndim for tensor in tensors)
    pairs = list(zip(tensors, layouts, strict=True))
    maps = [(t, s) for t, s in pairs if s is not None and s.space]
    images = [(t, s) for t, s in pairs if s is not None and not s.space]
    lead, layout = (maps or images)[0]
    shift = ndim - lead.ndim
    out = layout if not shift else layout.moved(layout.batch + shift, tuple(axis + shift for axis in layout.space))
    for tensor, other in maps:
        execution.require_no_padding(other, func)
        if tensor is lead:
            continue
        moved = ndim - tensor.ndim
        meaning = other.batch + moved, tuple(a + moved for a in other.space), other.flattened
        if meaning != (out.batch, out.space, out.flattened):
            raise unsupported(func, f"it combines tensors whose axes mean different things ({layout} and {other})")
        if any(tensor.shape[a] != lead.shape[b] for a, b in zip(other.tracked_axes, layout.tracked_axes, strict=True)):
            raise unsupported(
                func, f"it combines maps of different size ({tuple(lead.shape)} and {tuple(tensor.shape)})"
            )
    for tensor, other in images:
        if other.batch + ndim - tensor.ndim != out.batch:
            raise unsupported(func, f"it combines tensors whose axes mean different things ({layout} and {other})")
        _require_constant(func, tensor, ndim, out.space, "a value per image")
    for tensor, own in pairs:
        if own is None and tensor.ndim:
            _require_constant(func, tensor, ndim, out.tracked_axes, OUTSIDER)
    return out, ndim


def _require_constant(func: Any, tensor: Tensor, ndim: int, axes: tuple[int, ...], what: str) -> None:
    shape = tensor.shape
    missing = ndim - len(shape)
    for axis in axes:
        own = axis - missing
        if own >= 0 and shape[own] != 1 and not (torch.compiler.is_compiling() and tensor.stride(own) == 0):
            raise unsupported(func, f"{what}, of shape {tuple(tensor.shape)}, varies over samples or positions")


@Execution.register(*METADATA)
def metadata(execution: Execution, func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


@Execution.register(torch.Tensor.size, torch.Tensor.shape.__get__)  # type: ignore[attr-defined]
def size(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return sizes of the whole map. (Dynamo does not ask: it knows those of the tensor at hand.)"""
    return as_size(execution, shape_of_whole(execution, x), args, kwargs)


def as_size(execution: Execution, sizes: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a shape as a network gets it, or the size of the axis that it asks for."""
    execution.told.read = True
    if args or kwargs:
        return sizes[args[0] if args else kwargs["dim"]]
    return torch.Size(sizes) if execution.has_plain_sizes() else MapSize(sizes)


def shape_of_whole(execution: Execution, x: Tensor) -> list[Any]:
    """Return the shape of the map that a tensor of the input is part of, a padding that waits included."""
    layout = execution.layout(x)
    if layout is None:
        return list(x.shape)
    sizes = [execution.size_of(layout, axis, extent) for axis, extent in enumerate(x.shape)]
    if layout.padding is not None:
        for axis, before, after in zip(layout.space, layout.padding.before, layout.padding.after, strict=True):
            sizes[axis] = sizes[axis] + before + after
    return sizes


@Execution.register(*functions_named("numel nelement"), *attributes_named("nbytes"))
def numel(execution: Execution, func: Any, x: Tensor) -> Any:
    bytes_each = x.element_size() if func in _BYTES else 1
    execution.told.read = True
    return math.prod(shape_of_whole(execution, x)) * bytes_each


_BYTES = attributes_named("nbytes")


@Execution.register(torch.Tensor.__len__)
def length(execution: Execution, func: Any, x: Tensor) -> int:
    """Return the first size, which Python makes an ordinary number."""
    execution.told.read = True
    return int(shape_of_whole(execution, x)[0])


@Execution.register(torch.Tensor.stride)
def stride(execution: Execution, func: Any, x: Tensor, dim: int | None = None) -> Any:
    """Return the strides that the tensor has in the ordinary network.

    Raises:
        UnsupportedOperation: where they are not known, because they depend on the device.
    """
    layout = execution.layout(x)
    found = x.stride() if layout is None else execution.memory.strides(x, execution.ordinary_shape(x, layout))
    if found == UNKNOWN:
        raise unsupported(func, "how the ordinary network's map lies in memory is not known here")
    execution.told.read = True
    return found if dim is None else found[dim]


@understands_sizes(*POINTWISE)
@Execution.register(*POINTWISE)
def pointwise(execution: Execution, func: Any, *args: Any, **kwargs: Any) -> Any:
    if func in WHERE and len(args) + len(kwargs) < 3:
        raise unsupported(func, "it lists positions")
    if execution.told.read and not execution.has_plain_sizes():
        args = tuple(operand(execution, func, value) for value in args)
        kwargs = {name: operand(execution, func, value) for name, value in kwargs.items()}
    args = with_values_per_image(execution, args)
    layout, ndim = broadcast_layout(execution, func, [*args, *kwargs.values()])
    if func in IN_PLACE or "out" in kwargs:
        target = kwargs.get("out", args[0])
        own = execution.layout(target)
        if target.ndim != ndim or own is None or own != layout:
            raise unsupported(func, "it writes a map into a tensor that does not descend from the input as one")
    out = func(*args, **kwargs)
    if out.ndim != ndim:
        raise unsupported(func, f"its result has {out.ndim} axes instead of {ndim}")
    return execution.mark(out, layout)


def _has_made_outside(operands: tuple[Any, ...]) -> bool:
    return any(isinstance(value, Tensor) and hasattr(value, MADE_OUTSIDE) for value in operands)


def with_values_per_image(execution: Execution, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return operands, of which those made outside the input with one entry an image hold values per image.

    As what a network draws by `torch.rand(len(x))` and reshapes. It is aligned with the samples as broadcasting aligns
    it in the ordinary network; nothing else there has as many entries along that axis.
    """
    images = execution.grid_shape[0]
    if images == 1 or not _has_made_outside(operands):
        return operands
    ndim = max((t.ndim for t in operands if isinstance(t, Tensor)), default=0)
    lead = next((t for t in operands if isinstance(t, Tensor) and execution.layout(t) is not None), None)
    layout = execution.layout(lead)
    if lead is None or layout is None:
        return operands
    batch = layout.batch + ndim - lead.ndim
    space = [axis + ndim - lead.ndim for axis in layout.space]

    def repeated(value: Any) -> Any:
        if not isinstance(value, Tensor) or not hasattr(value, MADE_OUTSIDE) or execution.layout(value) is not None:
            return value
        own = batch - (ndim - value.ndim)
        varies = any(a >= ndim - value.ndim and value.shape[a - (ndim - value.ndim)] != 1 for a in space)
        if own < 0 or value.shape[own] != images or varies:
            return value
        return execution.mark(execution.all_rows(value, own), Layout(layout.origin, own, ()))

    return tuple(map(repeated, operands))


def operand(execution: Execution, func: Any, value: Any) -> Any:
    """Return an operand; raise for a number computed from sizes of a map."""
    if type(value) is Extent or (type(value) in (int, float) and abs(value) in execution.told.lost):
        raise unsupported(func, MEASURED)
    return value


@Execution.register(*SAME_VALUES)
def same_values(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the first argument's values in another form; other arguments may only lend their dtype or device."""
    layout = execution.layout(input)
    if layout is not None and formats(func, kwargs):
        return in_format(execution, func, input, args, kwargs)
    out: Tensor = func(input, *args, **kwargs)
    if layout is not None:
        return execution.mark(out, layout)
    return execution.note_constant(out, (input,), {})


@Execution.register(torch.as_tensor)
def as_tensor(execution: Execution, func: Any, data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """Return a tensor itself, or in another type or on another device."""
    layout = execution.layout(data) if isinstance(data, Tensor) else None
    if layout is None:
        raise unsupported(func, "it makes a tensor of values that descend from the input")
    if dtype in (None, data.dtype) and device is None:
        return data  # type: ignore[no-any-return]
    to = {name: value for name, value in (("dtype", dtype), ("device", device)) if value is not None}
    return execution.answer(torch.Tensor.to, (data,), to)  # type: ignore[no-any-return, arg-type]


def require_no_input(execution: Execution, func: Any, *arguments: Any) -> None:
    """Raise if a weight, an index or the like descends from the network's input."""
    if execution.any_layout(arguments):
        raise unsupported(func, "one of its parameters descends from the input")


def free_axes(func: Any, layout: Layout, ndim: int, dims: Any) -> tuple[int, ...]:
    """Return `dims` as non-negative axes; raise if one of them is of samples or space."""
    axes = tuple([d % ndim for d in ((dims,) if isinstance(dims, int) else dims)])
    for axis in axes:
        if axis == layout.batch or axis in layout.space:
            raise unsupported(func, f"it works along axis {axis}, which is of samples or space ({layout})")
    return axes


def own_layout(execution: Execution, func: Any, x: Any) -> Layout:
    """Return the layout of a function's main argument; raise if it has none or a padding is waiting."""
    layout = execution.layout(x)
    if layout is None:
        raise unsupported(func, "its first argument does not descend from the input, but another one does")
    if layout.padding is not None:
        execution.require_no_padding(layout, func)
    return layout


def samples_and_channels_first(execution: Execution, func: Any, x: Tensor) -> Layout:
    """Return the layout of `x`; raise unless its axes are samples, channels and any others."""
    layout = execution.layout(x)
    if layout is None or layout.batch != 0 or 1 in layout.space:
        raise unsupported(func, f"it needs samples first and channels second, its argument is {layout}")
    execution.require_no_padding(layout, func)
    return layout


# Functions along free axes that keep all axes: the place of the axes among the arguments after the tensor, and their
# name and default. (`glu` halves its axis.)
_ALONG: dict[str, tuple[int, str, int | None]] = {
    "cumsum": (0, "dim", None),
    "glu": (0, "dim", -1),
    "roll": (1, "dims", None),
    "flip": (0, "dims", None),
}
_ALONG_FUNCTIONS = functions_named(" ".join(_ALONG))


@Execution.register(*_ALONG_FUNCTIONS)
def along_channels(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    place, name, default = _ALONG[_ALONG_FUNCTIONS[func]]
    if _ALONG_FUNCTIONS[func] == "flip" and len(args) > 1:
        args = (args,)
    dims = kwargs.get(name, args[place] if len(args) > place else default)
    if dims is None:
        raise unsupported(func, "it names no axis")
    free_axes(func, layout, input.ndim, dims)
    return execution.mark(func(input, *args, **kwargs), layout)


@Execution.register(torch.channel_shuffle)
def channel_shuffle(execution: Execution, func: Any, input: Tensor, groups: int) -> Tensor:
    """Interleave groups of axis 1, which must be of channels, as ShuffleNet does."""
    layout = samples_and_channels_first(execution, func, input)
    return execution.mark(func(input, groups), layout)


_LAYER_NORMS = functions_named("layer_norm rms_norm")


@understands_sizes(*_LAYER_NORMS)
@Execution.register(*_LAYER_NORMS)
def layer_norm(
    execution: Execution, func: Any, input: Tensor, normalized_shape: Sequence[int], *args: Any, **kwargs: Any
) -> Tensor:
    """Normalize the last axes: free ones, or all but those of samples over an image's visible positions."""
    layout = own_layout(execution, func, input)
    require_no_input(execution, func, *args, *kwargs.values())
    shape = tuple(map(value_of, [normalized_shape] if isinstance(normalized_shape, int) else normalized_shape))
    axes = tuple(range(input.ndim - len(shape), input.ndim))
    if layout.batch not in axes and not set(axes).isdisjoint(layout.space):
        return _norm_of_image(execution, func, input, layout, axes, shape, args, kwargs)
    free_axes(func, layout, input.ndim, axes)
    if _in_its_own_precision(input):
        return execution.mark(layer_norm_in_own_precision(func, input, shape, args, kwargs), layout)
    return execution.mark(func(input, shape, *args, **kwargs), layout)


def _in_its_own_precision(x: Tensor) -> bool:
    """Return whether a map that autocast has in 16 bits is normalized in these, which it is on CUDA."""
    return _on_cuda(x) and torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.bfloat16, torch.float16)


def _on_cuda(x: Tensor) -> bool:
    return x.is_cuda


def _norm_of_image(
    execution: Execution,
    func: Any,
    x: Tensor,
    layout: Layout,
    axes: tuple[int, ...],
    shape: tuple[int, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Normalize over all positions of an image, without weights.

    Raises:
        UnsupportedOperation: for weights, which belong to positions of the map, and for a part of the axes of space.
    """
    is_rms = _LAYER_NORMS[func] == "rms_norm"
    named = dict(zip(("weight", "eps") if is_rms else ("weight", "bias", "eps"), args, strict=False)) | kwargs
    if named.get("weight") is not None or named.get("bias") is not None:
        raise unsupported(
            func,
            "it has a weight for each position of the map, as a position embedding has, and visible patches may lie "
            "anywhere; normalize with weights for channels, as nn.GroupNorm(1, channels) does, or without "
            "(elementwise_affine=False)",
        )
    if not set(layout.space) <= set(axes):
        raise unsupported(
            func,
            "it normalizes along one spatial axis and not the others, and rows and columns run through hidden patches",
        )
    whole = tuple(map(value_of, shape_of_whole(execution, x)[axes[0] :]))
    if whole != shape:
        raise unsupported(func, f"it normalizes {shape} and the map is {whole}; give x.shape[1:]")
    eps = named.get("eps")
    if is_rms:
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        spread = call(execution, torch.mean, call(execution, torch.square, x), dim=axes, keepdim=True)
    else:
        eps = 1e-5 if eps is None else eps
        spread, mean = call(execution, torch.var_mean, x, dim=axes, unbiased=False, keepdim=True)
        x = call(execution, torch.sub, x, mean)
    scale = call(execution, torch.rsqrt, call(execution, torch.add, spread, eps))
    return call(execution, torch.mul, x, scale)  # type: ignore[no-any-return]


@Execution.register(F.prelu, torch.prelu, torch.Tensor.prelu)
def prelu(execution: Execution, func: Any, input: Tensor, weight: Tensor) -> Tensor:
    """Follow weights that belong to axis 1, not to the last axis as broadcasting would have it."""
    layout = own_layout(execution, func, input)
    require_no_input(execution, func, weight)
    if weight.numel() > 1:
        free_axes(func, layout, input.ndim, 1)
    return execution.mark(func(input, weight), layout)


@Execution.register(F.linear, torch._C._nn.linear)
def linear(execution: Execution, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    layout = own_layout(execution, func, input)
    require_no_input(execution, func, weight, bias)
    free_axes(func, layout, input.ndim, -1)
    return execution.mark(func(input, weight, bias), layout)
