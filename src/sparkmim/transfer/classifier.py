"""The network with a classifier on it, and the encoder's weights in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checkpoints.encoder import TrainedEncoder
from ..models.backbone import Backbone, probing
from ..models.factory import load_backbone, stochastic_depth
from ..utils.specs import is_function


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The network to train."""

    model: str
    """A timm model name, or FILE.py:FUNCTION that returns a module or a sparkmim.Backbone; not needed where the encoder
    knows it."""

    stages: tuple[str, ...] = ()
    """Names of the submodules whose outputs are the feature maps, if the network does not offer them itself."""

    in_chans: int = 3
    """Channels of the images."""

    encoder: str = "none"
    """Weights to start from: an encoder.safetensors or other weights, the folder of a pretraining, timm (its pretrained
    ones), or none (random ones: from scratch)."""

    drop_path: float = 0.0
    """Highest rate of stochastic depth in the network."""


class Classifier(NamedTuple):
    """A network.

    Attributes:
        module: from images `(B, C, H, W)` to logits `(B, classes)`.
        backbone: its feature maps.
        encoder: the part of it that an encoder's file describes; the module itself for a network of timm's.
    """

    module: nn.Module
    backbone: Backbone
    encoder: nn.Module


class PooledClassifier(nn.Module):
    """A linear classifier on the mean of the deepest map; what that does not depend on (another classifier) is not
    trained."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.encoder = backbone.module
        self.head = nn.Linear(backbone.channels[-1], classes)
        self._backbone = backbone
        for name in backbone.unreached_parameters(1):  # several processes would wait for their gradients
            self.encoder.get_parameter(name).requires_grad_(False)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Logits."""
        return self.head(self._backbone(images)[-1].flatten(2).mean(2))


def build_classifier(config: ClassifierConfig, classes: int) -> Classifier:
    """The network that a configuration describes, with random weights.

    A network of timm's gets timm's own classifier, so that its weights load into
    `timm.create_model(name, num_classes=classes)`; any other one gets a :class:`PooledClassifier`.
    """
    if is_function(config.model):
        backbone = load_backbone(config.model, config.stages, config.in_chans, drop_path=config.drop_path)
        return Classifier(PooledClassifier(backbone, classes), backbone, backbone.module)
    settings: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    with stochastic_depth(config.model, config.drop_path):
        module = timm.create_model(config.model, num_classes=classes, in_chans=config.in_chans, **settings)
    backbone = Backbone(module, config.stages or None, in_chans=config.in_chans)
    return Classifier(module, backbone, module)


def check_image_size(module: nn.Module, config: ClassifierConfig, image_size: tuple[int, ...]) -> None:
    """Whether a classifier takes images of a size.

    Raises:
        ValueError: if not.
    """
    try:
        with probing(module), torch.no_grad():
            module(torch.zeros(1, config.in_chans, *image_size))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise ValueError(
            f"{config.model} does not take images of --image-size {' '.join(map(str, image_size))} ({reason}); use a "
            "larger one, or the one it is made for"
        ) from error


def load_weights(classifier: Classifier, encoder: TrainedEncoder) -> None:
    """Bring an encoder's weights into a classifier; what no feature map depends on keeps its random ones.

    Raises:
        ValueError: if the encoder is of another network.
    """
    state = encoder.backbone.module.state_dict()
    own = classifier.encoder.state_dict()
    spare = classifier.backbone.unreached_tensors()
    missing = [key for key in own if key not in state and key not in spare]
    misshaped = [key for key in state if key in own and state[key].shape != own[key].shape and key not in spare]
    surplus = [key for key in state if key not in own]
    if missing or misshaped or surplus:
        raise ValueError(
            f"the encoder ({encoder.name}) does not fit the network: "
            + "; ".join(
                f"{what} {', '.join(keys[:4])}"
                for what, keys in (("missing", missing), ("other shape", misshaped), ("not in it", surplus))
                if keys
            )
        )
    kept = {key: tensor for key, tensor in state.items() if tensor.shape == own[key].shape}
    classifier.encoder.load_state_dict(kept, strict=False)
