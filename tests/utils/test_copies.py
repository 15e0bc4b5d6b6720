"""Networks that keep results of a computation can be copied, probed and checked, and stay as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from sparkmim import Backbone, SparK
from sparkmim.utils.copies import copied
from sparkmim.utils.modules import preserved_attributes


class Keeps(nn.Module):
    """Keeps a feature, in one way or another."""

    def __init__(self, keep: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 3, 2, 1)
        self.keep, self.kept = keep, {"list": [], "dict": {}, "deque": deque(maxlen=2)}  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.keep(self, x)
        return self.down(x.relu())


def as_attribute(network: Any, x: Tensor) -> None:
    network.feature = x


def of_a_part(network: Any, x: Tensor) -> None:
    network.stem.feature = x


def in_a_list(network: Any, x: Tensor) -> None:
    network.features = [x, x * 2]


def in_a_dict(network: Any, x: Tensor) -> None:
    network.features = {"stem": (x,)}


def in_place(network: Any, x: Tensor) -> None:
    network.kept["list"].append(x)
    network.kept["dict"]["x"] = x
    network.kept["deque"].append(x)


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(wrap(nn.Conv2d(3, 4, 4, 4)), nn.ReLU(), wrap(nn.Conv2d(4, 8, 3, 2, 1)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "an attribute": lambda: Keeps(as_attribute),
    "an attribute of a part": lambda: Keeps(of_a_part),
    "a list": lambda: Keeps(in_a_list),
    "a dict": lambda: Keeps(in_a_dict),
    "containers": lambda: Keeps(in_place),
    "weight_norm": lambda: wrapped(weight_norm),
    "spectral_norm": lambda: wrapped(spectral_norm),
    "prune": lambda: wrapped(lambda conv: prune.random_unstructured(conv, "weight", 0.3)),
    "parametrized weight_norm": lambda: wrapped(parametrizations.weight_norm),
    "parametrized spectral_norm": lambda: wrapped(parametrizations.spectral_norm),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_check_works_before_and_after_use(make: Callable[[], nn.Module]) -> None:
    network = make()
    assert Backbone(network).check().passed
    model = SparK(network, decoder_width=32)
    assert model.backbone.check(modes=["train"]).passed
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    assert model.backbone.check(modes=["train"]).passed
    copied(model)(torch.randn(2, 3, 64, 64)).loss.backward()


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_probes_leave_the_network_as_it_was(make: Callable[[], nn.Module]) -> None:
    """The very objects: so what could be copied and pickled before still can be."""
    network = make()
    before = [{k: v for k, v in vars(m).items() if not isinstance(v, dict)} for m in network.modules()]
    model = SparK(network, decoder_width=32)
    model.backbone.check(modes=["eval"])
    for module, attributes in zip(network.modules(), before, strict=True):
        now = {k: v for k, v in vars(module).items() if not isinstance(v, dict)}
        assert now.keys() == attributes.keys()
        assert all(now[name] is value for name, value in attributes.items())
    if isinstance(network, Keeps):
        assert not any(network.kept.values())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_copy_computes_the_same(make: Callable[[], nn.Module]) -> None:
    network = make()
    images = torch.randn(2, 3, 16, 16)
    network.train()(images)
    other = copied(network)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in network.parameters()}
    torch.testing.assert_close(other.eval()(images), network.eval()(images))


def test_two_names_of_a_kept_tensor_stay_one() -> None:
    network = Keeps(lambda network, x: (as_attribute(network, x), of_a_part(network, x)))  # type: ignore[arg-type, func-returns-value]
    network(torch.randn(1, 3, 8, 8))
    other: Any = copied(network)
    assert other.feature is other.stem.feature
    assert other.feature.grad_fn is None
    assert torch.equal(other.feature, network.feature)  # type: ignore[arg-type]


def test_attributes_are_restored_after_an_error() -> None:
    network = Keeps(as_attribute)
    with pytest.raises(RuntimeError, match="expected input"), preserved_attributes(network):
        network.down(network(torch.randn(1, 3, 8, 8)))
    assert not hasattr(network, "feature")
