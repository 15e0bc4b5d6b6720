"""Load weights of any checkpoint format into a network or a pretraining model.

The file's name does not matter. Candidates are all state dicts in the file, without every common prefix of their keys,
and as converted by timm's filters. The candidate that shares most keys and shapes with the module is taken, and must
then fit completely.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from ..models.backbone import Backbone
from ..models.spark import SparK
from ..utils.io import require_honest_archive
from ..utils.text import printable, verb
from .key_maps import COUNTER, State, conversions, our_key
from .metadata import read_metadata

MOST_DOTS = 64
"""Parts of a key that are tried as a prefix; the names of networks have a few."""

MOST_NAME = 1000
"""Characters of a key in which prefixes are looked for."""

MOST_PREFIXES = 32
"""Prefixes that are tried, those of most keys."""

MOST_STATES = 64
"""Dicts of tensors that are tried, the largest ones."""

MOST_ENTRIES = 5_000_000
"""Entries of all dicts of a file together."""


class Content(NamedTuple):
    """The content of a file of weights.

    Attributes:
        form: description of the file's format.
        value: what it holds; for a safetensors file a dict of tensors.
    """

    form: str
    value: Any


class LoadReport(NamedTuple):
    """What was loaded.

    Attributes:
        form: description of the file's format.
        loaded: number of tensors loaded.
        ignored: keys of the file that were not loaded, such as a classifier's or a decoder's.
        missing: keys of the module that are not in the file and keep their values: batch norm's counters, and tensors
            that no feature map depends on (a classifier, a last norm).
        adapted: channels that the file's first convolution takes, where it was adapted to another number.
    """

    form: str
    loaded: int
    ignored: list[str]
    missing: list[str]
    adapted: int | None = None


def load_weights(module: nn.Module, path: str | Path, content: Content | None = None) -> LoadReport:
    """Load weights into an ordinary network, all or nothing.

    Reads safetensors and PyTorch files: the encoder of a run, a training checkpoint, weights of timm or torchvision,
    every file of the official code, at any nesting of dicts and behind any prefix. Averaged weights ("ema") are
    preferred to the last ones, as in timm. A first convolution for another number of channels is adapted as in timm.

    Args:
        module: the network.
        path: the file.
        content: of the file, if it has been read.

    Raises:
        ValueError: if the file is not a checkpoint, would run code when read, or does not fit the network: a tensor
            that a feature map depends on is missing, tensors have another shape, or the network lacks some.
    """
    return _load(module, path, lambda state: conversions(state, module), lambda: _unreached(module), content)


def load_pretraining(model: SparK, path: str | Path) -> LoadReport:
    """Load a whole model, decoder included, from a training checkpoint or the official `*_withdecoder_*.pth`.

    Raises:
        ValueError: as for :func:`load_weights`, and for a file with an encoder only.
    """

    def whole_model(state: State) -> Iterator[tuple[str, State]]:
        ours = {our_key(key): tensor for key, tensor in state.items()}
        official = ", names of the official code" if ours.keys() != state.keys() else ""
        rest = {key: tensor for key, tensor in ours.items() if not key.startswith("encoder.")}
        network = {key.removeprefix("encoder."): tensor for key, tensor in ours.items() if key not in rest}
        for how, converted in conversions(network, model.encoder):
            yield official + how, rest | {f"encoder.{key}": tensor for key, tensor in converted.items()}

    return _load(model, path, whole_model, lambda: {f"encoder.{name}" for name in model.unreached})


def is_safetensors(path: str | Path) -> bool:
    """Return whether the first bytes of a file are those of a safetensors file."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000  # the format's limit of a header


