"""Executions: an untouched network run under other rules.

An :class:`Execution` is a :class:`torch.overrides.TorchFunctionMode`: while it is active, every torch function the
network calls on a tensor that descends from the input is answered by a *rule* that knows the tensor's
:class:`~sparkmim.sparse.layout.Layout`. Functions that act on each position alone run as they are; functions that mix
positions or images are given another meaning by the two executions that exist: :class:`sparkmim.sparse.SparseExecution`
(packed visible patches) and :class:`sparkmim.sparse.MaskedDenseExecution` (the dense reference). A function without a
rule raises :class:`UnsupportedOperation`: nothing passes silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .checkpointing import may_be_in_checkpoint, recompute_under, switched_gradients
from .errors import NOT_TRACED, OUTSIDER, WAYS_OUT, UnsupportedOperation, unsupported
from .extent import MEASURED, Told, extent, has_extent, of_whole_map
from .layout import Layout, Unfinished
from .memory import CONTIGUOUS, SHAPING, Memory, keeps_order, settle
from .nested import tensors_in
from .reasons import reason_for
from .reduction import Reduction
from .registry import UNDERSTAND_SIZES, WAITING, Rule, factory_for, register, rule_for
from .totals import follow, follow_batch, note_batch, require_no_sizes

_NO_TENSORS = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format, slice))
"""Types of arguments that neither are tensors nor hold any."""

MADE_OUTSIDE = "_sparkmim_made_outside"
"""Attribute of a tensor that a network has made in a run of tensors, all of them from outside the input."""

CONSTANT = "_sparkmim_constant"
"""Attribute of a tensor that is known not to vary over the images, though it may have a gradient function."""


class Execution(TorchFunctionMode):
    """Answers the functions that a network calls on tensors that descend from its input.

    Rules are looked up by the function called, first among the execution's own, then among those that all executions
    share. A rule is called as `rule(execution, function, *args, **kwargs)` outside the mode.

    Attributes:
        grad_enabled: whether gradients were on when the run began.
        compiling: whether Dynamo traces the run. (An eager run has compiled parts of a network run eagerly too.)
        traced: tensors and their layouts while compiling.
        memory: which memory tensors share in the ordinary network.
        reenter: makes the context in which checkpointed functions of the network under way are computed again.
        told: what the network has been told of sizes.
        opaque_calls: calls under way of modules that are not traced into. What they make is ordinary: a tensor of as
            many rows as there are images is not traced there.
    """

    names: list[str]
    """Of the classes whose rules apply, the execution's own first."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        classes = cls.__mro__  # here, and not where one is made, which Dynamo may trace
        cls.names = [c.__name__ for c in classes[: classes.index(Execution) + 1]]

    @classmethod
    def register(cls, *functions: Any) -> Callable[[Rule], Rule]:
        """Decorate the rule of `functions` for this class of execution; on :class:`Execution` itself, for all."""
        return register(cls, *functions)

    coarser: Execution | None = None
    """Answers instead of this one what is called on maps whose positions hold several patches, if it is another."""

    packs = False
    """Whether maps hold visible patches alone, so that the sizes of tensors at hand are not those of maps."""

    has_scales = False
    """Whether there are maps that `coarser` answers for."""

    beside: Any = None
    """Answers instead where a network has parts that no map depends on (`shared/beside.py`)."""

    counts_refused = False
    """Whether to note which functions are refused beside the maps, for a compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_enabled = True
        self.compiling = torch.compiler.is_compiling()
        self.traced: list[tuple[Tensor, Layout]] = []
        self.told = Told(())
        self.opaque_calls = 0
        self.memory = Memory(self.compiling)
        self.reenter: Callable[[Execution], AbstractContextManager[Any]] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self.beside is not None:
            return self.beside.answer(self, func, args, kwargs or {})
        return self.answer_any(func, args, kwargs or {})

    def answer_any(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function by its rule, or as it is if no argument descends from the input."""
        if self.has_scales:
            args, kwargs = self.at_one_scale(func, args, kwargs)
        owner = self.owner(args) or (self.owner(kwargs.values()) if kwargs else None)
        if owner is None:
            return self._answer_untraced(func, args, kwargs)
        if torch.is_grad_enabled() != self.grad_enabled:
            self.require_ordinary_gradients(func)
        if not self.compiling:
            if may_be_in_checkpoint():
                recompute_under(self.recomputing, func)
            owner._require_traced(func, args)
            if kwargs:
                owner._require_traced(func, kwargs.values())
        out = owner.answer(func, args, kwargs)
        return out if owner is self else self.returned(out)

    def require_ordinary_gradients(self, func: Any) -> None:
        """Raise for a function called where gradients are not those of the run, unless the network switched them."""
        if self.compiling:
            raise unsupported(func, "it is called where the network has switched gradients off or on")
        why = switched_gradients(func)
        if why is not None:
            raise unsupported(func, why)

    def _require_traced(self, func: Any, values: Iterable[Any]) -> None:
        """Raise if a tensor among the arguments may hide the input, or was computed with the size of a map."""
        for value in values:
            if type(value) in _NO_TENSORS:
                continue
            if isinstance(value, Tensor):
                if getattr(value, "_sparkmim_layout", None) is None and self.hides_input(value):
                    raise unsupported(func, f"{OUTSIDER} may descend from it by a way that is not traced")
                if self.told.read and hasattr(value, "_sparkmim_measured"):
                    raise unsupported(func, MEASURED if rule_for(func, self.names) else reason_for(func))
            elif isinstance(value, (list, tuple)):
                self._require_traced(func, value)
            elif isinstance(value, dict):
                self._require_traced(func, value.values())

    has_waiting = False
    """Whether there are unfinished tensors that answer functions by themselves."""

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the rule of a function for arguments that descend from the input."""
        if self.has_waiting:
            for tensor in tensors_in((args, kwargs)):
                waiting = self.unfinished(tensor)
                if waiting is not None and type(waiting.waits) in WAITING:
                    return WAITING[type(waiting.waits)](self, func, args, kwargs)
        rule = rule_for(func, self.names)
        if rule is None:
            raise unsupported(func, reason_for(func))
        if self.told.read and func not in UNDERSTAND_SIZES:
            args, kwargs = of_whole_map(args), of_whole_map(kwargs)
        follows = (self.told.totals or self.told.left) and not self.compiling
        if follows:
            require_no_sizes(self.told, func, args, kwargs)
        memory = self.memory
        before = memory.writes(func, args, kwargs) if memory.doubtful else None
        if self.compiling:
            out = rule(self, func, *args, **kwargs)
        else:
            try:
                out = rule(self, func, *args, **kwargs)
            except TypeError as error:
                trace = error.__traceback__
                if trace is not None and trace.tb_next is None:  # raised by the call itself, not within the rule
                    raise unsupported(func, f"its rule does not know arguments of this form ({error})") from None
                raise
        if follows:
            follow(self.told, func, args, kwargs, out, traced=True)
        if before:
            memory.written(before)
        formatted = bool(kwargs) and "memory_format" in kwargs
        shapes = func in SHAPING
        if shapes or formatted or (memory.strided and func not in CONTIGUOUS):
            if not (shapes or formatted or self.compiling) and keeps_order(func, args, out):
                return out
            if self.has_scales and any(self.marked(t) and not self.made(t) for t in tensors_in(out)):
                return out  # `coarser` has settled it
            if self.told.read:
                args, kwargs = of_whole_map(args), of_whole_map(kwargs)
            return settle(self, func, args, kwargs, out)
        return out

    def recomputing(self) -> AbstractContextManager[Any]:
        """Return the context in which a checkpointed function is computed again; a run sets `reenter`."""
        return self if self.reenter is None else self.reenter(self)

    def prepare(self, images: Tensor) -> Tensor:
        """Return the network's input, marked."""
        raise NotImplementedError

    def start(self, tensor: Tensor) -> Tensor:
        """Mark `tensor` `(batch, C, *size)` as the network's input: what descends from it is answered by the rules."""
        return self.mark(tensor, Layout(self, 0, tuple(range(2, tensor.ndim))))

    def finish(self, tensor: Any, what: str) -> Tensor:
        """Check that an output of the network descends from the input as a `(batch, C, *size)` map, and return it."""
        if self.layout(tensor) is None:
            raise UnsupportedOperation(
                f"{what} {NOT_TRACED}. A scripted module, a custom autograd function or a conversion "
                "to NumPy on the way hides it. " + WAYS_OUT
            )
        assert isinstance(tensor, Tensor)
        self.memory.require_current(None, [tensor])
        self.require_no_padding(self.require_map(None, tensor, what), None, what)
        if not self.compiling:
            tensor.__getstate__ = _no_state  # type: ignore[method-assign, assignment]
        return tensor

    # --- provenance ---------------------------------------------------------------------------------------------
    # A layout is an attribute of its tensor, so it lives as long as the tensor. Dynamo cannot trace that in every
    # supported version of torch, so while compiling (where "tensors" are symbols that hold no memory) a list does.

    def mark(self, tensor: Tensor, layout: Layout) -> Tensor:
        """Give `tensor` (in place) its layout, and return it."""
        if self.compiling:
            self.traced.append((tensor, layout))
        else:
            tensor._sparkmim_layout = layout  # type: ignore[attr-defined]
        return tensor

    def layout(self, value: Any) -> Layout | None:
        """Return the layout of `value`, None if it does not descend from the input; raise if it is unfinished."""
        if self.compiling:
            layout = self.layout_as_is(value)
        else:  # the most frequent question of a run
            layout = getattr(value, "_sparkmim_layout", None)
            if layout is not None and layout.origin is not self:
                layout = self.layout_as_is(value)  # raises
        if layout is not None and layout.unfinished is not None:
            raise layout.unfinished.error()
        return layout

    def layout_as_is(self, value: Any) -> Layout | None:
        """Return the layout of `value`, unfinished or not, None if it does not descend from the input."""
        layout = self.marked(value)
        if layout is not None and layout.origin is not self:
            if layout.padding is not None and layout.padding.cropped is not None:
                raise layout.padding.cropped.error()
            raise UnsupportedOperation(
                "a tensor comes from another pass over the network, or a map of positions that hold several patches "
                f"(a patch is smaller than the network's total stride) meets one that is finer. {WAYS_OUT}"
            )
        return layout

    def unfinished(self, value: Any) -> Unfinished | None:
        """Return why a tensor cannot be used as it is; None if it can, or does not descend from the input."""
        layout = self.layout_as_is(value)
        return None if layout is None else layout.unfinished

    def marked(self, value: Any) -> Layout | None:
        """Return the layout of `value` by this execution or another."""
        if not isinstance(value, Tensor):
            return None
        if self.compiling:
            for tensor, layout in reversed(self.traced):
                if tensor is value:
                    return layout
            return None
        marked: Layout | None = getattr(value, "_sparkmim_layout", None)
        return marked

    def made(self, tensor: Tensor) -> bool:
        """Return whether a tensor has its layout from this execution."""
        layout = self.marked(tensor)
        return layout is not None and layout.origin is self

    def owner(self, values: Iterable[Any]) -> Execution | None:
        """Whose rules answer a function of `values`: this execution's or those of `coarser`, as the first tensor in
        nested lists, tuples and dicts has it that descends from the input; None if none does."""
        for value in values:
            if type(value) in _NO_TENSORS:
                continue
            found: Execution | None = None
            if isinstance(value, Tensor):
                marked = self.marked(value) if self.compiling else getattr(value, "_sparkmim_layout", None)
                if marked is None:
                    continue
                if marked.origin is self:
                    return self
                if self.coarser is not None and marked.origin is self.coarser:
                    return self.coarser
                self.layout_as_is(value)  # raises
            elif isinstance(value, (list, tuple)):
                found = self.owner(value)
            elif isinstance(value, dict):
                found = self.owner(value.values())
            if found is not None:
                return found
        return None

    def at_one_scale(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments with the values per image among them as the maps beside them have them."""
        return args, kwargs

    def returned(self, out: Any) -> Any:
        """Return what `coarser` has answered as the network gets it."""
        return out

    # --- sizes --------------------------------------------------------------------------------------------------

    def size_of(self, layout: Layout, axis: int, local: int) -> Any:
        """Return the size of an axis as the network reads it.

        Args:
            layout: of the tensor.
            axis: of it.
            local: its extent.
        """
        whole = self.extent_of_whole(layout, axis, local)
        return local if self.has_plain_sizes() else extent(whole, local, layout.degrees(axis), self.told)

    def has_plain_sizes(self) -> bool:
        """Return whether the network gets sizes of the tensors at hand as ordinary numbers, as it does from Dynamo.

        (It is a method as Dynamo cannot read properties of an execution.)
        """
        return self.told.plain or self.compiling

    def extent_of_whole(self, layout: Layout, axis: int, local: int) -> int:
        """Return the extent on the whole map of an axis that has `local` here, as far as the network knows."""
        return local if self.has_plain_sizes() or axis not in layout.tracked_axes else self._whole(layout, axis, local)

    def _whole(self, layout: Layout, axis: int, local: int) -> int:
        raise NotImplementedError

    def local_extent(self, layout: Layout, axis: int, own: int, whole: int) -> int | None:
        """Return what the extent `whole` of a whole map is here, along an axis whose extent here is `own`.

        None if it is no whole number of positions.
        """
        extent = self.extent_of_whole(layout, axis, own)
        return whole * own // extent if extent and whole * own % extent == 0 else None

    def _answer_untraced(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function whose arguments do not descend from the input, but for sizes that may be among them."""
        given, measured = (args, kwargs), False
        if self.told.read or self.has_plain_sizes():
            factory = None if self.opaque_calls else factory_for(func)
            made = None if factory is None else factory(self, func, *args, **kwargs)
            if made is not None:
                return made
            if not self.has_plain_sizes():
                measured = has_extent(args) or has_extent(kwargs)
                measured = measured or any(hasattr(t, "_sparkmim_measured") for t in tensors_in((args, kwargs)))
                args, kwargs = of_whole_map(args), of_whole_map(kwargs)
        out = func(*args, **kwargs)
        if measured:
            for tensor in tensors_in(out):
                tensor._sparkmim_measured = True  # type: ignore[attr-defined]
        if not self.compiling:
            if self.told.left:
                follow(self.told, func, args, kwargs, out, traced=False)
            if self.told.batches:
                follow_batch(self.told, self.grid_shape[0], func, *given, out)
        return self.note_constant(out, args, kwargs)

    def note_constant(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Remember that a result of tensors from outside the input is traced (see `hides_input`)."""
        found = () if self.compiling else list(tensors_in(result))
        if found:
            given = list(tensors_in((args, kwargs)))
            made = [tensor for tensor in found if self.grid_shape[0] in tensor.shape]
            if made and all(_is_from_outside(value) for value in given):
                for tensor in made:
                    setattr(tensor, MADE_OUTSIDE, True)
            results = [tensor for tensor in found if tensor.grad_fn is not None]
            if not torch.is_grad_enabled() and self.grad_enabled and given and all(map(_is_weight, given)):
                results = found  # a custom function of weights gives them their gradient function afterwards
            if results and not any(self.hides_input(value) for value in given):
                for tensor in results:
                    setattr(tensor, CONSTANT, True)
        return result

    @staticmethod
    def note_constants(tensors: Iterable[Tensor]) -> None:
        """Remember that `tensors` do not vary over the images, although they have a gradient function."""
        for tensor in tensors:
            if tensor.grad_fn is not None:
                setattr(tensor, CONSTANT, True)

    def of_the_batch(self, out: Any) -> Any:
        """Return what was taken over all images: it descends from the input, but does not vary over the images."""
        if not self.compiling:
            self.note_constants(tensors_in(out))
            note_batch(self.told, out)
        return out

    def hides_input(self, tensor: Tensor) -> bool:
        """Return whether a tensor without a layout may yet descend from the input, by ways that are not traced.

        What is computed from parameters under the mode has been noted; what has a gradient function and has not came
        from a scripted module, a custom autograd function or the like. Known only while gradients are on, and not
        while compiling.
        """
        if self.compiling or self.marked(tensor) is not None or tensor.grad_fn is None:
            return False
        return not hasattr(tensor, CONSTANT)

    def any_layout(self, values: Iterable[Any]) -> bool:
        """Return whether a tensor in nested lists, tuples and dicts descends from the input."""
        return self.owner(values) is not None

    def require_map(self, func: Any, x: Tensor, what: str = "its argument") -> Layout:
        """Return the layout of `x`; raise unless it is a map laid out as (batch, channel, *space), padded or not."""
        layout = self.layout(x)
        if layout is None or not layout.is_channels_first(x.ndim):
            raise unsupported(func, f"{what} must be a map laid out as (batch, channel, *space), it is {layout}")
        return layout

    def require_no_padding(self, layout: Layout, func: Any, what: str = "its argument") -> None:
        """Raise if a padding is waiting."""
        if layout.padding is not None:
            if layout.padding.cropped is not None:
                raise layout.padding.cropped.error()
            raise unsupported(func, f"{what} was padded, and only a convolution or pooling can follow a padding")

    # --- what the two executions do differently -----------------------------------------------------------------

    def count_rows(self) -> int:
        """Return the number of rows along the axis of samples."""
        raise NotImplementedError

    def one_row_per_image(self, values: Tensor, axis: int) -> Tensor:
        """Return one row an image of per-image values (which may be repeated)."""
        raise NotImplementedError

    def all_rows(self, values: Tensor, axis: int) -> Tensor:
        """Invert :meth:`one_row_per_image`."""
        raise NotImplementedError

    def reduce_space(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        """Reduce the visible positions of each image by `reduce(x, axes)`; `axes` holds all spatial axes of `x`."""
        raise NotImplementedError

    def reduce_batch(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        """Reduce the visible positions of all images by `reduce(x, axes)`; `axes` holds all but free ones of `x`.

        Of per-image values, there is one an image. What is returned has no samples: it is not marked.
        """
        raise NotImplementedError

    def visible_rows(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the visible positions of a map as samples of a batch norm: `(positions, C, *free axes)`."""
        raise NotImplementedError

    def from_visible_rows(self, rows: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Invert :meth:`visible_rows` of `x`, which has this layout."""
        raise NotImplementedError

    def total_per_image(self, values: Tensor, axis: int) -> Tensor:
        """Add up sums over positions, taken of each row, for each image; `axis` counts rows."""
        raise NotImplementedError

    def ordinary_shape(self, x: Tensor, layout: Layout) -> tuple[int, ...]:
        """Return the shape that `x`, of this layout, has in the ordinary network."""
        tracked = layout.tracked_axes
        return tuple([self._whole(layout, axis, n) if axis in tracked else n for axis, n in enumerate(x.shape)])

    def reshaped_coarser(self, func: Any, x: Tensor, shape: Sequence[Any]) -> Tensor:
        """Return a map reshaped to cells that are larger than what this execution holds together.

        Args:
            shape: on the whole map.

        Raises:
            UnsupportedOperation: where nothing can.
        """
        raise unsupported(func, f"it cuts {tuple(x.shape)} into cells of less than a position; use a larger patch size")

    def where_seen(self, x: Tensor, layout: Layout) -> Tensor:
        """Return `x` with zeros at hidden positions, if it has such."""
        raise NotImplementedError

    def to_map(self, x: Tensor) -> Tensor:
        """Return a map `(batch, C, *space)` as whole images `(B, C, *size)`, zero where hidden."""
        raise NotImplementedError

    def from_map(self, whole: Tensor) -> Tensor:
        """Invert :meth:`to_map`; the result is marked as a map."""
        raise NotImplementedError

    # --- modules run on the whole map ---------------------------------------------------------------------------

    def whole_map(self, value: Tensor) -> Tensor:
        """Return a map of the input as whole images; other tensors as they are."""
        owner = self.owner([value])
        if owner is not self:
            return value if owner is None else owner.whole_map(value)
        what = "an argument of a module run on the whole map"
        self.require_no_padding(self.require_map(None, value, what), None, what)
        return self.to_map(value)

    def visible_part(self, whole: Any) -> Tensor:
        """Invert :meth:`whole_map`; the result is marked."""
        batch, *grid = self.grid_shape
        shape = tuple(whole.shape) if isinstance(whole, Tensor) else ()
        size = shape[2:]
        if len(size) != len(grid) or shape[0] != batch or not self.has_grid(size):
            raise UnsupportedOperation(
                f"a module run on the whole map must return maps ({batch}, channel, *space) that a grid "
                f"of {grid} patches divides, not {shape or type(whole).__name__}. {WAYS_OUT}"
            )
        return self.from_map(whole)

    def has_grid(self, size: Sequence[int]) -> bool:
        """Return whether this execution knows what is visible of a map of spatial `size`."""
        return all(s % g == 0 for s, g in zip(size, self.grid_shape[1:], strict=True))

    grid_shape: tuple[int, ...]
    """Shape of the mask: images, and patches along each spatial axis."""

    # ------------------------------------------------------------------------------------------------------------

    def on_one_row_per_image(self, func: Callable[..., Tensor], values: Tensor, layout: Layout) -> Tensor:
        """Compute `func` of per-image values once an image; the batch axis must stay where it is."""
        out = func(self.one_row_per_image(values, layout.batch))
        return self.mark(self.all_rows(out, layout.batch), layout)


def _is_from_outside(tensor: Tensor) -> bool:
    """Return whether a tensor surely does not descend from the input, as the output of a scripted module may."""
    return tensor.ndim == 0 or isinstance(tensor, torch.nn.Parameter) or hasattr(tensor, MADE_OUTSIDE)


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) or hasattr(tensor, CONSTANT)


def _no_state() -> None:
    """Save a tensor without its layout, as its plain values: also to files that are loaded with `weights_only`."""
