"""Answer element-wise noise by its expectation, so that runs that draw it in different orders can be compared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .checkpointing import recompute_under
from .functions import functions_named

_DROPOUT = functions_named(
    "dropout dropout_ dropout1d dropout2d dropout3d feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ "
    "feature_alpha_dropout feature_alpha_dropout_ native_dropout"
)
_RRELU = functions_named("rrelu rrelu_")

_MEANS: dict[Any, Callable[..., float]] = {
    **dict.fromkeys(functions_named("rand rand_like"), lambda: 0.5),
    **dict.fromkeys(functions_named("randn randn_like"), lambda: 0.0),
    Tensor.uniform_: lambda low=0.0, high=1.0: (low + high) / 2,
    Tensor.normal_: lambda mean=0.0, std=1.0: mean,
    Tensor.exponential_: lambda lambd=1.0: 1 / lambd,
}
"""The expectation of one value, from the parameters of the distribution where a function takes them."""

_OF_SIZES = functions_named("rand randn normal randint")
_LIKE = functions_named("rand_like randn_like")
_IN_PLACE = (Tensor.uniform_, Tensor.normal_, Tensor.exponential_)
_BERNOULLI = (torch.bernoulli, Tensor.bernoulli, Tensor.bernoulli_)


class _Here(threading.local):
    """What this thread is doing: how many modes it has entered, and whether a rule draws noise within images."""

    modes = 0
    within_images = False


_here = _Here()


def is_expected(value: Tensor) -> bool:
    """Return whether noise of the shape of `value` is answered by its expectation."""
    return _here.modes > 0 and _varies_within_images(value)


@contextmanager
def noise_within_images() -> Iterator[None]:
    """Have what a rule draws be taken for noise within images, although its shape may be that of a number an image."""
    before, _here.within_images = _here.within_images, True
    try:
        yield
    finally:
        _here.within_images = before


class ExpectedNoise(TorchFunctionMode):
    """Replaces noise that varies within an image by its expectation; dropout is off, RReLU has its mean slope.

    Packed patches, whole maps and cropped images draw such noise in different orders, so that no two of them could be
    compared. Noise that is one number an image (stochastic depth) is drawn as it is: in the same order by all.

    Enter it before an execution: what the execution's rules call is then answered, also where a checkpoint computes it
    again in backward.
    """

    def __enter__(self) -> Any:
        _here.modes += 1
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        _here.modes -= 1
        super().__exit__(*raised)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            recompute_under(self._again, func)
        if func in _OF_SIZES:
            out = func(*args, **kwargs)
            return _filled(func, out, args, kwargs) if _varies_within_images(out) else out
        answer = _answer(func)
        value = args[0] if args else kwargs.get("input")
        if answer is None or not isinstance(value, Tensor) or not _varies_within_images(value):
            return func(*args, **kwargs)
        return answer(func, *args, **kwargs)

    def _again(self) -> ExpectedNoise:
        return self


def _answer(func: Any) -> Callable[..., Any] | None:
    if func in _DROPOUT:
        return _undropped
    if func in _RRELU:
        return _mean_slope
    if func is F.gumbel_softmax:
        return _no_gumbel
    if func in _LIKE:
        return _mean_like
    if func in _IN_PLACE:
        return _mean_in_place
    return _probability if func in _BERNOULLI else None


def _varies_within_images(value: Tensor) -> bool:
    """Return whether a tensor is a map, or holds more than a number for each entry of its first axis."""
    layout = getattr(value, "_sparkmim_layout", None)
    is_map = _here.within_images or (layout is not None and layout.is_map)
    return is_map or any(extent != 1 for extent in value.shape[1:])


def _filled(func: Any, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Write the expectation into what a function of a shape has drawn."""
    if func is torch.normal:
        mean = args[0] if args else kwargs["mean"]
        return out.copy_(mean) if isinstance(mean, Tensor) else out.fill_(mean)
    if func is torch.randint:
        numbers = [a for a in args if isinstance(a, int)]
        low, high = kwargs.get("low", numbers[0] if len(numbers) > 1 else 0), kwargs.get("high", [*numbers, 0][-1])
        return out.fill_((low + high - 1) // 2)
    return out.fill_(_MEANS[func]())


def _undropped(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _not_training(func, input, args, kwargs, {"p": 0.5})


def _mean_slope(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _not_training(func, input, args, kwargs, {"lower": 1 / 8, "upper": 1 / 3})


def _not_training(
    func: Any, input: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], parameters: dict[str, float]
) -> Any:
    """Call a function with `training=False`; in place or not stays as it is.

    Args:
        func: the function.
        input: its tensor.
        args, kwargs: its other arguments.
        parameters: names and defaults of those before `training` (which torch's own functions call `train`).
    """
    kwargs = {name: value for name, value in kwargs.items() if name not in ("training", "train")}
    before = [kwargs.pop(name, default) for name, default in list(parameters.items())[len(args) :]]
    count = len(parameters)
    return func(input, *args[:count], *before, False, *args[count + 1 :], **kwargs)


def _no_gumbel(
    func: Any, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """Return the softmax without noise; hard, its largest category, with the gradients of the softmax."""
    soft = (logits / tau).softmax(dim)
    if not hard:
        return soft
    largest = torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return largest - soft.detach() + soft


def _mean_like(func: Any, input: Tensor, **kwargs: Any) -> Tensor:
    return torch.full_like(input, _MEANS[func](), **kwargs)


def _mean_in_place(func: Any, input: Tensor, *args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
    names = {"from": "low", "to": "high"}
    return input.fill_(_MEANS[func](*args, **{names.get(name, name): value for name, value in kwargs.items()}))


def _probability(func: Any, input: Tensor, p: Any = None, *, generator: Any = None, out: Any = None) -> Tensor:
    """Return the probabilities; `Tensor.bernoulli_(p)` writes them into its tensor."""
    if func is Tensor.bernoulli_:
        p = 0.5 if p is None else p
        return input.copy_(p) if isinstance(p, Tensor) else input.fill_(p)
    return input.clone() if p is None else torch.full_like(input, p)
