"""Check that a network works on visible patches: four properties, in evaluation and training mode.

Each is compared in values, gradients and running statistics.

1. *identity*: with nothing hidden, the feature maps equal the ordinary network's.
2. *crop*: with a rectangle of patches visible, they equal the ordinary network's on the cropped image. It takes no
   oracle and tests halos, fills and statistics at once. (The rectangle's sides are multiples of the total stride.)
3. *leak*: hidden pixels, even NaN, change nothing.
4. *oracle*: on random masks, they equal the masked-dense reference's.

5. *hidden*, where positions of a map hold several patches: a network and its twin, which is the same function but has
   other numbers at hidden positions (:mod:`sparkmim.sparse.twin`), are the same on random masks too, packed and in the
   reference. Those two could be wrong alike.

These are compared on small images. With image sizes given, another one is cheap enough to be compared on those:

6. *size*: identity in values, in evaluation mode and float32. A network may compute something else on large images.

Noise within images is answered by its expectation (:class:`~sparkmim.sparse.expectation.ExpectedNoise`), since no two
of these runs draw it in the same order; noise that is a number an image is drawn alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..utils.modules import preserved_attributes
from ..utils.random import seed_everything, seeded
from .check_report import FLOOR, GRADIENT_TOLERANCE, MOST_ROUNDING, TOLERANCE, CheckReport, CheckResult
from .dense.execution import MaskedDenseExecution
from .errors import UnsupportedOperation
from .execution import Execution
from .expectation import ExpectedNoise
from .grid import PatchGrid, mask_at
from .packed.execution import SparseExecution
from .prepared import Features, convert, prepare
from .run import run
from .twin import GarbageAfterConvolutions

FEWEST_PIXELS = 8192
"""Of the images of a check, by default."""


class _Pass(NamedTuple):
    """What one pass over a network gives: maps, gradients of parameters and input, and running statistics by name.

    Statistics that were not updated, as they are beside the maps, are not among them.
    """

    maps: list[Tensor]
    gradients: list[Tensor]
    statistics: dict[str, Tensor]


def check(
    network: nn.Module,
    features: Features | None = None,
    *,
    patch_size: Sequence[int],
    stride: Sequence[int] | None = None,
    in_chans: int = 3,
    grid: Sequence[int] | None = None,
    batch: int | None = None,
    modes: Sequence[str] = ("eval", "train"),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    shapes: Sequence[Sequence[int]] = (),
) -> CheckReport:
    """Check the properties of a network on random images.

    The network is changed: converted to `dtype`, parameters that are constant (a layer scale of 1e-6 would hide what
    its branch does) and running statistics randomized, element-wise dropout switched off. Pass a copy.

    Args:
        network: the module.
        features: calls it and returns its feature maps; itself by default.
        patch_size: pixels of a patch along each axis.
        stride: the network's total stride, if the patch size is not a multiple of it.
        in_chans: channels of the images.
        grid: patches along each axis, for images of at least 2 times patch size and stride; by default 3 x 4 times,
            12 times for signals.
        batch: images, each with a mask of its own; by default two, or more if patches are small: batch norms of a few
            positions make large differences of rounding.
        modes: of "eval" and "train".
        dtype: precision; the tolerance depends on it, or on a lower one that the network itself converts maps to. A
            network that does not run in float64 is checked in float32; of one that computes in 16 bits the conversions
            are left out.
        seed: of images, masks and randomized parameters.
        shapes: numbers of images and their sizes, `(images, *size)`, on each of which "size" is compared too.

    Raises:
        ValueError: for a grid that does not fit the stride, or a size that does not, or a network that does not run on
            the images.
    """
    unit = [math.lcm(p, s) // p for p, s in zip(patch_size, stride or patch_size, strict=True)]
    first = 12 if len(unit) == 1 else 3  # a variance needs more than one visible position of a signal
    grid = tuple(grid or [n * u for n, u in enumerate(unit, start=first)])
    if any(g % u or g < 2 * u for g, u in zip(grid, unit, strict=True)):
        raise ValueError(f"a grid of {grid} patches must hold multiples of {tuple(unit)}, at least twice")
    for _, *size in shapes:
        require_multiples(size, [p * u for p, u in zip(patch_size, unit, strict=True)])
    features = network if features is None else features
    with seeded(seed, network):
        generator = torch.Generator().manual_seed(seed)
        size = [g * p for g, p in zip(grid, patch_size, strict=True)]
        batch = batch or max(2, math.ceil(FEWEST_PIXELS / math.prod(size)))
        images = _images((batch, in_chans, *size), network, dtype, generator)
        prepared = prepare(network, features, images, dtype, generator)
        images = images.to(prepared.dtype)
        runner = _Runner(network, features, images, patch_size, unit, seed)
        results = []
        for mode in modes:
            network.train(mode == "train")
            runner.kept.clear()
            names = [name for name in _PROPERTIES if name != "hidden" or any(u > 1 for u in unit)]
            with prepared.precision(prepared.dtype):
                results += [_compared(name, mode, runner, prepared.computed) for name in names]
        with prepared.precision(torch.float32):
            results += [_at_size(network, features, shape, in_chans, patch_size, seed) for shape in shapes]
    return CheckReport(results, prepared.computed)


def require_multiples(size: Sequence[int], unit: Sequence[int]) -> None:
    """Raise unless images of a size divide into patches and into positions of all maps.

    Raises:
        ValueError: with the nearest size that does.
    """
    if len(size) != len(unit) or any(s < 1 or s % u for s, u in zip(size, unit, strict=True)):
        sides = size if len(size) == len(unit) else unit
        nearest = " x ".join(str(max(1, round(s / u)) * u) for s, u in zip(sides, unit, strict=True))
        raise ValueError(
            f"image size {' x '.join(map(str, size))} is not divisible by {' x '.join(map(str, unit))}, as patches and "
            f"the total stride need; use {nearest}, for example"
        )


def _images(shape: Sequence[int], network: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    images = torch.randn(*shape, generator=generator, dtype=dtype)
    return images.to(next(network.parameters()).device)


def _compared(name: str, mode: str, runner: _Runner, computed: torch.dtype) -> CheckResult:
    """Return the outcome of a property, of the network in its present mode."""
    tolerance = TOLERANCE[computed], GRADIENT_TOLERANCE[computed]
    try:
        ours, wanted = _PROPERTIES[name](runner, torch.Generator().manual_seed(runner.seed + 1))
    except UnsupportedOperation as error:
        return CheckResult(name, mode, *tolerance, error=str(error))
    result = CheckResult(name, mode, *tolerance, *_deviations(ours, wanted, computed))
    if computed == torch.float64 and name != "leak" and not result.passed and result.deviation < MOST_ROUNDING:
        _, again = _PROPERTIES[name](runner.rounded(), torch.Generator().manual_seed(runner.seed + 1))
        return replace(result, rounding=_deviations(again, wanted, computed))
    if math.isinf(result.deviation) and not runner.finite_by_itself():
        return replace(result, error=_NOT_FINITE.format(mode="training" if mode == "train" else "evaluation"))
    return result


def _deviations(ours: _Pass, wanted: _Pass, computed: torch.dtype) -> tuple[float, float, float]:
    """Return the deviations of feature maps, gradients and running statistics."""
    return (
        _deviation(ours.maps, wanted.maps),
        _deviation(ours.gradients, wanted.gradients, floor=FLOOR[computed]),
        _deviation(list(ours.statistics.values()), [wanted.statistics[name] for name in ours.statistics]),
    )


_NOT_FINITE = (
    "the network by itself, without patches, gives NaN or infinite values or gradients on random images in {mode} mode "
    "(0 / 0 in an image that stochastic depth has set to zero, for example), so that there is nothing to compare with"
)


@torch.no_grad()
def _at_size(
    network: nn.Module, features: Features, shape: Sequence[int], in_chans: int, patch_size: Sequence[int], seed: int
) -> CheckResult:
    """Compare feature maps with nothing hidden, on images of a size, in evaluation mode and float32."""
    convert(network, torch.float32)
    network.eval()
    count, *size = shape
    tolerance = TOLERANCE[torch.float32], GRADIENT_TOLERANCE[torch.float32]
    images = _images((count, in_chans, *size), network, torch.float32, torch.Generator().manual_seed(seed))
    visible = torch.ones(count, *[s // p for s, p in zip(size, patch_size, strict=True)], dtype=torch.bool)
    grid = PatchGrid(visible.to(images.device), math.prod(visible.shape[1:]))
    with ExpectedNoise():
        try:
            ours, _ = _maps(SparseExecution, grid, network, images.clone(), features)
        except UnsupportedOperation as error:
            return CheckResult("size", "eval", *tolerance, error=str(error), shape=tuple(shape))
        wanted = _as_list(features(images))
    finite = all(bool(t.isfinite().all()) for t in wanted)
    why = None if finite else _NOT_FINITE.format(mode="evaluation")
    return CheckResult("size", "eval", *tolerance, _deviation(ours, wanted), 0.0, 0.0, why, tuple(shape))


class _Runner:
    """Runs a network in one way or another, always from the same state."""

    def __init__(
        self,
        network: nn.Module,
        features: Features,
        images: Tensor,
        patch_size: Sequence[int],
        unit: Sequence[int],
        seed: int,
    ) -> None:
        self.network, self.features, self.images, self.seed = network, features, images, seed
        self.patch_size, self.unit = tuple(patch_size), tuple(unit)
        self.grid = tuple(s // p for s, p in zip(images.shape[2:], patch_size, strict=True))
        self.kept: dict[type[Execution], tuple[Tensor, _Pass]] = {}

    def on_visible(self, visible: Tensor, kind: type[Execution]) -> _Pass:
        """Run one pass on the visible patches of the images; several properties compare with the same one."""
        if kind not in self.kept or not torch.equal(self.kept[kind][0], visible):
            self.kept[kind] = visible, self(self.images, visible, kind)
        return self.kept[kind][1]

    def with_features(self, features: Features) -> _Runner:
        """Return a runner of the same network, called in another way."""
        return _Runner(self.network, features, self.images, self.patch_size, self.unit, self.seed)

    def rounded(self) -> _Runner:
        """Return a runner on images whose values differ in the last digit."""
        up = torch.rand(self.images.shape, generator=torch.Generator().manual_seed(self.seed + 2)) < 0.5
        images = torch.where(
            up.to(self.images.device), self.images.nextafter(self.images.new_tensor(math.inf)), self.images
        )
        return _Runner(self.network, self.features, images, self.patch_size, self.unit, self.seed)

    def finite_by_itself(self) -> bool:
        """Return whether the ordinary network gives finite maps and gradients on the images."""
        maps, gradients, _ = self(self.images)
        return all(bool(t.isfinite().all()) for t in (*maps, *gradients))

    def __call__(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        kind: type[Execution] | None = None,
        told: Sequence[int] | None = None,
        last_stands_in: bool = False,
    ) -> _Pass:
        """Run one pass forward and backward. Maps are `(B, C, *size)`, zero where hidden.

        `told` is the grid whose sizes the network is told, by default that of the mask; `last_stands_in` has other
        numbers stand at hidden positions.
        """
        state = [buffer.clone() for buffer in self.network.buffers()]
        self.network.zero_grad(set_to_none=True)
        images = images.detach().clone().requires_grad_()
        seed_everything(self.seed)  # for stochastic depth
        with ExpectedNoise(), preserved_attributes(self.network):
            return self._differentiated(images, visible, kind, told, last_stands_in, state)

    def _differentiated(
        self,
        images: Tensor,
        visible: Tensor | None,
        kind: type[Execution] | None,
        told: Sequence[int] | None,
        last_stands_in: bool,
        state: list[Tensor],
    ) -> _Pass:
        try:
            given = images.clone()  # no leaf, as networks may write into it
            untouched: set[int] = set()
            if visible is None or kind is None:
                maps = _as_list(self.features(given))
                numbers = [m.numel() for m in maps]
            else:
                grid = PatchGrid(visible.to(images.device), int(visible[0].sum()))
                maps, untouched = _maps(kind, grid, self.network, given, self.features, told, last_stands_in)
                numbers = [int(mask_at(visible, m.shape[2:]).sum()) * m.shape[1] for m in maps]
            # Gradients of a fixed function of the maps, each visible value counting alike. (Scaled, for sines of large
            # numbers would hold nothing but rounding.)
            total = sum(
                (
                    m
                    * torch.linspace(-1, 1, m.shape[1], dtype=m.dtype, device=m.device).view(-1, *[1] * (m.ndim - 2))
                    * (m.detach() / (m.detach().square().sum() / number).sqrt()).sin()
                ).sum()
                / number
                for m, number in zip(maps, numbers, strict=True)
            )
            assert isinstance(total, Tensor)
            # Before backward, where checkpointing may update them once more.
            statistics = {
                name: buffer.detach().clone()
                for name, buffer in self.network.named_buffers()
                if "running" in name and id(buffer) not in untouched
            }
            total.backward()
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            gradient = torch.zeros_like(images) if images.grad is None else images.grad  # of a stem under no_grad
            return _Pass([m.detach() for m in maps], [*gradients, gradient], statistics)
        finally:
            for buffer, before in zip(self.network.buffers(), state, strict=True):
                buffer.copy_(before)


def _maps(
    kind: type[Execution],
    grid: PatchGrid,
    network: nn.Module,
    images: Tensor,
    features: Features,
    told: Sequence[int] | None = None,
    last_stands_in: bool = False,
) -> tuple[list[Tensor], set[int]]:
    """Return the feature maps of an execution as whole maps, zero where hidden, and ids of buffers not updated."""
    execution: SparseExecution | MaskedDenseExecution
    if kind is SparseExecution:
        execution = SparseExecution(grid)
        execution.coarser.last_stands_in = last_stands_in
    else:
        execution = MaskedDenseExecution(grid)
        execution.last_stands_in = last_stands_in
    execution.told.grid = grid.shape if told is None else tuple(told)
    maps = [execution.whole_map(m) for m in run(execution, network, images, features)]
    return maps, set() if execution.beside is None else execution.beside.untouched


def _as_list(maps: Any) -> list[Tensor]:
    return [maps] if isinstance(maps, Tensor) else list(maps)


def _identity(runner: _Runner, generator: torch.Generator) -> tuple[_Pass, _Pass]:
    visible = torch.ones(len(runner.images), *runner.grid, dtype=torch.bool)
    return runner(runner.images, visible, SparseExecution), runner(runner.images)


def _crop(runner: _Runner, generator: torch.Generator) -> tuple[_Pass, _Pass]:
    """Show a rectangle one patch (or stride) smaller than the grid along each axis, at another place in each image."""
    visible = torch.zeros(len(runner.images), *runner.grid, dtype=torch.bool)
    boxes = []
    for b in range(len(runner.images)):
        starts = [u * int(torch.randint(2, (), generator=generator)) for u in runner.unit]
        boxes.append([(s, s + g - u) for s, g, u in zip(starts, runner.grid, runner.unit, strict=True)])
        place: Any = (b, *[slice(*side) for side in boxes[-1]])
        visible[place] = True

    def cropped(maps: Tensor) -> Tensor:
        """Return the rectangle of each image of `(B, C, *size)`."""
        cut = []
        for values, box in zip(maps, boxes, strict=True):
            sides = zip(box, values.shape[1:], runner.grid, strict=True)
            for axis, ((first, last), size, cells) in enumerate(sides, start=1):
                values = values.narrow(axis, first * size // cells, (last - first) * size // cells)
            cut.append(values)
        return torch.stack(cut)

    rectangle = [g - u for g, u in zip(runner.grid, runner.unit, strict=True)]
    ours = runner(runner.images, visible, SparseExecution, rectangle)
    wanted = runner(cropped(runner.images))
    hidden = ~mask_at(visible, runner.images.shape[2:]).unsqueeze(1).to(runner.images.device)
    elsewhere = ours.gradients[-1].where(hidden, 0)
    ours = ours._replace(
        maps=[cropped(m) for m in ours.maps],
        gradients=[*ours.gradients[:-1], cropped(ours.gradients[-1]), elsewhere],
    )
    return ours, wanted._replace(gradients=[*wanted.gradients, torch.zeros_like(elsewhere)])


def _leak(runner: _Runner, generator: torch.Generator) -> tuple[_Pass, _Pass]:
    visible = _random_visible(runner, generator)
    shown = mask_at(visible, runner.images.shape[2:]).unsqueeze(1)
    poisoned = torch.where(shown.to(runner.images.device), runner.images, math.nan)
    return runner(poisoned, visible, SparseExecution), runner.on_visible(visible, SparseExecution)


def _oracle(runner: _Runner, generator: torch.Generator) -> tuple[_Pass, _Pass]:
    visible = _random_visible(runner, generator)
    return runner.on_visible(visible, SparseExecution), runner.on_visible(visible, MaskedDenseExecution)


def _hidden(runner: _Runner, generator: torch.Generator) -> tuple[_Pass, _Pass]:
    """Compare the network with its twin and other numbers at hidden positions, in both executions."""
    visible = _random_visible(runner, generator)
    twin = runner.with_features(_with_garbage(runner.features))
    kinds: tuple[type[Execution], ...] = (SparseExecution, MaskedDenseExecution)
    ours = [twin(runner.images, visible, kind, last_stands_in=True) for kind in kinds]
    return _together(ours), _together([runner.on_visible(visible, kind) for kind in kinds])


def _together(passes: Sequence[_Pass]) -> _Pass:
    """Return several passes as one."""
    maps, gradients, statistics = zip(*passes, strict=True)
    named = {f"{i}.{name}": value for i, part in enumerate(statistics) for name, value in part.items()}
    return _Pass([*chain.from_iterable(maps)], [*chain.from_iterable(gradients)], named)


def _with_garbage(features: Features) -> Features:
    def run_twin(images: Tensor) -> Any:
        with GarbageAfterConvolutions():
            return features(images)

    run_twin.unreached = getattr(features, "unreached", ())  # type: ignore[attr-defined]
    return run_twin


_PROPERTIES = {"identity": _identity, "crop": _crop, "leak": _leak, "oracle": _oracle, "hidden": _hidden}


def _random_visible(runner: _Runner, generator: torch.Generator) -> Tensor:
    """About 40% of the patches, of each image its own; those of a corner hidden as far as the stride reaches, so that
    there are hidden positions at every depth."""
    cells = math.prod(runner.grid)
    order = torch.rand(len(runner.images), *runner.grid, generator=generator)
    order[(slice(None), *[slice(u) for u in runner.unit])] += 1
    order = order.flatten(1).argsort(1)[:, : max(1, round(0.4 * cells))]
    return torch.zeros(len(runner.images), cells, dtype=torch.bool).scatter(1, order, True).view(-1, *runner.grid)


def _deviation(ours: list[Tensor], wanted: list[Tensor], floor: float = 0.0) -> float:
    """Return the largest relative difference over tensors, each measured by its own norm.

    `floor` is the share of the norm of all tensors below which a tensor counts as zero but for rounding. A missing
    tensor or NaN is an infinite difference.
    """
    if [t.shape for t in ours] != [t.shape for t in wanted]:
        return math.inf
    total = math.sqrt(sum(t.norm().item() ** 2 for t in wanted))
    worst = 0.0
    for a, b in zip(ours, wanted, strict=True):
        difference = (a - b).norm().item()
        scale = b.norm().item() + floor * total
        if difference != 0:
            worst = max(worst, difference / scale if scale and not math.isnan(difference) else math.inf)
    return worst
