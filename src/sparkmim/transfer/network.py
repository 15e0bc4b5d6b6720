"""The network that is fine-tuned: a backbone with a head on it, and the encoder's weights in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
from jaxtyping import Float
from torch import Tensor, nn

from ..checkpoints.encoder import TrainedEncoder
from ..models.alignment import Alignment
from ..models.backbone import Backbone
from ..models.factory import load_backbone, require_local_folder, stochastic_depth


class Network(NamedTuple):
    """A network with a head.

    Attributes:
        module: from images `(B, C, H, W)` to outputs.
        backbone: its feature maps.
        encoder: the part of it that an encoder's file describes; the module itself for a timm network with timm's head.
    """

    module: nn.Module
    backbone: Backbone
    encoder: nn.Module


class PooledNetwork(nn.Module):
    """A head on the mean of the deepest map; what that does not depend on (a classifier, say) is not trained."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.encoder = backbone.module
        self.head = head
        self._backbone = backbone
        for name in backbone.unreached_parameters(1):  # several processes would wait for their gradients
            self.encoder.get_parameter(name).requires_grad_(False)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Return the head's outputs."""
        return self.head(self._backbone(images)[-1].flatten(2).mean(2))  # type: ignore[no-any-return]


def pooled_network(backbone: Backbone, head: nn.Module) -> Network:
    """Return a network whose head takes the mean of the deepest map."""
    return Network(PooledNetwork(backbone, head), backbone, backbone.module)


def load_config_backbone(config: Any) -> Backbone:
    """Return the backbone that a :class:`~sparkmim.transfer.config.NetworkConfig` describes, with random weights."""
    return load_backbone(config.model, config.stages, config.in_chans, levels=config.levels, drop_path=config.drop_path)


def timm_network(config: Any, outputs: int, *, padded: bool = True) -> Network:
    """Return a timm network with timm's own head, so that its weights load into `timm.create_model(name, outputs)`.

    One that is padded while it is pretrained (`Backbone.aligned`) is padded here too, unless `padded` is off, as in
    networks fine-tuned by older versions.
    """
    settings: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    require_local_folder(config.model)
    with stochastic_depth(config.model, config.drop_path):
        module = timm.create_model(config.model, num_classes=outputs, in_chans=config.in_chans, **settings)
    backbone = Backbone(module, config.stages or None, in_chans=config.in_chans, levels=config.levels)
    if padded and backbone.aligned:
        pad_forward(module, backbone)
    return Network(module, backbone, module)


def pad_forward(module: nn.Module, backbone: Backbone) -> None:
    """Have a network run with the padding with which its backbone measured its maps; its parameters stay the same.

    The class of the module is replaced by a subclass, so that copies of the module are padded too.
    """
    plain = type(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with Alignment():
            return plain.forward(self, *args, **kwargs)

    module.__class__ = type(plain.__name__, (plain,), {"forward": forward, "__module__": plain.__module__})


def load_weights(network: Network, encoder: TrainedEncoder) -> None:
    """Load an encoder's weights into a network; what no feature map depends on keeps its random ones.

    Raises:
        ValueError: if the encoder is of another network.
    """
    state = encoder.backbone.module.state_dict()
    own = network.encoder.state_dict()
    spare = network.backbone.unreached_tensors()
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
    network.encoder.load_state_dict(kept, strict=False)
