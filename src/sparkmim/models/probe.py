"""Run a network on blank images without computing anything, and leave it as it was.

Shapes and the autograd graph are all that probing needs, and meta tensors have both. A network that meta tensors do not
pass through (one that reads values, or converts to NumPy) runs on real ones.
"""

from __future__ import annotations

import math
import random
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.eager import force_eager
from ..utils.modules import in_mode, preserved_attributes, preserved_buffers

Result = TypeVar("Result")

_NEEDS_VALUES = re.compile("meta|numpy|data pointer|storage|item\\(\\)", re.IGNORECASE)

CONTAINERS = (dict, OrderedDict, list, set, deque)

MOST_PIXELS = 1 << 20
"""Of an image that is computed because meta tensors turned out not to do."""


class MustComputeError(Exception):
    """Raised where a network turns out to need real tensors, for an image that is too large for those."""


class MadeParametersError(ValueError):
    """Raised for a network that makes parameters in its forward pass."""


class Probe:
    """Runs a network on blank images.

    Args:
        module: the network.
        in_chans: channels of the images.

    Attributes:
        computes: whether the network turned out to need real tensors, so that probing costs what running it does.
    """

    def __init__(self, module: nn.Module, in_chans: int) -> None:
        self.module, self.in_chans = module, in_chans
        # A scripted part keeps its tensors where they cannot be exchanged.
        self.computes = any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())
        self.failed: tuple[int, ...] | None = None  # size of the smallest image that a run on meta tensors failed for

    def __call__(
        self, size: Sequence[int], use: Callable[[Tensor, Mapping[int, str]], Result], training: bool = False
    ) -> Result:
        """Return what `use` makes of a blank image, with gradients switched on.

        Modes, buffers, attributes, caches and generators of random numbers are restored afterwards.

        Args:
            size: spatial size of the image.
            use: takes an image `(1, in_chans, *size)` that requires gradients, and the name of each parameter by its
                id. Both may be on the device `meta`, as may all parameters and buffers of the network while it runs.
            training: run it in training mode, not in evaluation mode.

        Raises:
            MustComputeError: if the image is large and the network turns out to need a real one.
            MadeParametersError: if the network makes parameters in its forward pass.
            Exception: what the network raises.
        """
        if not self.computes and self._parameter().device.type != "meta":
            try:
                return self._run(size, use, meta=True, training=training)
            except Exception as error:
                if not needs_values(error):
                    if self.failed is None or math.prod(size) < math.prod(self.failed):
                        self.failed = tuple(size)
                    raise
                self.computes = True
                if math.prod(size) > MOST_PIXELS:
                    raise MustComputeError(f"{type(self.module).__name__} needs real tensors ({error})") from error
        return self._run(size, use, meta=False, training=training)

    def failed_for_meta(self, use: Callable[[Tensor, Mapping[int, str]], object], size: Sequence[int]) -> bool:
        """Repeat the run that failed with real tensors; return whether it succeeds, and have all later ones use them.

        Args:
            use: of the run.
            size: of an image that may be computed, if all that failed are too large.

        Raises:
            Exception: what the network raises then, which says more.
        """
        if self.computes or self.failed is None:
            return False
        self._run(self.failed if math.prod(self.failed) <= MOST_PIXELS else size, use, meta=False)
        self.computes = True
        return True

    def run_both(
        self, size: Sequence[int], use: Callable[[Tensor, Mapping[int, str]], Result]
    ) -> tuple[Result, Result]:
        """Return what `use` makes of a blank image on the device meta, and of a real one."""
        return self._run(size, use, meta=True), self._run(size, use, meta=False)

    def _parameter(self) -> Tensor:
        parameters = list(self.module.parameters())
        return next((p for p in parameters if p.is_floating_point()), parameters[0])

    def _run(
        self,
        size: Sequence[int],
        use: Callable[[Tensor, Mapping[int, str]], Result],
        meta: bool,
        training: bool = False,
    ) -> Result:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if "torch._dynamo" in sys.modules:  # else nothing has been compiled
                stack.enter_context(force_eager())
            stack.enter_context(_preserved_generators(self.module))
            stack.enter_context(in_mode(self.module, training=training))
            stack.enter_context(preserved_attributes(self.module))
            parameter = self._parameter()
            stack.enter_context(nullcontext() if meta else preserved_buffers(self.module, parameters=training))
            stack.enter_context(nullcontext() if meta else _all_trainable(self.module))
            stack.enter_context(untouched(self.module))
            if meta:
                _move_to_meta(self.module)
                stack.enter_context(torch.device("meta"))
                stack.enter_context(_NormsOfNothing())
            image = torch.zeros(
                1, self.in_chans, *size, dtype=parameter.dtype, device="meta" if meta else parameter.device
            )
            names = {id(p): name for name, p in self.module.named_parameters()}
            # Not the leaf itself: networks may write into their input.
            result = use(image.requires_grad_().clone(), names)
            self._require_no_parameters_made(set(names.values()))
            return result

    def _require_no_parameters_made(self, names: set[str]) -> None:
        made = [name for name, _ in self.module.named_parameters() if name not in names]
        if made:
            raise MadeParametersError(
                f"{type(self.module).__name__} makes parameters in its forward pass ({', '.join(made[:4])}), which no "
                "optimizer would know; run the network once on an image, network(torch.zeros(1, channels, *size)), and "
                "pass it then"
            )