def read_weights(path: str | Path) -> Content:
    """Return the content of a file, its format determined from its first bytes; no code in it is run.

    Raises:
        ValueError: if the file is not a checkpoint, would run code when read, or claims more than it holds.
    """
    with open(path, "rb") as file:
        head = file.read(9)
    if not head:
        raise ValueError(f"{path} is empty: not a checkpoint")
    if is_safetensors(path):
        try:
            return Content("safetensors file", _with_all_names(safetensors.torch.load_file(path), read_metadata(path)))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file: {error}") from error
    require_honest_archive(Path(path))
    try:
        # timm stores its settings in a Namespace; torch is given a file since of a path it reads the extension
        with (
            open(path, "rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return Content("PyTorch file", torch.load(file, weights_only=True, map_location="cpu"))
    except Exception as error:  # unpickling any other format may raise anything
        unpickling = isinstance(error, pickle.UnpicklingError)  # whose message advises to run what is in the file
        if unpickling and head.startswith((b"PK", b"\x80")):
            name = re.search(r"GLOBAL (\S+)", str(error))
            raise ValueError(
                f"{path} was refused: it contains Python objects beside tensors{f' ({name[1]})' if name else ''}, and "
                "reading them may run code (torch.load, weights_only=True). If you trust its source, load it with "
                "weights_only=False and save its state dict alone"
            ) from error
        said = str(error).split(". ")[0]  # torch's advice follows, which does not apply
        reason = "" if unpickling or not said else f": {' '.join(said.split())}"
        raise ValueError(
            f"{path} is not a checkpoint, or a damaged one: neither safetensors nor a file of torch.save "
            f"({type(error).__name__}{reason})"
        ) from error


def tied_names(state: State) -> dict[str, str]:
    """Return for each name of a tensor but the first the first one."""
    first: dict[tuple[Any, ...], str] = {}
    others = {}
    for name, tensor in state.items():
        if tensor.numel():
            place = tensor.device, tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
            kept = first.setdefault(place, name)
            if kept != name:
                others[name] = kept
    return others


def _with_all_names(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors with the names that are not written, which metadata gives; see :func:`tied_names`."""
    others = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return tensors | others


def _states(content: Any, path: object) -> list[tuple[str, State]]:
    """Return the dicts of tensors in a file and their places: a fine-tuning's best weights first, then averages.

    Each dict is looked into once, however often it is held, and the largest ones are returned.

    Raises:
        ValueError: if the file has more entries than any checkpoint.
    """
    found: list[tuple[str, State]] = []
    seen: set[int] = set()
    waiting: list[tuple[Any, str]] = [(content, "")]
    entries = 0
    while waiting:
        entry, where = waiting.pop()
        if not isinstance(entry, Mapping) or id(entry) in seen:
            continue
        seen.add(id(entry))
        entries += len(entry)
        if entries > MOST_ENTRIES:
            raise ValueError(f"{path} is not a checkpoint: it holds more than {MOST_ENTRIES:,} entries")
        tensors = {key: value for key, value in entry.items() if isinstance(key, str) and _is_whole(value)}
        if tensors:
            found.append((where, tensors))
        if where.count(".") < MOST_DOTS and len(where) < 1000:
            inner = [(v, f"{where}.{k}" if where else k) for k, v in entry.items() if isinstance(k, str)]
            waiting += reversed(inner)  # an optimizer's entries are numbered, and passed over

    def last(pair: tuple[str, State]) -> int:
        parts = re.split(r"[._]", pair[0])
        return next((rank for rank, name in enumerate(("best", "ema", "average")) if name in parts), 3)

    least = sorted((len(state) for _, state in found), reverse=True)[:MOST_STATES]
    largest = [pair for pair in found if len(pair[1]) >= least[-1]][:MOST_STATES] if found else []
    return [(f", its {where!r}" if where else "", state) for where, state in sorted(largest, key=last)]


def _is_whole(value: Any) -> bool:
    """Return whether a value is a tensor whose storage holds all of its values: a view may repeat one endlessly."""
    if not isinstance(value, Tensor):
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _prefixes(state: State, size: int) -> Iterator[tuple[str, State, list[str]]]:
    """Yield the state dict, then without each prefix that at least `size / 2` keys share, with the keys left out."""
    yield "", state, []
    count = Counter(key[: dot.end()] for key in state for dot in islice(re.finditer(r"\.", key[:MOST_NAME]), MOST_DOTS))
    often = {prefix for prefix, _ in count.most_common(MOST_PREFIXES)}
    for prefix, shared in count.items():
        if prefix in often and 2 * shared >= size:
            inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            yield f", behind {prefix!r}", inner, [key for key in state if not key.startswith(prefix)]


def _load(
    module: nn.Module,
    path: str | Path,
    conversions: Callable[[State], Iterator[tuple[str, State]]],
    unreached: Callable[[], set[str]],
    read: Content | None = None,
) -> LoadReport:
    """Load the candidate of a file that fits best, if it fits; `unreached` names tensors that may be missing."""
    kind, content = read_weights(path) if read is None else read
    own = {key: tensor for key, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    readings = [
        (f"{kind}{where}{behind}{how}", tensors, aside)
        for where, state in _states(content, path)
        for behind, inner, aside in _prefixes(state, len(own))
        for how, tensors in conversions(inner)
    ]
    if not readings:
        raise ValueError(f"{path} holds no weights: expected a dict of tensors, got a {type(content).__name__}")
    form, tensors, aside = max(
        readings, key=lambda reading: sum(k in own and 1 + (t.shape == own[k].shape) for k, t in reading[1].items())
    )
    found = {key: tensor for key, tensor in tensors.items() if key in own}
    adapted = _adapt_first_conv(found, module)
    if adapted is not None:
        name, conv = _first_conv(module)
        form += f", {name} adapted from {adapted} to {conv.weight.shape[1]} channels"
    missing = [key for key in own if key not in found]
    needed = [key for key in missing if not key.endswith(COUNTER)]
    if needed:
        spare = unreached()
        needed = [key for key in needed if key not in spare]
    misshaped = [key for key in found if found[key].shape != own[key].shape]
    if misshaped and adapted is not None:
        spare = unreached()
        aside += [key for key in misshaped if key in spare]  # a U-Net's last layer has as many channels as its image
        found = {key: tensor for key, tensor in found.items() if key not in aside}
        missing += [key for key in misshaped if key in spare]
        misshaped = [key for key in misshaped if key not in spare]
    rest = [key for key in tensors if key not in own]
    parts = {key.split(".")[0] for key in own} - {_classifier(module)}
    surplus = [key for key in rest if key.split(".")[0] in parts and not key.endswith(COUNTER)]
    if needed or misshaped or surplus:
        shapes = [f"{k}: {tuple(found[k].shape)} in the file, {tuple(own[k].shape)} in the network" for k in misshaped]
        reasons = {
            f"{len(needed)} of the network's {len(own)} tensors {verb(len(needed), 'are')} missing": needed,
            f"{len(misshaped)} {verb(len(misshaped), 'have')} another shape": shapes,
            f"{len(surplus)} {verb(len(surplus), 'are')} more than the network has": surplus,
            "what the file has": [] if found else rest,
        }
        listed = [
            f"{what} ({', '.join(printable(key[:200]) for key in keys[:4])}{', ...' * (len(keys) > 4)})"
            for what, keys in reasons.items()
            if keys
        ]
        troubled = {key.split(".")[0] for key in needed + misshaped + surplus}
        arch = content.get("arch")
        said = f" (the file says {printable(arch[:100])})" if isinstance(arch, str) else ""
        remedy = f"name the model they were trained with{said} by --model"
        if len(troubled) == 1 < len(parts) and not surplus:
            remedy = f"All but {printable(troubled.pop()[:200])!r} fits: load before adding a classifier, else {remedy}"
        elif isinstance(module, SparK):
            remedy = f"These are weights of another model, or an encoder alone, which load_weights reads; {remedy}"
        else:
            remedy = f"These look like weights of another architecture; {remedy}"
        raise ValueError(f"{path} ({form}) does not fit {type(module).__name__}: {'; '.join(listed)}. {remedy}")
    module.load_state_dict(found, strict=False)
    return LoadReport(form, len(found), aside + rest, missing, adapted)


def _adapt_first_conv(found: dict[str, Tensor], module: nn.Module) -> int | None:
    """Adapt the first convolution's weights to the module's number of channels, as timm does.

    Returns:
        The file's number of channels if it is another one; None if nothing is adapted.
    """
    name, conv = _first_conv(module)
    weight = found.get(f"{name}.weight")
    if weight is None or weight.ndim != conv.weight.ndim or weight.shape == conv.weight.shape:
        return None
    came, wanted = weight.shape[1], conv.weight.shape[1]
    for own, parameter in module.named_parameters(remove_duplicate=False):  # nnU-Net's has several names
        if parameter is conv.weight and own in found:
            found[own] = adapt_channels(found[own], wanted)
    return came if came != wanted else None


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a first convolution's weight `(out, in, *kernel)` to another number of input channels, as timm does.

    For one channel the weights of all are summed. For more they are repeated, and scaled so that an image whose
    channels are equal gives the same.
    """
    came = weight.shape[1]
    if came == channels:
        return weight
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = torch.cat([weight.float()] * -(-channels // came), 1)[:, :channels]
    return (repeated * (came / channels)).to(weight.dtype)


def _first_conv(module: nn.Module) -> tuple[str, Any]:
    convs = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.modules.conv._ConvNd))
    return next(convs, ("", None))


def _classifier(module: nn.Module) -> str | None:
    """Return the first part of the name of a timm network's classifier, which exists even if it is an identity."""
    classifier = module.get_classifier() if hasattr(module, "get_classifier") else None  # type: ignore[operator]
    return next((name.split(".")[0] for name, m in module.named_modules() if m is classifier), None)


def _unreached(module: nn.Module) -> set[str]:
    """Return the names of tensors that no feature map depends on, empty if the network has no maps."""
    _, conv = _first_conv(module)
    if conv is not None:
        with suppress(Exception):  # the maps are not a pyramid, or are not found
            return Backbone(module, in_chans=conv.in_channels).unreached_tensors()
    return set()
