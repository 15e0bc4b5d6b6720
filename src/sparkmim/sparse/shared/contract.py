"""Products of tensors summed over axes: `einsum`, `matmul`, `bmm`, `tensordot` and their like.

Every axis of every operand has a label, as in einsum. Where space stays, a product acts on each position alone
(weights from either side, bilinear forms, gates). Where all of space is summed, it is a statistic of an image
(global context, Gram matrices, the channel attention of XCiT). Labels tell the two from products that relate positions
to one another, as attention does: there two operands hold space under different labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OUTSIDER, unsupported
from ..execution import Execution
from ..functions import functions_named
from ..layout import Layout
from ..strides import UNKNOWN, Note, note_of_tensor
from ..totals import note_total
from .calls import call
from .pointwise import require_no_input

Labels = Sequence[Any]
"""What each axis of a tensor is called; None for one of extent 1 that broadcasts."""

_ATTENTION = (
    "it relates positions to one another, as attention does, and what a visible position should see of hidden ones is "
    "a choice: register a rule that lets it see the visible ones (docs: Operations, Attention), or use dense_fallback"
)


class Meaning(NamedTuple):
    """What a product of tensors of the input is.

    Attributes:
        layout: of the result.
        sums_space: whether all of space is summed.
    """

    layout: Layout
    sums_space: bool


def meaning_of(execution: Execution, func: Any, operands: Sequence[tuple[Tensor, Labels]], result: Labels) -> Meaning:
    """Return what a product means; raise where it mixes images, or some positions and not all.

    Args:
        operands: tensors and the labels of their axes.
        result: labels of the axes of the result.
    """
    traced = [(t, labels, layout) for t, labels in operands if (layout := execution.layout(t)) is not None]
    for _, _, layout in traced:
        execution.require_no_padding(layout, func)
    lead, labels, first = next((row for row in traced if row[2].is_map), traced[0])
    batch = labels[first.batch]
    space = tuple(labels[axis] for axis in first.space)
    for tensor, own, layout in traced:
        if own[layout.batch] != batch:
            raise unsupported(func, "it multiplies samples of one tensor with those of another")
        if layout.is_map and tuple(own[axis] for axis in layout.space) != space:
            raise unsupported(func, _ATTENTION)
        if layout.is_map and (
            layout.flattened != first.flattened
            or any(tensor.shape[a] != lead.shape[b] for a, b in zip(layout.space, first.space, strict=True))
        ):
            raise unsupported(func, "it multiplies maps of different size")
        tracked = [own[axis] for axis in layout.tracked_axes]
        free = [own[axis] for axis in range(tensor.ndim) if axis not in layout.tracked_axes]
        if len(set(tracked)) < len(tracked) or None in tracked or {batch, *space} & set(free):
            raise unsupported(func, f"it multiplies samples or positions with other axes ({layout})")
    for tensor, own in operands:
        if execution.layout(tensor) is None and {batch, *space} & set(own):
            raise unsupported(func, f"{OUTSIDER}, of shape {tuple(tensor.shape)}, varies over samples or positions")
    if list(result).count(batch) != 1:
        raise unsupported(func, "it sums over samples, and an image must not depend on the others of its batch")
    kept = [label for label in space if label in result]
    if kept and len(kept) < len(space):
        raise unsupported(
            func, "it sums over one spatial axis and not the others, and rows and columns run through hidden patches"
        )
    at = list(result).index
    if not kept:
        return Meaning(first.per_image(at(batch)), bool(space))
    moved = tuple(at(label) for label in space)
    return Meaning(Layout(first.origin, at(batch), moved, flattened=first.flattened), False)


def contract(
    execution: Execution,
    func: Any,
    compute: Callable[..., Tensor],
    operands: Sequence[tuple[Tensor, Labels]],
    result: Labels,
) -> Tensor:
    """Return `compute` of the operands, marked; where it sums over space, over an image's visible positions."""
    meaning = meaning_of(execution, func, operands, result)
    tensors = [tensor for tensor, _ in operands]
    if not meaning.sums_space:
        return execution.mark(compute(*tensors), meaning.layout)
    seen = []
    for tensor in tensors:
        layout = execution.layout(tensor)
        seen.append(tensor if layout is None or not layout.is_map else execution.where_seen(tensor, layout))
    total = execution.total_per_image(compute(*seen), meaning.layout.batch)
    note_total(execution, "sum", None, total)
    return execution.mark(total, meaning.layout)


