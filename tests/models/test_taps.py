"""Outputs of named stages are read, and the network is otherwise used as before."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import sparkmim
from helpers import FixedClassifier
from sparkmim import Backbone, SparK

STAGES = FixedClassifier.stages


def test_stages_in_any_order(network: FixedClassifier) -> None:
    assert Backbone(network, stages=["deep", "stem"]).levels == [(4, (2, 2)), (10, (8, 8))]


def test_nested_stage_names(network: FixedClassifier) -> None:
    backbone = Backbone(network, stages=["wide.0", "deep.1"])
    assert backbone.levels == [(6, (4, 4)), (10, (8, 8))]
    network.eval()
    images = torch.randn(2, 3, 56, 56)
    wide, deep = backbone(images)
    x = network.stem(images)
    assert torch.equal(wide, network.wide[0](x))
    assert torch.equal(deep, network.deep[1](network.deep[0](network.same(network.wide(x)))))


def test_unknown_stage(network: FixedClassifier) -> None:
    with pytest.raises(ValueError, match=r"FixedClassifier has no submodule 'deeep'; the nearest are deep\b"):
        Backbone(network, stages=["stem", "deeep"])


def test_stage_that_is_not_called(network: FixedClassifier) -> None:
    network.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="forward pass of FixedClassifier does not call spare"):
        Backbone(network, stages=["stem", "spare", "deep"])


def test_hooks_are_inert_outside_a_pass(network: FixedClassifier) -> None:
    """Used ordinarily, the network runs to its end and nothing of it is kept."""
    plain = copy.deepcopy(network)
    backbone = Backbone(network, stages=STAGES)
    images = torch.randn(2, 3, 56, 56)
    network.eval()
    plain.eval()
    assert torch.equal(network(images), plain(images))
    maps: list[weakref.ref[Tensor]] = []
    for stage in STAGES:
        network.get_submodule(stage).register_forward_hook(lambda module, args, out: maps.append(weakref.ref(out)))
    with torch.no_grad():
        network(images)
    gc.collect()
    assert [ref() for ref in maps] == [None] * len(STAGES)
    assert backbone.module.state_dict().keys() == plain.state_dict().keys()


def test_a_pass_keeps_no_maps(network: FixedClassifier) -> None:
    backbone = Backbone(network, stages=STAGES)
    maps = [weakref.ref(m) for m in backbone(torch.randn(1, 3, 16, 16))]
    gc.collect()
    assert [ref() for ref in maps] == [None] * len(maps)


def test_pass_ends_at_the_last_stage(network: FixedClassifier) -> None:
    """What follows could not run on patches: pooling to 7 x 7 has no meaning there."""
    calls = []
    network.pool.register_forward_hook(lambda *_: calls.append("pool"))
    backbone = Backbone(network, stages=STAGES)
    assert len(backbone(torch.randn(1, 3, 16, 16))) == 3
    out = SparK(backbone, decoder_width=32)(torch.randn(2, 3, 32, 48))
    assert torch.isfinite(out.loss)
    assert calls == []
    network(torch.randn(1, 3, 56, 56))
    assert calls == ["pool"]


def test_a_pass_that_fails_does_not_disarm_the_network(network: FixedClassifier) -> None:
    backbone = Backbone(network, stages=STAGES)
    with pytest.raises(RuntimeError):
        backbone(torch.randn(1, 4, 16, 16))
    network.eval()
    assert network(torch.randn(1, 3, 56, 56)).shape == (1, 5)
    assert len(backbone(torch.randn(1, 3, 16, 16))) == 3


def test_copy_of_a_backbone_has_taps_of_its_own(network: FixedClassifier) -> None:
    network.eval()
    backbone = Backbone(network, stages=STAGES)
    images = torch.randn(1, 3, 16, 16)
    before = backbone(images)
    other = copy.deepcopy(backbone)
    assert other.module is not network
    with torch.no_grad():
        for p in other.module.parameters():
            p.zero_()
    assert all(m.count_nonzero() == 0 for m in other(images))
    for ours, theirs in zip(backbone(images), before, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.count_nonzero() > 0


def test_stage_that_is_converted_to_synchronized_batch_norm(network: FixedClassifier) -> None:
    """Conversion puts a new module in the place of a batch norm, and with it goes whatever hung on the old one."""
    model = SparK(Backbone(network, stages=["stem.1", "wide", "deep.1"]), decoder_width=32).eval()
    images, visible = torch.randn(2, 3, 16, 24), sparkmim.random_visible(2, (2, 3), 0.5)
    before = model.encode(images, visible)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model.encoder.deep[1], nn.SyncBatchNorm)
    for ours, theirs in zip(model.encode(images, visible), before, strict=True):
        assert torch.equal(ours, theirs)
