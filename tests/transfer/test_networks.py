"""Networks of every kind are fine-tuned: with named stages, of other channels, with classifiers of their own."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import TINY_FINETUNE, build_classifier
from sparkmim.checkpoints.encoder import load_trained_encoder
from sparkmim.models.backbone import Backbone
from sparkmim.pretraining.run import pretrain
from sparkmim.training.layer_decay import decayed_groups
from sparkmim.training.optim import param_groups_weight_decay
from sparkmim.transfer.model_file import load_model
from sparkmim.transfer.network import load_weights
from sparkmim.transfer.run import finetune
from sparkmim.transfer.task import FinetuningTask

pytestmark = pytest.mark.slow

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        conv = lambda i, o, k: nn.Sequential(nn.Conv2d(i, o, k, k), nn.BatchNorm2d(o), nn.ReLU())
        self.a, self.b, self.neck = conv(3, 16, 4), conv(16, 32, 4), conv(32, 48, 2)
        self.fc = nn.Linear(48, 10)

    def forward(self, images):
        return self.fc(self.neck(self.b(self.a(images))).mean((2, 3)))

def make():
    return Net()

class Hidden(Net):  # its stages cannot be found by running it on images of other sizes
    def forward(self, images):
        return self.b(self.a(images)).flatten(1) @ images.new_zeros(32 * 4 * 4, 10)

def hidden():
    return Hidden()
"""

FOUR_STEPS: dict[str, Any] = {
    "decoder_width": 32,
    "image_size": (64, 64),
    "batch_size": 6,
    "epochs": 0.25,
    "warmup_epochs": 0.1,
    "lr": 0.01,
    "precision": "32",
    "device": "cpu",
    "workers": 0,
    "pictures": 0,
}


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}:make"


def run(folder: Path, without: tuple[str, ...] = (), **chosen: Any) -> dict[str, Any]:
    """The configuration of a fine-tuning."""
    tiny = {name: value for name, value in TINY_FINETUNE.items() if name not in without}
    finetune(folder, chosen=tiny | chosen)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def test_a_classifier_of_its_own_is_not_trained(own: str) -> None:
    classifier = build_classifier(5, model=own)
    frozen = [name for name, p in classifier.module.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.fc.weight", "encoder.fc.bias"]
    lower = build_classifier(5, model=own, stages=("a", "b"))
    assert not any(p.requires_grad for p in lower.encoder.neck.parameters())  # type: ignore[union-attr]


def test_weights_without_the_classifier_of_its_own_load(own: str) -> None:
    classifier, encoder = build_classifier(5, model=own), load_trained_encoder("none", own, seed=3)
    encoder.backbone.module.fc = torch.nn.Identity()
    load_weights(classifier, encoder)
    assert torch.equal(classifier.encoder.b[0].weight, encoder.backbone.module.b[0].weight)  # type: ignore[index,union-attr]
    assert not classifier.encoder.fc.weight.requires_grad  # type: ignore[union-attr]
    encoder.backbone.module.b = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"does not fit the network: missing b\.0\.weight"):
        load_weights(classifier, encoder)


def test_stages_of_the_pretraining_are_kept(tmp_path: Path, data: Path, own: str) -> None:
    pretrain(
        tmp_path / "pre",
        chosen=FOUR_STEPS | {"model": own, "stages": ("a", "b"), "data": data / "train"},
    )
    encoder = load_trained_encoder(tmp_path / "pre", trust=True)
    assert (encoder.stages, encoder.backbone.channels) == (("a", "b"), [16, 32])
    config = run(tmp_path / "run", ("image_size",), data=data, encoder=tmp_path / "pre", model=own)
    assert config["model"]["stages"] == ["a", "b"]
    assert load_file(tmp_path / "run" / "model.safetensors")["head.weight"].shape == (3, 32)
    own_stages = {"model": own, "stages": ("b", "neck")}
    config = run(tmp_path / "other", ("image_size",), data=data, encoder=tmp_path / "pre", **own_stages)
    assert config["model"]["stages"] == ["b", "neck"]


