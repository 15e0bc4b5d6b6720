"""Predict by the network's own decoder, so that encoder and decoder are both pretrained and transferred.

As in Spark3D (Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation", CVPR 2025; nnssl's
`SparK3D`): the skips of a U-Net are densified in their own width, its decoder goes on from there, and only its
segmentation head gives way to a projection to the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ..sparse import UnsupportedOperation
from ..sparse.nested import tensors_in
from ..utils.hooks import running_modules
from ..utils.modules import CONV
from .backbone import Backbone, Levels
from .config import Decoder, DecoderBlock, ModelConfig
from .continuation import Continuation, Densified
from .dataflow import Dataflow, leaves, leaves_of
from .levels import Level
from .trace import Event, Trace, record

LAST = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
"""Functions that a segmentation head is made of."""


class Plan(NamedTuple):
    """What is used of a network with a decoder.

    Attributes:
        used: the backbone's maps that are skips of the decoder, highest resolution first.
        last: name of the decoder's last map, the head's input, in the notation of :mod:`~sparkmim.models.taps`.
        level: channels and stride of that map.
        trained: names of the parameters that it depends on.
    """

    used: tuple[int, ...]
    last: str
    level: Level
    trained: frozenset[str]


class OwnDecoder(nn.Module):
    """The network's own decoder, and the projection of its last map to the prediction.

    The decoder's parameters stay where they are, in the network; only the projection's are held here.

    Args:
        backbone: the network.
        out_chans: channels of the prediction.
        end: stride of the prediction along each axis. If the last map is coarser, each of its positions predicts a
            block.

    Attributes:
        skips: names of the maps that are densified, highest resolution first.
        plan: what is used of the network.

    Raises:
        ValueError: if the network has no decoder, or uses more of the encoder than its skips.
    """

    def __init__(self, backbone: Backbone, out_chans: int, end: Sequence[int]) -> None:
        super().__init__()
        self.plan = find_decoder(backbone)
        self.skips = [backbone.stages[i] for i in self.plan.used]
        self.channels = [backbone.channels[i] for i in reversed(self.plan.used)]
        stride = self.plan.level.stride
        if any(s % e for s, e in zip(stride, end, strict=True)):
            raise ValueError(
                f"{_name(backbone)}'s decoder ends at stride {_by(stride)}, and the objective predicts at {_by(end)}, "
                "which does not divide it; use decoder='unet'"
            )
        self.block = tuple(s // e for s, e in zip(stride, end, strict=True))
        self.proj = CONV[backbone.dims](self.plan.level.channels, out_chans * math.prod(self.block), 1)

    def width_of(self, level: int) -> int:
        """Return the channels of the densified map of a level (0 = deepest): its own."""
        return self.channels[level]

    def last_map(
        self, network: nn.Module, images: Float[Tensor, "batch channel *size"], densify: Densified
    ) -> Float[Tensor, "batch _ *_size"]:
        """Return the decoder's last map.

        Args:
            network: the network, or a replica of it.
            images: its input.
            densify: takes the skips as the network computes them, highest resolution first, and returns densified maps
                `(B, C_i, *size / stride_i)`.
        """
        return Continuation(self.skips, densify).run(network, images, self.plan.last)

    def forward(self, x: Float[Tensor, "batch _ *_size"]) -> Float[Tensor, "batch out_chans *size"]:
        """Return the prediction for the decoder's last map."""
        out: Tensor = self.proj(x)
        if math.prod(self.block) == 1:
            return out
        dims = len(self.block)
        out = out.unflatten(1, (-1, *self.block))  # (batch, channel, *block, *size)
        order = [axis for n in range(dims) for axis in (2 + dims + n, 2 + n)]
        size = [s * b for s, b in zip(x.shape[2:], self.block, strict=True)]
        return out.permute(0, 1, *order).reshape(len(x), -1, *size)


def levels_of(levels: int | None, decoder: Decoder) -> Levels:
    """Return how many maps a backbone keeps where no number is given: all that there are, for the own decoder."""
    return "all" if levels is None and decoder == "own" else levels


def require_own_settings(hierarchy: bool, decoder_width: int, decoder_block: DecoderBlock) -> None:
    """Raise for settings of the decoder "unet" that would change nothing of the network's own.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    if not hierarchy:
        raise ValueError(
            "hierarchy=False decodes from the deepest map alone, and the network's own decoder takes all its skips; "
            "leave it out, or use decoder='unet'"
        )
    given = {"decoder_width": decoder_width, "decoder_block": decoder_block}
    for name, value in given.items():
        if value != getattr(ModelConfig, name):
            raise ValueError(f"{name}={value!r} has no effect with decoder='own'; leave it out, or use decoder='unet'")


def own_decoder_is_eager() -> UnsupportedOperation:
    """Build the error of a model that is compiled though its network's own decoder predicts."""
    return UnsupportedOperation(
        "a model whose network's own decoder predicts cannot be compiled: the compiler does not see where densified "
        "maps take the place of skips; use --compile off, or the decoder 'unet'"
    )