# --- products of matrices -------------------------------------------------------------------------------------------


@Execution.register(*functions_named("matmul bmm"), torch.Tensor.__matmul__)
def matmul(execution: Execution, func: Any, input: Tensor, other: Tensor) -> Tensor:
    return _matmul(execution, func, input, other)


@Execution.register(torch.Tensor.__rmatmul__)
def reflected_matmul(execution: Execution, func: Any, input: Tensor, other: Tensor) -> Tensor:
    return _matmul(execution, func, other, input)


def _matmul(execution: Execution, func: Any, a: Tensor, b: Tensor) -> Tensor:
    before = max(a.ndim, b.ndim, 2) - 2
    common = list(range(before))
    a_labels: list[Any] = ["sum"] if a.ndim == 1 else [*common[before - (a.ndim - 2) :], "row", "sum"]
    b_labels: list[Any] = ["sum"] if b.ndim == 1 else [*common[before - (b.ndim - 2) :], "sum", "column"]
    result = [*common, *(["row"] if a.ndim > 1 else []), *(["column"] if b.ndim > 1 else [])]
    return contract(execution, func, torch.matmul, _broadcast(execution, [(a, a_labels), (b, b_labels)]), result)


def _broadcast(execution: Execution, operands: Sequence[tuple[Tensor, Labels]]) -> list[tuple[Tensor, Labels]]:
    """Take out the labels of axes along which a tensor from outside the input is constant.

    These have an extent of 1, or have been expanded over samples, as in `weight.expand(len(x), -1, -1)`.
    """
    batches = {labels[layout.batch] for x, labels in operands if (layout := execution.layout(x)) is not None}
    found: list[tuple[Tensor, Labels]] = []
    for tensor, labels in operands:
        x, own = tensor, list(labels)
        if execution.layout(tensor) is None:
            for axis, label in enumerate(labels):
                if label in batches and x.stride(axis) == 0:
                    x = x.narrow(axis, 0, 1)
                if x.shape[axis] == 1 and (label in batches or isinstance(label, int)):
                    own[axis] = None
        found.append((x, own))
    return found


