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

from ..execution import Execution, unsupported
from ..layout import Layout

# --- which functions ------------------------------------------------------------------------------------------------


def functions_named(*names: str) -> list[Any]:
    """Every form under which torch offers a function: free, method, in-place, operator and reflected operator."""
    found = []
    for name in names:
        forms = (name, f"{name}_", f"__{name}__", f"__i{name}__", f"__r{name}__")
        for namespace in (torch, torch.Tensor, F, torch.special, torch._C._nn):
            found += [getattr(namespace, form) for form in forms if callable(getattr(namespace, form, None))]
    return found


def attributes_named(*names: str) -> list[Any]:
    """The getters of tensor attributes."""
    return [getattr(torch.Tensor, name).__get__ for name in names]


METADATA = functions_named(
    "dim", "size", "is_floating_point", "is_complex", "numel", "stride", "is_contiguous", "element_size", "get_device",
    "ndimension", "nelement", "storage_offset", "is_inference", "len",
) + attributes_named("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda", "layout", "is_leaf", "grad_fn", "is_sparse", "is_quantized", "is_mkldnn", "is_meta", "is_mps", "is_xpu", "itemsize", "nbytes")

POINTWISE = functions_named(
    # arithmetic
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "truediv", "floordiv",
    "floor_divide", "pow", "neg", "negative", "pos", "positive", "abs", "absolute", "square", "sqrt", "rsqrt", "reciprocal", "exp", "exp2",
    "expm1", "log", "log2", "log10", "log1p", "sign", "sgn", "floor", "ceil", "round", "trunc", "frac", "erf", "erfc", "sin",
    "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "addcmul", "addcdiv", "lerp", "fmod", "remainder",
    "mod", "maximum", "minimum", "clamp", "clip", "clamp_min", "clamp_max", "where", "masked_fill", "nan_to_num", "hypot",
    "atan2", "logit", "copysign", "heaviside", "xlogy", "logaddexp", "fill", "zero", "copy",
    # comparisons and logic
    "eq", "ne", "lt", "le", "gt", "ge", "greater", "less", "not_equal", "greater_equal", "less_equal", "logical_and", "logical_or", "logical_not", "logical_xor",
    "and", "or", "xor", "invert", "bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "isnan", "isinf", "isfinite",
    # activations
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "hardsigmoid",
    "hardswish", "hardtanh", "hardshrink", "softshrink", "tanhshrink", "softplus", "softsign", "logsigmoid", "threshold",
    # the same values in another form
    "clone", "contiguous", "to", "type_as", "float", "double", "half", "bfloat16", "detach", "alias", "cpu", "cuda",
    "requires_grad_", "sigmoid",
) + attributes_named("data")  # fmt: skip

# --- what the axes of the result mean -------------------------------------------------------------------------------


def broadcast_layout(execution: Execution, func: Any, operands: Sequence[Any]) -> tuple[Layout, int]:
    """Layout of the elementwise combination of `operands`, and its number of axes; raises where positions would mix.

    Axes are compared from the right, as broadcasting aligns them. Operands that do not descend from the input (weights,
    constants) must be the same for every sample and position.
    """
    tensors = [value for value in operands if isinstance(value, Tensor)]
    layouts = [execution.layout(value) for value in tensors]
    ndim = max(tensor.ndim for tensor in tensors)
    maps = [(t, s) for t, s in zip(tensors, layouts, strict=True) if s is not None and s.is_map]
    images = [(t, s) for t, s in zip(tensors, layouts, strict=True) if s is not None and not s.is_map]
    lead, layout = (maps or images)[0]
    shift = ndim - lead.ndim
    out = layout.moved(layout.batch + shift, tuple(axis + shift for axis in layout.space))
    for tensor, other in maps:
        execution.require_map(other, func)
        moved = ndim - tensor.ndim
        if (other.batch + moved, tuple(a + moved for a in other.space)) != (out.batch, out.space):
            raise unsupported(func, f"it combines tensors whose axes mean different things ({layout} and {other})")
        if any(tensor.shape[a] != lead.shape[b] for a, b in zip(other.tracked_axes, layout.tracked_axes, strict=True)):
            raise unsupported(func, f"it combines maps of different size ({tuple(lead.shape)} and {tuple(tensor.shape)})")
    for tensor, other in images:
        if other.batch + ndim - tensor.ndim != out.batch:
            raise unsupported(func, f"it combines tensors whose axes mean different things ({layout} and {other})")
        _require_constant(func, tensor, ndim, out.space, "a value per image")
    for tensor, other in zip(tensors, layouts, strict=True):
        if other is None:
            _require_constant(
                func, tensor, ndim, out.tracked_axes,
                "a tensor that does not descend from the input (a position embedding, noise of unknown origin, or the "
                "output of a scripted module or a custom autograd function)",
            )  # fmt: skip
    return out, ndim