def test_stages_are_named_from_scratch(tmp_path: Path, data: Path, own: str) -> None:
    hidden = own.replace(":make", ":hidden")
    assert run(tmp_path / "run", data=data, model=hidden, stages=("a", "b"))["model"]["stages"] == ["a", "b"]


def test_crop_and_flip_of_the_pretraining_are_kept(tmp_path: Path, data: Path) -> None:
    chosen = FOUR_STEPS | {"model": "test_resnet", "data": data / "train", "crop": "native", "flip": False}
    pretrain(tmp_path / "pre", chosen=chosen)
    config = run(tmp_path / "run", ("model", "image_size"), data=data, encoder=tmp_path / "pre")
    assert (config["data"]["crop"], config["data"]["flip"]) == ("native", False)
    again = load_trained_encoder(tmp_path / "run" / "model.safetensors").data
    assert (again.crop, again.flip) == ("native", False)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_from_scratch(tmp_path: Path, data: Path, channels: int) -> None:
    config = run(tmp_path / "run", data=data, in_chans=channels)
    assert (config["model"]["in_chans"], len(config["data"]["mean"])) == (channels, channels)
    first = next(iter(load_model(tmp_path / "run" / "model.safetensors").module.parameters()))
    assert first.shape[1] == channels


def test_timms_weights_take_other_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is left out; timm itself adapts the first layer."""
    create = Backbone.create
    monkeypatch.setattr(Backbone, "create", lambda *a, pretrained, **more: create(*a, **more))
    encoder = load_trained_encoder("timm", "test_resnet", in_chans=1)
    assert encoder.backbone.in_chans == len(encoder.data.mean) == len(encoder.data.std) == 1
    assert len(load_trained_encoder("timm", "test_resnet").data.mean) == 3


def test_fine_tuning_spares_what_pretraining_spares() -> None:
    classifier = build_classifier(5, model="test_convnext")
    block: Any = next(m for m in classifier.module.modules() if hasattr(m, "gamma"))
    block.gamma = torch.nn.Parameter(block.gamma.detach().view(-1, 1, 1))  # as fastvit's
    decayed = [
        {id(p) for group in groups if group["weight_decay_scale"] for p in group["params"]}  # type: ignore[attr-defined]
        for groups in (decayed_groups(classifier, 0.7), param_groups_weight_decay(classifier.module.named_parameters()))
    ]
    assert decayed[0] == decayed[1]
    assert id(block.gamma) not in decayed[0]


def test_stochastic_depth_that_a_network_does_not_take() -> None:
    with pytest.raises(ValueError, match="vgg11 takes no stochastic depth; use --drop-path 0"):
        build_classifier(3, model="vgg11", drop_path=0.1)


@pytest.mark.parametrize("again", ["continued", "predicted"])
def test_a_file_that_is_spoilt_afterwards(tmp_path: Path, data: Path, own: str, again: str) -> None:
    run(tmp_path / "run", model=own, stages=("a", "b"), data=data, epochs=1.0)
    file = tmp_path / "own.py"
    file.write_text("import no_such_module\n" + file.read_text())
    saved = tmp_path / "run" / "model.safetensors"
    act = partial(finetune, tmp_path / "run") if again == "continued" else partial(load_model, saved)
    act = partial(act, trust=True)
    with pytest.raises(ValueError, match=r"own\.py:make fails at line 1: ModuleNotFoundError: .*no_such_module"):
        act()


def test_batch_norm_of_a_single_value(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"one image of --image-size 32 32 at a time .*larger --batch-size"):
        run(tmp_path / "run", data=data, image_size=(32, 32), batch_size=1)
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", data=data, batch_size=1, epochs=0.1, warmup_epochs=0.0)  # four values


def test_views_can_be_sent_to_processes_that_are_spawned(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, where processes that read images do not inherit them."""
    sent = []
    monkeypatch.setattr(FinetuningTask, "publish", lambda task: sent.append(pickle.dumps(task.views)))
    finetune(tmp_path / "run", chosen=TINY_FINETUNE | {"data": data})
    views = pickle.loads(sent[0])
    assert views[0, 0].indices == [0]