@Execution.register(*functions_named("baddbmm"))
def baddbmm(
    execution: Execution, func: Any, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    product = call(execution, torch.mul, _matmul(execution, func, batch1, batch2), alpha)
    return call(execution, torch.add, product, call(execution, torch.mul, input, beta))  # type: ignore[no-any-return]


@Execution.register(torch.tensordot)
def tensordot(execution: Execution, func: Any, a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> Tensor:
    if out is not None or isinstance(dims, Tensor):
        raise unsupported(func, "its rule knows neither out= nor a tensor of axes")
    if isinstance(dims, int):
        dims = (list(range(a.ndim - dims, a.ndim)), list(range(dims)))
    summed = [[axis % x.ndim for axis in axes] for x, axes in zip((a, b), dims, strict=True)]
    a_labels: list[Any] = [("a", axis) for axis in range(a.ndim)]
    b_labels: list[Any] = [("b", axis) for axis in range(b.ndim)]
    for number, (left, right) in enumerate(zip(*summed, strict=True)):
        a_labels[left] = b_labels[right] = number
    result = [label for label in (*a_labels, *b_labels) if isinstance(label, tuple)]

    def compute(a: Tensor, b: Tensor) -> Tensor:
        return torch.tensordot(a, b, dims=summed)

    return contract(execution, func, compute, [(a, a_labels), (b, b_labels)], result)


@Execution.register(torch.einsum)
def einsum(execution: Execution, func: Any, equation: str, *operands: Any) -> Tensor:
    tensors: Sequence[Tensor] = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    if not isinstance(equation, str):
        raise unsupported(func, "its rule knows equations of letters, as 'bchw,dc->bdhw', and no lists of numbers")
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = [_letters(term, tensor.ndim) for term, tensor in zip(inputs.split(","), tensors, strict=True)]
    if any(term is None for term in terms) or (not arrow and "." in inputs):
        raise unsupported(func, f"its rule does not understand '{equation}' for these tensors")
    everything = [label for term in terms for label in term or ()]
    numbers = sorted((label for label in set(everything) if isinstance(label, int)), reverse=True)
    if arrow:
        result: list[Any] = []
        for letter in output.replace("...", "."):
            result += numbers if letter == "." else [letter]
    else:
        result = sorted(label for label in set(everything) if everything.count(label) == 1)

    def compute(*tensors: Tensor) -> Tensor:
        return torch.einsum(equation, *tensors)

    labeled = [(tensor, term or ()) for tensor, term in zip(tensors, terms, strict=True)]
    out = contract(execution, func, compute, _broadcast(execution, labeled), result)
    return execution.memory.note(out, _note_of_einsum(execution, equation, tensors))


def _note_of_einsum(execution: Execution, equation: str, tensors: Sequence[Tensor]) -> Note | None:
    """Return what to note of a result, whose axes need not lie in memory in their order."""
    if execution.compiling or any(execution.memory.noted(tensor) is not None for tensor in tensors):
        return UNKNOWN
    layouts = [execution.layout(tensor) for tensor in tensors]
    shapes = [
        t.shape if own is None else execution.ordinary_shape(t, own) for t, own in zip(tensors, layouts, strict=True)
    ]
    return note_of_tensor(torch.einsum(equation, *[torch.empty(shape, device="meta") for shape in shapes]))


def _letters(term: str, ndim: int) -> list[Any] | None:
    """Return the labels of a term of einsum; those of an ellipsis are numbers, counted from the right."""
    before, dots, behind = term.partition("...")
    if not dots:
        return list(term) if len(term) == ndim else None
    count = ndim - len(before) - len(behind)
    return [*before, *range(count - 1, -1, -1), *behind] if count >= 0 else None


# --- other products -------------------------------------------------------------------------------------------------


@Execution.register(F.bilinear, torch.bilinear)
def bilinear(
    execution: Execution, func: Any, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return bilinear forms of the last axes of two tensors, position by position."""
    require_no_input(execution, func, weight, bias)
    common = list(range(input1.ndim - 1))
    operands = [(input1, [*common, "first"]), (input2, [*common, "second"])]
    meaning = _of_free_axes(execution, func, operands, [*common, "form"])
    return execution.mark(func(input1, input2, weight, bias), meaning.layout)


@Execution.register(torch.cdist)
def cdist(execution: Execution, func: Any, x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    """Return the distances of vectors along the last axis, to those of a codebook at each position."""
    before = max(x1.ndim, x2.ndim) - 2
    common = list(range(before))
    labels = [[*common[before - (x.ndim - 2) :], rows, "vector"] for x, rows in ((x1, "row"), (x2, "column"))]
    operands = _broadcast(execution, list(zip((x1, x2), labels, strict=True)))
    meaning = _of_free_axes(execution, func, operands, [*common, "row", "column"])
    return execution.mark(torch.cdist(operands[0][0], operands[1][0], p), meaning.layout)


def _of_free_axes(
    execution: Execution, func: Any, operands: Sequence[tuple[Tensor, Labels]], result: Labels
) -> Meaning:
    """Return the meaning of a product that is not linear in what it sums over, which must not be space."""
    meaning = meaning_of(execution, func, operands, result)
    if meaning.sums_space:
        raise unsupported(func, "it takes positions for the components of vectors")
    return meaning
