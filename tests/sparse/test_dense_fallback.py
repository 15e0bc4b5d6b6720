"""Modules that run on the whole map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import (
    Apply,
    Function,
    Host,
    all_visible,
    assert_close,
    assert_names_the_ways_out,
    constant,
    conv,
    images_of,
    random_grid,
    refusal,
    values_and_gradients,
)
from sparkmim.sparse import (
    Execution,
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    dense_fallback,
    run,
)


class Unseen(nn.Module):
    """Mixes positions in ways without a rule, and knows how large the whole map is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, padding=1, padding_mode="replicate")
        self.scale = nn.Parameter(constant(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).roll(1, 2) + x.mean(3, keepdim=True)
        return (y * torch.linspace(0, 1, x.shape[2], dtype=x.dtype)[:, None]).softmax(-1) * self.scale


class AroundUnseen(nn.Module):
    """Two parts on patches around one that is not."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.tail = part, conv(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.part(x.relu()))


@pytest.mark.parametrize("block", [(4, 6), (1, 1)], ids=["patches_4x6", "patches_1x1"])
class TestDenseFallback:
    """Patches of 4 x 6 can themselves be cut into the grid, so that one could be mistaken for a map."""

    def test_identity(self, block: tuple[int, int]) -> None:
        assert "in module 'stages.1.part" in refusal(AroundUnseen(Unseen()), block)
        network, images, grid = Host(AroundUnseen(dense_fallback(Unseen()))), images_of(block), all_visible()

        def packed(images: Tensor) -> Tensor:
            return grid.unpack(run(SparseExecution(grid), network, images)[0])

        expected = values_and_gradients(network, images, network)
        assert_close(values_and_gradients(packed, images, network), expected, "nothing hidden")

    @pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
    def test_hidden(self, execution: Callable[[PatchGrid], Execution], block: tuple[int, int]) -> None:
        """The whole map with zeros where hidden, and the visible positions of what comes of it."""
        part, images, grid = dense_fallback(Unseen()), images_of(block), random_grid()
        network = Host(AroundUnseen(part))
        host: Any = network

        def mine(images: Tensor) -> Tensor:
            (out,) = run(execution(grid), network, images)
            return grid.unpack(out if execution is SparseExecution else grid.pack(out))

        def by_hand(images: Tensor) -> Tensor:
            whole = grid.unpack(run(SparseExecution(grid), host.stem, images)[0])
            return grid.unpack(grid.pack(host.stages[1].tail(part(whole.relu()))))

        assert_close(
            values_and_gradients(mine, images, network), values_and_gradients(by_hand, images, network), "by hand"
        )

    def test_taken_back(self, block: tuple[int, int]) -> None:
        part = dense_fallback(dense_fallback(Unseen()), enable=False)
        assert "in module 'stages.1" in refusal(part, block)

    def test_ordinary_network_is_not_affected(self, block: tuple[int, int]) -> None:
        part = Unseen()
        expected = part(constant(2, 8, 4, 6))
        torch.testing.assert_close(dense_fallback(part)(constant(2, 8, 4, 6)), expected)

    def test_other_arguments(self, block: tuple[int, int]) -> None:
        class Several(nn.Module):
            def forward(self, x: Tensor, factor: float, other: Tensor | None = None, constant: Any = None) -> Any:
                assert other is not None
                return x.roll(1, 2) * factor + constant, other.flip(3)

        several = dense_fallback(Several())

        class Part(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.several = several

            def forward(self, x: Tensor) -> Tensor:
                a, b = self.several(x, 3.0, other=x * 2, constant=constant(8, 1, 1))
                return a * b

        assert whole_is_right(Part(), block)

    def test_inner_fallback(self, block: tuple[int, int]) -> None:
        """A module that runs on the whole map runs its parts on it too."""
        inner = dense_fallback(Unseen())
        assert whole_is_right(dense_fallback(nn.Sequential(inner, nn.ReLU(), inner)), block)

    def test_called_twice(self, block: tuple[int, int]) -> None:
        part = dense_fallback(Unseen())
        assert whole_is_right(nn.Sequential(part, nn.ReLU(), part), block)

    def test_list_of_maps(self, block: tuple[int, int]) -> None:
        class Joins(nn.Module):
            def forward(self, maps: list[Tensor]) -> Tensor:
                return torch.cat(maps, 1).roll(1, 2)

        joins = dense_fallback(Joins())
        assert whole_is_right(Lists(joins, lambda x: [x, x * 2]), block)

    def test_list_of_maps_without_mixing(self, block: tuple[int, int]) -> None:
        """What would pass by the rules must not be taken for a whole map after that."""

        class Joins(nn.Module):
            def forward(self, maps: Any) -> Tensor:
                return torch.cat(maps["maps"] if isinstance(maps, dict) else maps, 1)

        for make in (lambda x: [x, x * 2], lambda x: (x, x), lambda x: {"maps": [x, x]}):
            assert whole_is_right(Lists(dense_fallback(Joins()), make), block)

    def test_list_of_outputs(self, block: tuple[int, int]) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [x.roll(1, 2), x.flip(3)]

        class Part(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.two = dense_fallback(Two())

            def forward(self, x: Tensor) -> Tensor:
                return torch.mul(*self.two(x))

        assert whole_is_right(Part(), block)

    @pytest.mark.parametrize(
        "part",
        [
            Apply(lambda x: x.mean((2, 3))),
            Apply(lambda x: x.mean((2, 3), keepdim=True)),
            Apply(lambda x: x.flatten(2)),
            Apply(lambda x: x.mean(1)),
            Apply(lambda x: F.pad(x, (0, 1, 0, 1))),
            Apply(lambda x: x[:1]),
            Apply(lambda x: x.shape),
            Apply(lambda x: None),
        ],
        ids=["vector", "gate", "tokens", "three_axes", "unaligned", "one_image", "shape", "nothing"],
    )
    def test_output_that_is_not_a_map(self, part: nn.Module, block: tuple[int, int]) -> None:
        """Refused, as a `ValueError` about grids from the depth of the engine names neither module nor remedy."""
        message = refusal(dense_fallback(part), block)
        assert "stages.1" in message

    def test_input_that_is_not_a_map(self, block: tuple[int, int]) -> None:
        part = dense_fallback(conv(1))
        for function in (
            lambda x: x * part(x.mean((2, 3), keepdim=True)),
            lambda x: part(F.pad(x, (1, 1, 1, 1))),
            lambda x: part(x.transpose(2, 3)),
        ):
            message = refusal(Owner(part, function), block)
            assert_names_the_ways_out(message)
            assert "None cannot" not in message, "the module is to be named"

    def test_channels_last(self, block: tuple[int, int]) -> None:
        """Refused: what is scattered as (batch, channel, *space) must be that."""
        for module in (nn.Linear(8, 8, dtype=torch.float64), nn.GELU(), nn.LayerNorm(8, dtype=torch.float64)):
            part = dense_fallback(module)
            assert not whole_is_right(Owner(part, lambda x: part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), block)  # noqa: B023
            gated = Owner(part, lambda x: x * part(x.permute(0, 2, 3, 1)).mean((1, 2))[..., None, None])  # noqa: B023
            assert not whole_is_right(gated, block)

    def test_of_a_constant(self, block: tuple[int, int]) -> None:
        """A module that is given weights, not maps, gives what it gives."""
        part = dense_fallback(conv(1))
        assert whole_is_right(Owner(part, lambda x: x * part(constant(1, 8, 1, 1))), block)

    def test_result_is_followed(self, block: tuple[int, int]) -> None:
        message = refusal(nn.Sequential(dense_fallback(Unseen()), Apply(lambda x: x.roll(1, 2))), block)
        assert "in module 'stages.1.1'" in message
        assert "roll" in message


class Lists(nn.Module):
    """A module that is given a list of maps."""

    def __init__(self, module: nn.Module, make: Function) -> None:
        super().__init__()
        self.module, self.make = module, make

    def forward(self, x: Tensor) -> Tensor:
        return self.module(self.make(x))


class Owner(nn.Module):
    """A function that calls a module of the network."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def whole_is_right(part: nn.Module, block: tuple[int, int]) -> bool:
    """Whether a part run on whole maps is answered, as the ordinary network answers with nothing hidden."""
    network, images, grid = Host(part), images_of(block), all_visible()

    def packed(images: Tensor) -> Tensor:
        return grid.unpack(run(SparseExecution(grid), network, images)[0])

    try:
        found = values_and_gradients_of_used(packed, images, network)
    except UnsupportedOperation:
        return False
    assert_close(found, values_and_gradients_of_used(network, images, network), "nothing hidden")
    return True


def values_and_gradients_of_used(run: Callable[[Tensor], Tensor], images: Tensor, network: nn.Module) -> list[Tensor]:
    images = images.clone().requires_grad_()
    out = run(images)
    projection = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    wanted = [images, *network.parameters()]
    grads = torch.autograd.grad((out * projection).sum(), wanted, materialize_grads=True)
    return [out.detach(), *grads]


class Writes(nn.Module):
    """Writes into what it is given, after a convolution that no packed map could take."""

    def __init__(self, write: Callable[..., Any]) -> None:
        super().__init__()
        self.write, self.scale = write, nn.Parameter(constant(8, 1, 1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.write(self.scale, *args, **kwargs)


def added_in_place(scale: Tensor, x: Tensor) -> Tensor:
    x += x.roll(1, 2) * scale
    return x


def another_result(scale: Tensor, x: Tensor) -> Tensor:
    x.mul_(scale).relu_()
    return x.roll(1, 2)


def through_a_view(scale: Tensor, x: Tensor) -> Tensor:
    x[:, :4].mul_(2)
    return x * scale


def in_a_list(scale: Tensor, maps: list[Tensor]) -> Tensor:
    maps[0].add_(maps[1].roll(1, 2))
    return maps[1] * scale


def the_same_twice(scale: Tensor, x: Tensor, *, other: Tensor) -> Tensor:
    x.mul_(scale)
    return other.roll(1, 2)


WRITES: dict[str, tuple[Callable[..., Any], Callable[[nn.Module, Tensor], Tensor]]] = {
    "the result": (added_in_place, lambda part, x: part(x) * 2 + x),
    "another result": (another_result, lambda part, x: part(x) + x),
    "through a view": (through_a_view, lambda part, x: part(x) + x),
    "a channel slice": (added_in_place, lambda part, x: torch.cat([part(x), x.sigmoid()], 1)[:, :8] * x),
    "in a list": (in_a_list, lambda part, x: part([x, x * 2]) + x),
    "the same twice": (the_same_twice, lambda part, x: part(x, other=x) + x),
    "written afterwards": (added_in_place, lambda part, x: (part(x).mul_(3), x)[1]),
}


@pytest.mark.parametrize("block", [(4, 6), (1, 1)], ids=["patches_4x6", "patches_1x1"])
@pytest.mark.parametrize("case", WRITES)
def test_writes_into_arguments_are_kept(case: str, block: tuple[int, int]) -> None:
    """The ordinary network sees them afterwards; so do both executions, in values and gradients."""
    write, call = WRITES[case]
    part = dense_fallback(Writes(write))
    assert whole_is_right(Owner(part, lambda x: call(part, x * 1)), block)


@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_writes_into_arguments_without_gradients(
    execution: Callable[[PatchGrid], Execution], context: Callable[[], Any]
) -> None:
    part = dense_fallback(Writes(another_result))
    network, grid = Host(Owner(part, lambda x: part(x * 1) + x)), all_visible()
    wrote = Host(Owner(part, lambda x: (lambda y: part(y) + y)(x * 1)))
    with context():
        for host in (network, wrote):
            (found,) = run(execution(grid), host, images_of((4, 4)))
            found = grid.unpack(found) if execution is SparseExecution else found
            torch.testing.assert_close(found, host(images_of((4, 4))))
