"""k-nearest neighbours against a plain computation, one image at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparkmim.evaluation.knn import Accuracy, accuracy, best_neighbours, knn_predictions, leave_one_out


def drawn(count: int, seed: int, features: int = 5) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def by_hand(query: Tensor, bank: Tensor, labels: Tensor, k: int, classes: int, temperature: float = 0.07) -> int:
    """DINO's protocol, written out."""
    similarity = [float(query @ other / (query.norm() * other.norm())) for other in bank]
    nearest = sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]
    votes = [0.0] * classes
    for i in nearest:
        votes[int(labels[i])] += math.exp(similarity[i] / temperature)
    return max(range(classes), key=lambda c: votes[c])


def test_predictions_are_those_of_the_protocol() -> None:
    bank, labels, queries = drawn(40, 0), torch.arange(40) % 3, drawn(25, 1)
    predicted = knn_predictions(queries, bank, labels, (1, 4, 9, 40), classes=3)
    assert list(predicted) == [1, 4, 9, 40]
    for k, found in predicted.items():
        assert found.tolist() == [by_hand(query, bank, labels, k, 3) for query in queries], k


def test_leave_one_out_leaves_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.evaluation.knn.CHUNK", 7)  # the own image lies off the diagonal of later chunks
    bank, labels = drawn(30, 2), torch.arange(30) % 4
    predicted = knn_predictions(bank, bank, labels, (1, 5), classes=4, leave_one_out=True)
    for k in (1, 5):
        others = [torch.cat([bank[:i], bank[i + 1 :]]) for i in range(30)]
        theirs = [torch.cat([labels[:i], labels[i + 1 :]]) for i in range(30)]
        wanted = [by_hand(bank[i], others[i], theirs[i], k, 4) for i in range(30)]
        assert predicted[k].tolist() == wanted
    found = leave_one_out(bank, labels, (1, 5), classes=4)
    assert found[5].top1 == pytest.approx((predicted[5] == labels).double().mean().item())
    assert knn_predictions(bank, bank, labels, (1,), classes=4)[1].tolist() == labels.tolist(), "else itself"


def test_more_neighbours_than_there_are_left_out() -> None:
    bank, labels = drawn(6, 0), torch.arange(6) % 2
    assert list(knn_predictions(bank, bank, labels, (5, 6, 7), classes=2)) == [5, 6]
    assert list(leave_one_out(bank, labels, (5, 6), classes=2)) == [5]
    assert knn_predictions(bank, bank, labels, (7,), classes=2) == {}


def test_numbers_of_neighbours_given_twice() -> None:
    bank, labels = drawn(30, 0), torch.arange(30) % 3
    found = knn_predictions(drawn(9, 1), bank, labels, (5, 1, 5), classes=3)
    assert {k: len(predicted) for k, predicted in found.items()} == {5: 9, 1: 9}


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that comes about."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            self.bytes = max(self.bytes, tensor.nbytes if isinstance(tensor, Tensor) else 0)
        return result


def test_memory_of_many_classes() -> None:
    with Largest() as largest:
        knn_predictions(drawn(20, 1), drawn(50, 0), torch.arange(50) % 40, (10, 50), classes=1000)
    assert largest.bytes == 20 * 1000 * 4, "a vote for each image and class"


def test_length_does_not_count_and_small_temperatures_do_not_overflow() -> None:
    bank, labels, queries = drawn(20, 3), torch.arange(20) % 2, drawn(9, 4)
    lengths = torch.rand(20, 1, generator=torch.Generator().manual_seed(5)) + 0.1
    plain = knn_predictions(queries, bank, labels, (3,), classes=2)[3]
    assert torch.equal(knn_predictions(7 * queries, lengths * bank, labels, (3,), classes=2)[3], plain)
    sharp = knn_predictions(queries, bank, labels, (20,), classes=2, temperature=1e-4)[20]
    assert torch.equal(sharp, knn_predictions(queries, bank, labels, (1,), classes=2)[1])


def test_accuracy() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    found = accuracy(torch.tensor([0, 0, 1, 1]), labels)
    assert found.top1 == pytest.approx(0.5)
    assert found.class_mean == pytest.approx((2 / 3 + 0) / 2), "class 1 has no image"


def test_the_best_number_of_neighbours() -> None:
    assert best_neighbours({1: Accuracy(0.5, 0.9), 5: Accuracy(0.7, 0.1), 10: Accuracy(0.7, 0.8)}) == 5
