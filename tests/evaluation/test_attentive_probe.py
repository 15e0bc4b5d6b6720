"""The attentive probe pools positions by its queries, starts as the linear probe, and finds what means hide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparkmim import linear_probe
from sparkmim.commands.probe import command as probe
from sparkmim.evaluation.attentive_probe import AttentiveProbe, fit_attentive_probe
from sparkmim.evaluation.frozen import LabeledFeatures
from sparkmim.evaluation.linear_probe import LinearProbe, fit_probes

SMALL: dict[str, Any] = {"model": "test_resnet", "image_size": 64, "workers": 0, "batch_size": 5, "device": "cpu"}


def maps_with_an_object(count: int, seed: int) -> LabeledFeatures:
    """Return maps of 16 positions: one, marked by channel 0, shows the class in channel 1, the others show noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    values = torch.randn(count, 16, 8, generator=generator)
    values[:, :, 0] = 0
    values[:, :, 1] *= 4
    place = torch.randint(16, (count,), generator=generator)
    values[torch.arange(count), place, 0] = 32.0
    values[torch.arange(count), place, 1] = 2.0 * labels - 1
    return LabeledFeatures(values, labels)


def linear(images: LabeledFeatures, penalty: float = 0.01) -> LinearProbe:
    return fit_probes(images.pooled().values, images.labels, classes=2, penalties=[penalty])[0]


def test_queries_of_zeros_pool_means() -> None:
    images = maps_with_an_object(40, 0)
    start = linear(images)
    same = AttentiveProbe.of(start)
    torch.testing.assert_close(same(images.values).double(), start(images.pooled().values), rtol=1e-5, atol=1e-5)
    assert fit_attentive_probe(start, images, rate=0.0).rate == 0
    assert torch.equal(fit_attentive_probe(start, images, rate=0.0).weight, same.weight)


@pytest.mark.parametrize("channels", [8, 12, 5])
def test_each_query_pools_its_share_of_the_channels(channels: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 7, channels)
    fitted = linear(LabeledFeatures(maps, torch.tensor([0, 1, 1])))
    found = AttentiveProbe.of(fitted)
    count = len(found.queries)
    assert count == {8: 8, 12: 4, 5: 1}[channels]
    found = found._replace(queries=torch.randn(count, channels))
    x = found.standardization(maps).float()
    parts = x.chunk(count, 2)
    pooled = [
        F.scaled_dot_product_attention(query.expand(3, 1, -1), x, part)[:, 0]
        for query, part in zip(found.queries, parts, strict=True)
    ]
    wanted = F.linear(torch.cat(pooled, 1), found.weight, found.bias)
    torch.testing.assert_close(found(maps), wanted)


def test_attention_finds_what_means_hide() -> None:
    train, test = maps_with_an_object(600, 0), maps_with_an_object(400, 1)
    start = linear(train)
    assert start.score(test.pooled()).top1 < 0.75, "the mean over positions drowns the object in noise"
    found = fit_attentive_probe(start, train, rate=1e-2)
    assert found.score(test).top1 > 0.9
    again = fit_attentive_probe(start, train, rate=1e-2)
    assert torch.equal(found.weight, again.weight), "the same seed, the same probe"


def test_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(Path("none"), data, pooling="attention", output=tmp_path / "a", **SMALL) == 0
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    probe(Path("none"), data, output=tmp_path / "b", **SMALL)
    mean = json.loads((tmp_path / "b" / "results.json").read_text())
    assert (found["pooling"], mean["pooling"]) == ("attention", "mean")
    assert found["mean_pooled"] == mean["test"], "the linear probe beside it is that of --pooling mean"
    assert found["val_by_rate"]["0"] == mean["val"]
    assert found["val"]["top1"] == max(score["top1"] for score in found["val_by_rate"].values())
    said = capsys.readouterr().out
    assert "attentive probe: top-1" in said
    assert "attention" not in mean


def test_without_validation_images_it_is_fitted_again_to_all(data: Path) -> None:
    found = linear_probe("none", data / "train", pooling="attention", **SMALL)
    assert found.train_images == 24
    assert found.accuracy == found.val
    assert isinstance(found.probe, AttentiveProbe)


def test_several_maps_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"--pooling attention reads the positions of one map, got --stage -2 -1"):
        linear_probe("none", data, pooling="attention", stage=(-2, -1), **SMALL)


def test_maps_that_do_not_fit_into_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.evaluation.frozen.host_memory", lambda: 100_000)
    with pytest.raises(ValueError, match=r"features of 48 images, [\d,]+ values each, .* or use --pooling mean"):
        linear_probe("none", data, pooling="attention", stage=0, **SMALL)


def test_maps_of_volumes_keep_all_positions() -> None:
    values: Tensor = torch.randn(4, 2 * 3 * 4, 8)
    assert LabeledFeatures(values, torch.zeros(4, dtype=torch.long)).pooled().values.shape == (4, 8)