def _require_constant(func: Any, tensor: Tensor, ndim: int, axes: tuple[int, ...], what: str) -> None:
    for axis in axes:
        own = axis - (ndim - tensor.ndim)
        if own >= 0 and tensor.shape[own] != 1:
            raise unsupported(func, f"{what}, of shape {tuple(tensor.shape)}, varies over samples or positions")


@Execution.register(*METADATA)
def metadata(execution: Execution, func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


@Execution.register(*POINTWISE)
def pointwise(execution: Execution, func: Any, *args: Any, **kwargs: Any) -> Any:
    layout, ndim = broadcast_layout(execution, func, [*args, *kwargs.values()])
    name = getattr(func, "__name__", "")
    if "out" in kwargs or ((name.endswith("_") or name.startswith("__i")) and not name == "__invert__"):
        target = kwargs.get("out", args[0])
        own = execution.layout(target)
        if target.ndim != ndim or own is None or own != layout:
            raise unsupported(func, "it writes a map into a tensor that does not descend from the input as one")
    out = func(*args, **kwargs)
    if out.ndim != ndim:
        raise unsupported(func, f"its result has {out.ndim} axes instead of {ndim}")
    return execution.mark(out, layout)


def free_axes(func: Any, layout: Layout, ndim: int, dims: Any) -> tuple[int, ...]:
    """`dims` as non-negative axes, none of them of samples or space; raises otherwise."""
    axes = tuple(d % ndim for d in ((dims,) if isinstance(dims, int) else dims))
    for axis in axes:
        if axis in layout.tracked_axes:
            raise unsupported(func, f"it works along axis {axis}, which is of samples or space ({layout})")
    return axes


def own_layout(execution: Execution, func: Any, x: Any) -> Layout:
    """Layout of a function's main argument, which must descend from the input and have no padding waiting."""
    layout = execution.layout(x)
    if layout is None:
        raise unsupported(func, "its first argument does not descend from the input, but another one does")
    if layout.padding is not None:
        raise unsupported(func, "its argument was padded, and only a convolution or pooling can follow a padding")
    return layout


@Execution.register(*functions_named("softmax", "log_softmax", "softmin", "glu", "cumsum", "flip", "roll", "normalize"))
def along_channels(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Functions along one or more free axes that keep all axes."""
    layout = own_layout(execution, func, x)
    name = func.__name__
    if name == "normalize":
        dims = kwargs.get("dim", args[1] if len(args) > 1 else 1)
    elif name == "glu":
        dims = kwargs.get("dim", args[0] if args else -1)
    elif name == "roll":
        dims = kwargs.get("dims", args[1] if len(args) > 1 else None)
    elif name == "flip":
        dims = kwargs.get("dims", args[0] if len(args) == 1 else args)
    else:
        dims = kwargs.get("dim", args[0] if args else None)
    if dims is None:
        raise unsupported(func, "it names no axis")
    free_axes(func, layout, x.ndim, dims)
    out = func(x, *args, **kwargs)
    return execution.mark(out, layout) if isinstance(out, Tensor) else type(out)(tuple(execution.mark(o, layout) for o in out))


@Execution.register(*functions_named("layer_norm", "rms_norm"))
def layer_norm(execution: Execution, func: Any, x: Tensor, normalized_shape: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
    """Normalisation of the last axes, which must be free."""
    layout = own_layout(execution, func, x)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    free_axes(func, layout, x.ndim, range(x.ndim - len(shape), x.ndim))
    return execution.mark(func(x, shape, *args, **kwargs), layout)


@Execution.register(F.linear, torch._C._nn.linear)
def linear(execution: Execution, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    layout = own_layout(execution, func, x)
    if execution.layout(weight) is not None or execution.layout(bias) is not None:
        raise unsupported(func, "its weight descends from the input")
    free_axes(func, layout, x.ndim, -1)
    return execution.mark(func(x, weight, bias), layout)


@Execution.register(*functions_named("matmul"))
def matmul(execution: Execution, func: Any, x: Tensor, other: Tensor) -> Tensor:
    """A linear map of the last axis; products between positions, as in attention, are refused."""
    layout = own_layout(execution, func, x)
    if execution.layout(other) is not None or other.ndim != 2:
        raise unsupported(func, "it multiplies two tensors of the input with each other, as attention does")
    free_axes(func, layout, x.ndim, -1)
    return execution.mark(func(x, other), layout)


# --- joining and splitting ------------------------------------------------------------------------------------------


@Execution.register(*functions_named("cat", "concat", "concatenate"))
def cat(execution: Execution, func: Any, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any) -> Tensor:
    layout, ndim = broadcast_layout(execution, func, tensors)
    if any(execution.layout(t) != layout for t in tensors):
        raise unsupported(func, "it joins tensors whose axes mean different things")
    free_axes(func, layout, ndim, kwargs.pop("axis", dim))
    return execution.mark(func(tensors, dim, **kwargs), layout)


@Execution.register(torch.stack)
def stack(execution: Execution, func: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    layout, ndim = broadcast_layout(execution, func, tensors)
    if any(execution.layout(t) != layout for t in tensors):
        raise unsupported(func, "it joins tensors whose axes mean different things")
    return execution.mark(torch.stack(tuple(tensors), dim), _with_new_axis(layout, dim % (ndim + 1)))


@Execution.register(*functions_named("chunk", "split", "tensor_split", "split_with_sizes"))
def split(execution: Execution, func: Any, x: Tensor, sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    layout = own_layout(execution, func, x)
    free_axes(func, layout, x.ndim, dim)
    return tuple(execution.mark(part, layout) for part in func(x, sections, dim))


@Execution.register(*functions_named("unbind"))
def unbind(execution: Execution, func: Any, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    layout = own_layout(execution, func, x)
    (axis,) = free_axes(func, layout, x.ndim, dim)
    out = _without_axes(layout, (axis,))
    return tuple(execution.mark(part, out) for part in func(x, dim))


@Execution.register(*functions_named("narrow", "select", "index_select"))
def part_of_axis(execution: Execution, func: Any, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    (axis,) = free_axes(func, layout, x.ndim, dim)
    out = func(x, dim, *args, **kwargs)
    return execution.mark(out, layout if out.ndim == x.ndim else _without_axes(layout, (axis,)))


def _indexed_layout(execution: Execution, func: Any, x: Tensor, index: Any) -> Layout:
    layout = own_layout(execution, func, x)
    entries = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis not in [e for e in entries if not isinstance(e, Tensor)]:
        entries.append(Ellipsis)
    position = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
    entries[position : position + 1] = [slice(None)] * (x.ndim - consumed)
    places: dict[int, int] = {}
    axis = new = 0
    for entry in entries:
        if entry is None:
            new += 1
            continue
        if axis in layout.tracked_axes:
            whole = isinstance(entry, slice) and entry.start in (None, 0) and entry.stop is None and entry.step in (None, 1)
            strided = (
                isinstance(entry, slice) and axis in layout.space and entry.stop is None
                and entry.step is not None and x.shape[axis] % entry.step == 0 and 0 <= (entry.start or 0) < entry.step
            )  # fmt: skip
            if not (whole or strided):
                raise unsupported(func, f"it picks out samples or positions along axis {axis} ({layout})")
            places[axis] = new
            new += 1
        elif isinstance(entry, slice):
            places[axis] = new
            new += 1
        elif not isinstance(entry, int):
            raise unsupported(func, "it indexes with something other than integers and slices")
        axis += 1
    return layout.moved(places[layout.batch], tuple(places[a] for a in layout.space))


@Execution.register(torch.Tensor.__getitem__)
def getitem(execution: Execution, func: Any, x: Tensor, index: Any) -> Tensor:
    if execution.layout(x) is None:
        raise unsupported(func, "its index descends from the input")
    return execution.mark(func(x, index), _indexed_layout(execution, func, x, index))


@Execution.register(torch.Tensor.__setitem__)
def setitem(execution: Execution, func: Any, x: Tensor, index: Any, value: Any) -> None:
    target = _indexed_layout(execution, func, x, index)
    if isinstance(value, Tensor):
        written = execution.mark(x.detach()[index], target)
        layout, _ = broadcast_layout(execution, func, [written, value])
        if layout != target:
            raise unsupported(func, "it writes a value whose axes mean something else")
    func(x, index, value)


# --- axes moved, added, removed, split and joined -------------------------------------------------------------------


def _with_new_axis(layout: Layout, axis: int) -> Layout:
    shifted = [a + (a >= axis) for a in layout.tracked_axes]
    return layout.moved(shifted[0], tuple(shifted[1:]))


def _without_axes(layout: Layout, axes: Sequence[int]) -> Layout:
    shifted = [a - sum(gone < a for gone in axes) for a in layout.tracked_axes]
    return layout.moved(shifted[0], tuple(shifted[1:]))


def _permuted(layout: Layout, order: Sequence[int]) -> Layout:
    return layout.moved(order.index(layout.batch), tuple(order.index(a) for a in layout.space))


@Execution.register(*functions_named("permute"))
def permute(execution: Execution, func: Any, x: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    order = kwargs.get("dims", dims[0] if dims and not isinstance(dims[0], int) else dims)
    order = [d % x.ndim for d in order]
    return execution.mark(x.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("transpose", "swapaxes", "swapdims"))
def transpose(execution: Execution, func: Any, x: Tensor, dim0: int, dim1: int) -> Tensor:
    layout = own_layout(execution, func, x)
    order = list(range(x.ndim))
    a, b = dim0 % x.ndim, dim1 % x.ndim
    order[a], order[b] = b, a
    return execution.mark(x.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("movedim", "moveaxis"))
def movedim(execution: Execution, func: Any, x: Tensor, source: Any, destination: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    sources = [s % x.ndim for s in ([source] if isinstance(source, int) else source)]
    destinations = [d % x.ndim for d in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(axis for axis in range(x.ndim) if axis not in sources)
    order = [sources[destinations.index(axis)] if axis in destinations else next(rest) for axis in range(x.ndim)]
    return execution.mark(x.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("unsqueeze"))
def unsqueeze(execution: Execution, func: Any, x: Tensor, dim: int) -> Tensor:
    layout = own_layout(execution, func, x)
    return execution.mark(x.unsqueeze(dim), _with_new_axis(layout, dim % (x.ndim + 1)))


@Execution.register(*functions_named("squeeze"))
def squeeze(execution: Execution, func: Any, x: Tensor, dim: Any = None) -> Tensor:
    layout = own_layout(execution, func, x)
    if dim is None:
        raise unsupported(func, "which axes it removes depends on the size of a patch; name the axis")
    axes = free_axes(func, layout, x.ndim, dim)
    gone = [axis for axis in axes if x.shape[axis] == 1]
    return execution.mark(x.squeeze(dim), _without_axes(layout, gone))


@Execution.register(*functions_named("flatten"))
def flatten(execution: Execution, func: Any, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    layout = own_layout(execution, func, x)
    start, end = start_dim % x.ndim, end_dim % x.ndim
    if start == end:
        return x
    if any(start <= axis <= end for axis in layout.tracked_axes):
        raise unsupported(func, f"it merges samples or positions with other axes ({layout})")
    shape = [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]]
    return reshape(execution, func, x, shape)


@Execution.register(*functions_named("unflatten"))
def unflatten(execution: Execution, func: Any, x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    layout = own_layout(execution, func, x)
    (axis,) = free_axes(func, layout, x.ndim, dim)
    sizes = _without_unknown(sizes, x.shape[axis])
    return reshape(execution, func, x, [*x.shape[:axis], *sizes, *x.shape[axis + 1 :]])


@Execution.register(*functions_named("reshape", "view"))
def reshape(execution: Execution, func: Any, x: Tensor, *shape: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    if shape and isinstance(shape[0], torch.dtype):
        raise unsupported(func, "it reinterprets the bytes of a map")
    wanted = _without_unknown(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape, x.numel())
    return execution.mark(x.reshape(wanted), _reshaped(func, layout, list(x.shape), wanted))


@Execution.register(*functions_named("view_as", "reshape_as"))
def reshape_as(execution: Execution, func: Any, x: Tensor, other: Tensor) -> Tensor:
    return reshape(execution, func, x, list(other.shape))


def _without_unknown(shape: Sequence[int], numel: int) -> list[int]:
    """`shape` with its -1, if any, worked out."""
    known = math.prod([s for s in shape if s != -1])
    return [numel // known if s == -1 else int(s) for s in shape]


def _reshaped(func: Any, layout: Layout, old: list[int], new: list[int]) -> Layout:
    """Where samples and space are after a reshape; raises unless each of them stays an axis of its own.

    The tracked axes cut the shape into segments of free axes. A reshape keeps their meaning exactly if the new shape
    has the same tracked extents in the same order, with segments of the same sizes between them.
    """
    ordered = sorted(layout.tracked_axes)
    bounds = [-1, *ordered, len(old)]
    segments = [math.prod(old[a + 1 : b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    def places(index: int, start: int) -> list[tuple[int, ...]]:
        if index == len(ordered):
            return [()] if math.prod(new[start:]) == segments[index] else []
        found = []
        for axis in range(start, len(new)):
            if math.prod(new[start:axis]) == segments[index] and new[axis] == old[ordered[index]]:
                found += [(axis, *rest) for rest in places(index + 1, axis + 1)]
        return found

    candidates = places(0, 0)
    if len(candidates) > 1:  # only axes of extent 1 leave a choice: samples stay first, space stays last
        first, last = ordered[0] == 0, ordered[-1] == len(old) - 1
        candidates = [c for c in candidates if (c[0] == 0 or not first) and (c[-1] == len(new) - 1 or not last)]
    if len(candidates) > 1 and len(new) == len(old):
        candidates = [c for c in candidates if c == tuple(ordered)]
    if len(candidates) != 1:
        raise unsupported(
            func, f"reshaping {tuple(old)} ({layout}) to {tuple(new)} does not keep samples and space as axes of their own"
        )
    moved = dict(zip(ordered, candidates[0], strict=True))
    return layout.moved(moved[layout.batch], tuple(moved[a] for a in layout.space))


@Execution.register(*functions_named("expand", "expand_as"))
def expand(execution: Execution, func: Any, x: Tensor, *shape: Any) -> Tensor:
    """Repetition along free axes; a per-image value expanded to a map becomes that map."""
    if shape and isinstance(shape[0], Tensor):
        layout, ndim = broadcast_layout(execution, func, [x, shape[0]])
        if ndim != shape[0].ndim:
            raise unsupported(func, "it does not fit the tensor it is expanded to")
        return execution.mark(x.expand(shape[0].shape), layout)
    layout = own_layout(execution, func, x)
    sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
    shift = len(sizes) - x.ndim
    out = x.expand(sizes)
    moved = layout.moved(layout.batch + shift, tuple(a + shift for a in layout.space))
    if any(out.shape[a + shift] != x.shape[a] for a in layout.tracked_axes):
        raise unsupported(func, "it repeats samples or positions")
    return execution.mark(out, moved)


@Execution.register(*functions_named("pixel_unshuffle"), *functions_named("pixel_shuffle"))
def pixel_shuffle(execution: Execution, func: Any, x: Tensor, factor: int) -> Tensor:
    """Channels to space and back, within a patch: needs channels second and space last."""
    layout = own_layout(execution, func, x)
    if not layout.is_map or layout.batch != 0 or layout.space != (2, 3):
        raise unsupported(func, f"it needs (batch, channel, height, width), the map is {layout}")
    return execution.mark(func(x, factor), layout)
