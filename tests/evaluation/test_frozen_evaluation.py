"""Few-shot, retrieval and clustering against their definitions; several stages; the page of neighbors."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkmim import embed, evaluate_frozen, knn, linear_probe
from sparkmim.cli import run_command
from sparkmim.evaluation.clustering import clustering_agreement, k_means, normalized_mutual_information
from sparkmim.evaluation.features import require_stage
from sparkmim.evaluation.few_shot import few_shot, share_of
from sparkmim.evaluation.frozen import LabeledFeatures
from sparkmim.evaluation.neighbors import nearest_images
from sparkmim.evaluation.retrieval import average_precisions, mean_average_precision
from sparkmim.evaluation.standardization import Standardization
from sparkmim.models.backbone import Backbone


def clouds(each: int = 8, spread: float = 0.1, classes: int = 3, seed: int = 0) -> LabeledFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    return LabeledFeatures(torch.eye(5)[labels] + spread * torch.randn(len(labels), 5, generator=generator), labels)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_its_definition(seed: int) -> None:
    queries, bank = clouds(3, 1.0, seed=seed), clouds(4, 1.0, seed=seed + 9)
    for other in (None, bank):
        found = average_precisions(queries, other)
        for row, precision in enumerate(found):
            ranked = [j for j in range(len(queries)) if j != row] if other is None else range(len(bank))
            against = queries if other is None else bank
            order = sorted(ranked, key=lambda j: -cosine(queries.values[row], against.values[j]))
            right = [bool(against.labels[j] == queries.labels[row]) for j in order]
            wanted = [sum(right[: n + 1]) / (n + 1) for n in range(len(right)) if right[n]]
            assert float(precision) == pytest.approx(sum(wanted) / len(wanted))


def test_retrieval_of_separate_classes_is_perfect_and_queries_without_a_match_do_not_count() -> None:
    found = mean_average_precision(clouds())
    assert found is not None
    assert found.value == pytest.approx(1)
    alone = LabeledFeatures(torch.randn(3, 4), torch.arange(3))
    assert mean_average_precision(alone) is None


def test_mutual_information_is_its_definition() -> None:
    one, other = torch.tensor([0, 0, 1, 1, 2, 2, 2]), torch.tensor([5, 5, 5, 7, 7, 7, 9])
    mutual, entropy = 0.0, {}
    for labels in (one, other):
        shares = [float((labels == v).double().mean()) for v in labels.unique()]
        entropy[labels] = -sum(p * math.log(p) for p in shares)
    for a, b in itertools.product(one.unique(), other.unique()):
        joint = float(((one == a) & (other == b)).double().mean())
        if joint:
            apart = float((one == a).double().mean() * (other == b).double().mean())
            mutual += joint * math.log(joint / apart)
    wanted = mutual / (sum(entropy.values()) / 2)
    assert normalized_mutual_information(one, other) == pytest.approx(wanted)
    assert normalized_mutual_information(one, one + 3) == pytest.approx(1)
    assert normalized_mutual_information(one, torch.zeros(7, dtype=torch.int64)) == pytest.approx(0)


def test_k_means_finds_separate_clouds() -> None:
    images = clouds(10)
    labels = k_means(images.values.double(), 3, torch.Generator().manual_seed(0))
    assert normalized_mutual_information(labels, images.labels) == pytest.approx(1)
    agreement = clustering_agreement(images, repeats=5, seed=0)
    assert agreement.value > 0.9
    assert clustering_agreement(images, repeats=5, seed=0) == agreement
    same = torch.ones(6, 2, dtype=torch.float64)
    assert len(k_means(same, 3, torch.Generator().manual_seed(0)).unique()) == 3  # none of them is empty


def test_few_shot_is_the_nearest_class_mean_over_draws() -> None:
    images = clouds(8, 0.6)
    one, five = (few_shot(images, None, shots, draws=30, seed=0) for shots in (1, 5))
    assert one is not None
    assert five is not None
    assert 1 / 3 < one.value < five.value <= 1
    assert min(one.error, five.error) > 0
    assert few_shot(images, None, 1, draws=30, seed=0) == one
    assert few_shot(images, None, 1, draws=30, seed=1) != one
    assert few_shot(images, None, 8, draws=3, seed=0) is None  # each draw would be the same
    test = clouds(50, 0.6, seed=4)
    found = few_shot(images, test, 5, draws=30, seed=0)
    assert found is not None
    assert abs(found.value - five.value) < 0.2


def test_share_has_the_error_of_a_share() -> None:
    found = share_of(torch.tensor([True] * 30 + [False] * 10))
    assert found == pytest.approx((0.75, math.sqrt(0.75 * 0.25 / 40)))


def test_standardized_features_have_mean_0_and_deviation_1() -> None:
    images = clouds(spread=3.0)
    moved = images.by(Standardization.of(images.values)).values
    torch.testing.assert_close(moved.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(moved.std(0, correction=0), torch.ones(5, dtype=torch.float64))
    assert images.by(None) is images


def test_stages_are_concatenated(data: Path, images: Path) -> None:
    given = {"model": "test_resnet", "image_size": 64, "device": "cpu", "workers": 0, "batch_size": 8}
    parts = [embed("none", images, stage=stage, **given).features for stage in (2, 3)]  # type: ignore[arg-type]
    both = embed("none", images, stage=(2, 3), **given).features  # type: ignore[arg-type]
    np.testing.assert_array_equal(both, np.concatenate(parts, 1))
    found = knn("none", data, stage=(2, 3), standardize=True, **given)  # type: ignore[arg-type]
    assert found.features == both.shape[1]
    assert found.to_dict()["stage"] == [2, 3]
    assert found.to_dict()["standardized"] is True
    assert linear_probe("none", data, stage=[-2, -1], **given).probe.weight.shape[1] == both.shape[1]  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [(), (1, 1), (-1, 3), (4,), -5])
def test_stages_are_named_once(stage: tuple[int, ...] | int) -> None:
    with pytest.raises(ValueError, match="--stage"):
        require_stage(Backbone.create("test_resnet"), stage)


def test_command_measures_all_with_errors(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model test_resnet --image-size 64 --device cpu --workers 0 --draws 5 --shots 1 2 --stage -2 -1"
    command = ["evaluate", "--encoder", "none", "--data", str(data), "--output", str(tmp_path / "out"), *flags.split()]
    assert run_command(command) == 0
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scores"].keys() == {"knn", "few_shot_1", "few_shot_2", "retrieval_map", "clustering_nmi"}
    assert all(0 <= score["value"] <= 1 for score in results["scores"].values())
    assert "retrieval mAP" in said
    assert "+-" in said
    given: dict[str, Any] = {"model": "test_resnet", "image_size": 64, "device": "cpu", "workers": 0}
    found = evaluate_frozen("none", data, **given, draws=5, shots=(1, 2))
    again = evaluate_frozen("none", data, **given, draws=5, shots=(1, 2))
    assert found == again
    same = knn("none", data, **given, standardize=True)
    assert found.scores["knn"].value == pytest.approx(same.accuracy.top1)
    with pytest.raises(ValueError, match="--shots"):
        evaluate_frozen("none", data, shots=(0,))


def test_nearest_images_are_others_the_nearest_first() -> None:
    images = clouds(4)
    values, rows = nearest_images(images.values, [0, 5], 3)
    assert rows[0].tolist() != []
    assert 0 not in rows[0]
    assert {int(images.labels[row]) for row in rows[0]} == {0}
    assert (values.diff(dim=1) <= 0).all()
    assert nearest_images(images.values, [0], 100)[1].shape == (1, 11)


def test_page_of_neighbors_shows_each_query(images: Path, tmp_path: Path) -> None:
    flags = "--encoder none --model test_resnet --image-size 64 --device cpu --workers 0"
    page = tmp_path / "page.html"
    command = [
        "embed",
        *flags.split(),
        "--data",
        str(images),
        "--output",
        str(tmp_path / "f.npz"),
        "--index",
        str(page),
    ]
    assert run_command(command) == 0
    text = page.read_text()
    assert text.count("<tr>") == 10
    assert text.count("<img") == 10 * 9
    assert "http" not in text
    assert run_command([*command[:-1], str(tmp_path / "page.txt")]) == 2