def find_decoder(backbone: Backbone) -> Plan:
    """Find out which of a backbone's maps its network's decoder takes as skips, and where that decoder ends.

    Raises:
        ValueError: if it has none, or uses more of the encoder than maps of the backbone.
    """
    name = _name(backbone)
    if not backbone.stages:
        raise ValueError(
            f"{name} offers feature maps itself (forward_intermediates), as encoders do: there is no decoder to "
            "pretrain; use decoder='unet'"
        )
    if backbone.aligned:
        raise ValueError(
            f"the own decoder of {name} cannot be followed: padding is added to its unpadded convolutions or poolings "
            f"({', '.join(backbone.aligned[:4])}), and its decoder crops the skips; pad them (padding=1 for a kernel "
            "of 3), or use decoder='unet'"
        )
    last = backbone.probe(lambda image, names: _last_map(backbone, image, names))
    used: tuple[int, ...] = ()
    plan = _follow(backbone, last, tuple(range(len(backbone.levels))))
    while plan.used != used:  # a map that is no skip may be computed after the decoder has begun
        used = plan.used
        plan = _follow(backbone, last, used)
    return plan


def _last_map(backbone: Backbone, image: Tensor, names: Mapping[int, str]) -> str:
    """Return the name of the map that the network's segmentation head is given, or of the network's output."""
    assert image.grad_fn is not None
    source = id(image.grad_fn.next_functions[0][0].variable)  # type: ignore[union-attr]
    outputs: list[Tensor] = []
    trace = record(backbone.module, lambda: outputs.extend(tensors_in(backbone.module(image))), backbone.dims, names)
    name = _name(backbone)
    if trace.error is not None:
        raise ValueError(
            f"the own decoder of {name} cannot be followed: its forward pass ends in an error on images of "
            f"{_by(image.shape[2:])} ({trace.error}); use decoder='unet'"
        ) from trace.error
    maps = [out for out in outputs if out.ndim == backbone.dims + 2 and out.grad_fn is not None]
    if not maps:
        raise ValueError(f"{name} returns no map (batch, channel, *size): it has no decoder; use decoder='unet'")
    out = max(maps, key=lambda tensor: math.prod(tensor.shape[2:]))  # the first of the finest: others are supervision
    trunk = Dataflow([out.grad_fn], source).on_every_way(out.grad_fn)
    trained = leaves_of([out.grad_fn]) & names.keys()
    calls = [e for e in trace.events if e.kind == "function" and e.function in LAST and e.node in trunk]
    head = next((call for call in reversed(calls) if trained <= leaves_of([call.node])), None)
    if head is not None:
        return _input_of(head, trace, backbone)
    ends = [e.name for e in trace.events if not e.module and e.kind in ("output", "part") and e.node is out.grad_fn]
    if not ends:
        raise ValueError(
            f"the output of {name} is nested too deeply to be read; return a map, a list or a dict of maps, or use "
            "decoder='unet'"
        )
    return ends[0]


def _input_of(head: Event, trace: Trace, backbone: Backbone) -> str:
    """Return the name of the map that a network's last convolution is given: its module's input.

    Raises:
        ValueError: if it is not a module of its own.
    """
    given = [e for e in trace.events if e.kind == "input" and e.module == head.module]
    inside = [e for e in trace.events if e.kind == "function" and e.function in LAST and head.module in e.within]
    if len(given) != 1 or len(inside) != 1:
        where = f"module {head.module!r}" if head.module else "the network"
        raise ValueError(
            f"the own decoder of {_name(backbone)} cannot be followed: its last convolution ({head.function}) is "
            f"called in the forward pass of {where} itself; make it a module of its own, called once with the "
            "decoder's last map, or use decoder='unet'"
        )
    return given[0].name


def _follow(backbone: Backbone, last: str, candidates: tuple[int, ...]) -> Plan:
    """Return what the network's decoder uses, if the skips are among some of the backbone's maps.

    Raises:
        ValueError: if it uses more of the encoder, or nothing.
    """
    network, name = backbone.module, _name(backbone)
    stages = [backbone.stages[i] for i in candidates]

    def use(image: Tensor, names: Mapping[int, str]) -> Plan:
        def cut(maps: Sequence[Tensor]) -> list[Tensor]:
            skips.extend(maps)
            ends.extend(m.detach().requires_grad_() for m in maps)
            return [end.clone() for end in ends]  # the network may write into them

        skips: list[Tensor] = []
        ends: list[Tensor] = []
        with running_modules(network) as running:
            out = Continuation(stages, cut, running).run(network, image, last)
        reached = leaves([out])
        used = [n for n, end in enumerate(ends) if id(end) in reached]
        decoder = reached & names.keys()
        if not decoder or candidates[-1] != len(backbone.levels) - 1 or len(ends) - 1 not in used:
            raise ValueError(
                f"{name} has no decoder of its own to pretrain: nothing is trained between its deepest feature map "
                f"({backbone.stages[-1]}) and its output; use decoder='unet'"
            )
        stride = tuple(s // m for s, m in zip(image.shape[2:], out.shape[2:], strict=True))
        if any(s % m for s, m in zip(image.shape[2:], out.shape[2:], strict=True)):
            raise ValueError(
                f"the last map of {name}'s decoder is {_by(out.shape[2:])} for images of {_by(image.shape[2:])}, which "
                "is no whole stride; use decoder='unet'"
            )
        trained = decoder | leaves([skips[n] for n in used])
        return Plan(
            tuple(candidates[n] for n in used),
            last,
            Level(out.shape[1], stride),
            frozenset(name for key, name in names.items() if key in trained),
        )

    try:
        return backbone.probe(use)
    except UnsupportedOperation as error:
        raise ValueError(
            f"the own decoder of {name} cannot be followed: {error}; give it all maps that its decoder takes (name "
            "them as stages, and leave levels out), or use decoder='unet'"
        ) from error


def _name(backbone: Backbone) -> str:
    return type(backbone.module).__name__


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
