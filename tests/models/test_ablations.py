"""The paper's ablations: what each changes, and that it changes nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from helpers import build_spark, mask_of_pixels, random_images, seeded_mask
from sparkmim.objectives.base import all_patch_loss, hidden_patch_loss


def test_loss_on_all_patches() -> None:
    model, both = build_spark(), build_spark(loss_on="all")
    images, visible = random_images(2, 24, 32), seeded_mask(2, 3, 4)
    hidden, all_ = model(images, visible), both(images, visible)
    assert torch.equal(hidden.prediction, all_.prediction), "only the comparison differs"
    errors = (all_.prediction - model.target(images)).square()
    assert all_.loss.item() == pytest.approx(errors.mean().item(), rel=1e-12)
    where = mask_of_pixels(visible, (8, 8)).expand_as(errors)
    assert hidden.loss.item() == pytest.approx(errors[~where].mean().item(), rel=1e-12)
    share = visible.double().mean().item()
    shown = errors[where].mean().item()
    assert all_.loss.item() == pytest.approx(share * shown + (1 - share) * hidden.loss.item(), rel=1e-12)


def test_gradients_reach_visible_patches_only_with_the_loss_on_all() -> None:
    images, visible = random_images(1, 16, 16), torch.tensor([[[True, False], [False, True]]])
    for loss_on, reached in (("hidden", False), ("all", True)):
        prediction = torch.zeros_like(images, requires_grad=True)
        if loss_on == "hidden":
            hidden_patch_loss(prediction, images, visible, 2).backward()
        else:
            all_patch_loss(prediction, images).backward()
        assert prediction.grad is not None
        assert (prediction.grad[mask_of_pixels(visible, (8, 8)).expand_as(images)] != 0).any() == reached


def test_a_prediction_of_lower_precision_is_compared_in_the_targets() -> None:
    target = random_images(1, 8, 8).float()
    prediction = (target + 0.1).bfloat16()
    assert all_patch_loss(prediction, target).dtype == torch.float32


def test_one_mask_token_for_all_scales() -> None:
    model = build_spark(shared_mask_token=True)
    tokens: list[Any] = [densify.mask_token for densify in model.densify]
    assert all(token is tokens[0] for token in tokens)
    assert tokens[0].numel() == max(model.backbone.channels)
    mine = sum("mask_token" in name for name, _ in model.named_parameters())
    assert (mine, sum("mask_token" in name for name, _ in build_spark().named_parameters())) == (1, 3)
    images, visible = random_images(2, 24, 32), seeded_mask(2, 3, 4)
    out = model(images, visible)
    out.loss.backward()
    assert tokens[0].grad is not None

    # Separate embeddings of the same numbers predict the same, and their gradients add up to the shared one's.
    apart: Any = build_spark()
    apart.load_state_dict({k: v for k, v in model.state_dict().items() if "mask_token" not in k}, strict=False)
    with torch.no_grad():
        for densify in apart.densify:
            densify.mask_token.copy_(tokens[0][:, : densify.mask_token.shape[1]])
    other = apart(images, visible)
    torch.testing.assert_close(other.prediction, out.prediction, rtol=1e-12, atol=1e-12)
    other.loss.backward()
    summed = torch.zeros_like(tokens[0])
    for densify in apart.densify:
        summed[:, : densify.mask_token.shape[1]] += densify.mask_token.grad
    torch.testing.assert_close(tokens[0].grad, summed, rtol=1e-9, atol=1e-12)


def test_a_shared_mask_token_survives_copies_and_state_dicts() -> None:
    model: Any = build_spark(shared_mask_token=True)
    copied = copy.deepcopy(model)
    assert copied.densify[0].mask_token is copied.densify[2].mask_token
    other: Any = build_spark(shared_mask_token=True)
    with torch.no_grad():
        other.densify[0].mask_token.add_(1)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.densify[1].mask_token, model.densify[0].mask_token)
    assert other.densify[0].mask_token is other.densify[1].mask_token


def test_unknown_loss() -> None:
    with pytest.raises(ValueError, match="loss_on 'visible' is unknown; use one of hidden, all"):
        build_spark(loss_on="visible")