@contextmanager
def _all_trainable(module: nn.Module) -> Iterator[None]:
    """Have frozen parameters require gradients: what depends on them is asked as well."""
    frozen = [p for p in module.parameters() if p.is_floating_point() and not (p.requires_grad or p.is_inference())]
    for parameter in frozen:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def needs_values(error: BaseException) -> bool:
    """Return whether an error of a run on meta tensors may be owed to them."""
    return isinstance(error, NotImplementedError) or _NEEDS_VALUES.search(f"{type(error)}{error}") is not None


class _NormsOfNothing(TorchFunctionMode):
    """Answers batch norm and instance norm by one operation, which has the same shape and graph.

    On meta tensors torch decomposes them into dozens, which take half the time of a pass.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm or func is F.instance_norm:
            call = dict(zip(("input", "running_mean", "running_var", "weight", "bias"), args, strict=False))
            call |= kwargs or {}
            x, weight, bias = call["input"], call.get("weight"), call.get("bias")
            if x.ndim > 2 and isinstance(weight, Tensor) and isinstance(bias, Tensor):
                shape = (1, x.shape[1], *[1] * (x.ndim - 2))
                return torch.addcmul(bias.view(shape), x, weight.view(shape))
        return func(*args, **(kwargs or {}))


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Restore on exit the attributes of all submodules, and the caches of the files that define them."""
    saved = [(vars(part), dict(vars(part))) for part in module.modules()]
    files = {sys.modules[name] for part in module.modules() if (name := type(part).__module__) in sys.modules}
    files = {file for file in files if not file.__name__.startswith("torch.")}
    shared = [value for file in files for name, value in vars(file).items() if not name.startswith("__")]
    shared += [value for kind in {type(part) for part in module.modules()} for value in vars(kind).values()]
    held = [value for attributes, _ in saved for value in attributes.values()] + shared
    contents = [(value, type(value)(value)) for value in held if type(value) in CONTAINERS]
    caches = [(value, value.cache_info().misses) for value in shared if _is_cache(value)]
    try:
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)
        for value, content in contents:
            if isinstance(value, (list, deque)):
                if len(value) != len(content) or any(a is not b for a, b in zip(value, content, strict=True)):
                    value.clear()
                    value.extend(content)
            elif isinstance(value, set):
                value.intersection_update(content)
                value.update(content)
            elif len(value) != len(content) or any(content.get(k, value) is not v for k, v in value.items()):
                value.clear()
                value.update(content)
        for cache, misses in caches:
            if cache.cache_info().misses != misses:
                cache.cache_clear()


def _is_cache(value: Any) -> bool:
    """Return whether `value` is a function that functools.lru_cache remembers the results of."""
    return callable(getattr(type(value), "cache_clear", None)) and callable(getattr(type(value), "cache_info", None))


@contextmanager
def _preserved_generators(module: nn.Module) -> Iterator[None]:
    """Restore the states of the generators of Python, NumPy and torch on exit."""
    devices = {p.device for p in module.parameters() if p.device.type not in ("cpu", "meta")}
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), None if numpy is None else numpy.random.get_state()
    by_type: dict[str, list[torch.device]] = {}
    for device in devices:
        by_type.setdefault(device.type, []).append(device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=()))
        for kind, some in by_type.items():
            stack.enter_context(torch.random.fork_rng(devices=some, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def _move_to_meta(module: nn.Module) -> None:
    """Replace all tensors of a network by meta tensors; within :func:`untouched`, which brings them back."""
    twins: dict[int, Tensor] = {}

    def twin(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in twins:
                meta = torch.empty_like(value.detach(), device="meta")
                if isinstance(value, nn.Parameter):  # frozen ones too, as in _all_trainable
                    trainable = value.is_floating_point() or value.is_complex()
                    meta = nn.Parameter(meta, requires_grad=trainable)
                twins[id(value)] = meta
            return twins[id(value)]
        if type(value) in (list, tuple):
            parts = [twin(part) for part in value]
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
        return value

    for part in module.modules():
        attributes = vars(part)
        for name, value in attributes.items():
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    value[key] = twin(tensor)
            elif type(value) is dict and name != "_modules":
                attributes[name] = {key: twin(item) for key, item in value.items()} if _holds_tensors(value) else value
            else:
                attributes[name] = twin(value)


def _holds_tensors(values: dict[Any, Any]) -> bool:
    return any(isinstance(value, (Tensor, list, tuple)) for value in values.values())
